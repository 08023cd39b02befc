"""Normalisation: many ways to write a network become one.

Each pass keeps what the model computes; those that do arithmetic on weights do it in float64. The
passes that rewrite nodes are in `onnxbrecq.graph.passes`. A function named `edit_...` edits the
graph that it is given and says whether anything changed; `normalise` works on a copy.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from onnxbrecq.graph.conditions import edit_conditions
from onnxbrecq.graph.constants import Constants, add, remove, with_values
from onnxbrecq.graph.folding import edit_constants
from onnxbrecq.graph.model import STANDARD_DOMAINS, Norm, attribute, graphs, node_inputs
from onnxbrecq.graph.norms import norms
from onnxbrecq.graph.passes.arithmetic import edit_constant_pairs, edit_neutral
from onnxbrecq.graph.passes.editor import Editor
from onnxbrecq.graph.passes.functions import edit_functions, edit_prelu, edit_swish
from onnxbrecq.graph.passes.fused import edit_fused
from onnxbrecq.graph.passes.heads import edit_heads
from onnxbrecq.graph.passes.layer_norm import edit_layer_normalization
from onnxbrecq.graph.passes.order import edit_order
from onnxbrecq.graph.passes.padding import edit_auto_pads, edit_pads
from onnxbrecq.graph.passes.scales import edit_gemms, edit_scales
from onnxbrecq.graph.precision import edit_precision, half_type, widening_obstacle
from onnxbrecq.graph.skeleton import infer_shapes
from onnxbrecq.graph.upgrade import edit_opset

_REWRITES = (
    edit_neutral, edit_fused, edit_swish, edit_prelu, edit_functions, edit_layer_normalization,
    edit_gemms, edit_scales, edit_constant_pairs, edit_auto_pads, edit_pads, edit_heads,
)  # fmt: skip
_NAMED = 3  # nodes in a note
_FLOATS = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)  # fmt: skip


@dataclass(frozen=True)
class Canonical:
    """A canonical model, and what is known of its file: see `onnxbrecq.graph.model.Model`."""

    proto: onnx.ModelProto
    notes: tuple[str, ...]
    stored_type: int
    norms: Mapping[str, Norm]


def normalise(copy: onnx.ModelProto, constants: Constants, where: str) -> Canonical:
    """The canonical form of `copy` (see `onnxbrecq.graph.model`).

    `copy` is edited on the way, and of no use afterwards; `constants`, the large ones of either,
    are edited along.

    Raises:
        ModelError: the model cannot be upgraded, or shape inference contradicts it.
    """
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    edit_weights_as_inputs(copy.graph)
    notes = edit_opset(copy, where)
    edit_sharing(copy.graph, constants)
    infer_shapes(copy, where)
    if _rewritten(copy, constants, [edit_fused]):  # before half precision, which it would keep
        edit_dead_code(copy.graph, constants)
        infer_shapes(copy, where)
    half, stored_type = half_type(copy), int(onnx.TensorProto.FLOAT)
    obstacle = None if half is None else widening_obstacle(copy.graph)
    if obstacle is not None:
        notes = (*notes, f"half precision is kept, and not quantized: {obstacle}")
    elif half is not None:
        stored_type = half
        edit_precision(copy.graph, constants)
        infer_shapes(copy, where)
    known: dict[str, Norm] = {}
    while True:
        changed = edit_constants(copy, constants)
        changed |= edit_identities(copy.graph)
        known.update(norms(copy.graph, constants))
        changed |= _rewritten(copy, constants, _REWRITES)
        changed |= edit_dead_code(copy.graph, constants)
        infer_shapes(copy, where)
        if not changed:
            break
    edit_missing_biases(copy.graph, constants)
    edit_conditions(copy.graph)
    edit_order(copy.graph)
    infer_shapes(copy, where)
    edit_names(copy.graph)
    edit_imports(copy)
    made = {name for node in copy.graph.node for name in node.output}
    known = {name: norm for name, norm in known.items() if name in made}
    return Canonical(copy, (*notes, *_foreign_notes(copy.graph)), stored_type, known)


def _foreign_notes(graph: onnx.GraphProto) -> tuple[str, ...]:
    """What to know of nodes of other domains, whose constants nobody here understands."""
    parts = list(graphs(graph))
    known = {tensor.name: tensor for part in parts for tensor in part.initializer}
    sizes: dict[str, int] = {}
    for node in (node for part in parts for node in part.node):
        weights = [known[n] for n in dict.fromkeys(node.input) if n in known]
        weights = [t for t in weights if t.data_type in _FLOATS and len(t.dims) > 1]
        if node.domain not in STANDARD_DOMAINS and weights:
            told = f"{node.name!r} ({ascii(f'{node.domain}.{node.op_type}')[1:-1]})"
            sizes[told] = sum(math.prod(tensor.dims) for tensor in weights)
    if not sizes:
        return ()
    named = ", ".join([*list(sizes)[:_NAMED], *(["..."] if len(sizes) > _NAMED else [])])
    return (
        f"{sum(sizes.values()):,} values are not quantized, and what is done with them is in no "
        f"figure: nodes of other domains hold them: {named}",
    )


def _rewritten(
    proto: onnx.ModelProto, constants: Constants, passes: Iterable[Callable[[Editor], None]]
) -> bool:
    """Edits `proto` by the passes that replace nodes; says whether any did."""
    editor = Editor(proto, constants)
    for edit in passes:
        edit(editor)
    return editor.write()


def edit_weights_as_inputs(graph: onnx.GraphProto) -> None:
    """Initializers leave the list of inputs (where IR versions below 4 put them)."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def edit_sharing(graph: onnx.GraphProto, constants: Constants) -> bool:
    """A float constant that several nodes read becomes one copy for each."""
    known = with_values(graph, constants)
    floats = {name: tensor for name, tensor in known.items() if tensor.data_type in _FLOATS}
    seen: set[str] = set()
    changed = False
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in floats and name in seen:
                copy = onnx.TensorProto()
                copy.CopyFrom(floats[name])
                copy.name = f"{name}~{node.output[0]}~{i}"
                add(graph, constants, copy)
                node.input[i] = copy.name
                changed = True
            seen.add(name)
    return changed


def edit_identities(graph: onnx.GraphProto) -> bool:
    """Identity and inference-mode Dropout give way to the tensor they copy."""
    outputs = {value.name for value in graph.output}
    inputs = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    inner = _subgraph_reads(graph)
    for node in graph.node:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in ("Identity", "Dropout"):
            continue
        if node.op_type == "Dropout" and (len(node.input) > 2 and node.input[2]):
            continue  # training mode is decided by a tensor
        if any(node.output[1:]) or node.output[0] in inner:
            continue
        source, copy = node.input[0], node.output[0]
        if copy in outputs:
            if source in inputs or source in outputs or source in inner:
                continue  # the graph's signature needs the copy
            _rename(graph, source, copy)
        else:
            _rename(graph, copy, source)
        graph.node.remove(node)
        return True
    return False


def _subgraph_reads(graph: onnx.GraphProto) -> set[str]:
    """Tensors that subgraphs capture, and that keep their names therefore."""
    return {name for node in graph.node for name in node_inputs(node) if name not in node.input}


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def edit_missing_biases(graph: onnx.GraphProto, constants: Constants) -> None:
    """A Conv or Gemm with a constant float32 weight and no bias gets one of zeros.

    Quantization then has a place for what rounding the weights shifts on average.
    """
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or any(node.input[2:]):
            continue
        weight = known.get(node.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        axis = 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0
        zeros = np.zeros(weight.dims[axis], np.float32)
        bias = numpy_helper.from_array(zeros, f"{node.output[0]}~bias")
        add(graph, constants, bias)
        inputs = [*node.input[:2], bias.name]
        del node.input[:]
        node.input.extend(inputs)


def edit_dead_code(graph: onnx.GraphProto, constants: Constants) -> bool:
    """Nodes and constants that no output depends on go."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node_inputs(node))
    unread = [tensor for tensor in graph.initializer if tensor.name not in needed]
    changed = len(kept) != len(graph.node) or bool(unread)
    if changed:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(kept)
        remove(graph, constants, [tensor.name for tensor in unread])
    return changed


def edit_imports(proto: onnx.ModelProto) -> None:
    """Operator sets that no node is of any more are not imported; the default one is."""
    used = {node.domain for graph in graphs(proto.graph) for node in graph.node}
    kept = [o for o in proto.opset_import if o.domain in used or o.domain in STANDARD_DOMAINS]
    kept = [onnx.helper.make_opsetid(o.domain, o.version) for o in kept]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def edit_names(graph: onnx.GraphProto) -> None:
    """Every node gets a name of its own; names that are unique already stay."""
    taken: set[str] = set()
    for node in graph.node:
        stem = name = node.name or node.op_type
        count = 0
        while name in taken or not name:
            count += 1
            name = f"{stem}_{count}"
        node.name = name
        taken.add(name)
