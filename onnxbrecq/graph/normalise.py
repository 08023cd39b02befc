"""Normalisation: many ways to write a network become one.

Each pass keeps what the model computes; those that do arithmetic on weights (batch normalisation)
do it in float64. A function named `edit_...` edits the graph that it is given and says whether
anything changed; `normalise` works on a copy.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper, version_converter

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.folding import edit_constants
from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute, node_inputs
from onnxbrecq.graph.precision import edit_precision, half_type
from onnxbrecq.graph.skeleton import edit_from_skeleton, infer_shapes, skeleton

OPSET = 21  # packed 4-bit tensors exist from here on
_IR_VERSION = 10
_CONVERTIBLE = 13  # the oldest opset whose DequantizeLinear takes an axis
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def normalise(copy: onnx.ModelProto, where: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The canonical form of `copy` (see `onnxbrecq.graph.model`), and notes for the user.

    `copy` is edited on the way; what it holds afterwards is of no use.

    Raises:
        ModelError: the model cannot be upgraded, or shape inference contradicts it.
    """
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    edit_weights_as_inputs(copy.graph)
    notes = edit_opset(copy, where)
    edit_sharing(copy.graph)
    infer_shapes(copy, where)
    if half_type(copy):
        edit_precision(copy.graph)
        infer_shapes(copy, where)
    while True:
        changed = edit_constants(copy)
        changed |= edit_identities(copy.graph)
        changed |= edit_batch_normalization(copy.graph)
        changed |= edit_dead_code(copy.graph)
        infer_shapes(copy, where)
        if not changed:
            break
    edit_missing_biases(copy.graph)
    edit_names(copy.graph)
    return copy, notes


def edit_weights_as_inputs(graph: onnx.GraphProto) -> None:
    """Initializers leave the list of inputs (where IR versions below 4 put them)."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def edit_opset(proto: onnx.ModelProto, where: str) -> tuple[str, ...]:
    """Edits `proto`: to opset 21 if below, or kept where the converter does not know a node.

    Returns notes for the user.

    Raises:
        ModelError: it cannot be upgraded, and is too old to hold quantized weights as it is.
    """
    opset = max(o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    if opset >= OPSET:
        return ()
    try:
        upgraded = version_converter.convert_version(skeleton(proto), OPSET)
    except (RuntimeError, version_converter.ConvertError) as error:
        if opset < _CONVERTIBLE:
            raise ModelError(
                f"{where}: opset {opset} cannot be converted to {OPSET} ({error}); export the "
                f"model with opset {_CONVERTIBLE} or above"
            ) from error
        return (f"opset {opset} kept (not convertible): weights are stored in 8 bits",)
    _restore(upgraded, proto)
    edit_from_skeleton(proto, upgraded)
    return ()


def _restore(upgraded: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Edits `upgraded`: node names, which the converter drops where it can, come back."""
    names = {output: node.name for node in source.graph.node for output in node.output if output}
    for node in upgraded.graph.node:
        node.name = next((names[o] for o in node.output if o in names), node.name)


def edit_sharing(graph: onnx.GraphProto) -> bool:
    """A float constant that several nodes read becomes one copy for each."""
    floats = {t.name: t for t in graph.initializer if t.data_type in _FLOATS}
    seen: set[str] = set()
    changed = False
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in floats and name in seen:
                copy = onnx.TensorProto()
                copy.CopyFrom(floats[name])
                copy.name = f"{name}~{node.output[0]}~{i}"
                graph.initializer.append(copy)
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


def edit_batch_normalization(graph: onnx.GraphProto) -> bool:
    """A BatchNormalization goes into the Conv, ConvTranspose or Gemm that feeds only it.

    With a = gamma / sqrt(var + epsilon), per output channel:

        BN(W x + b) = (a W) x + (a (b - mean) + beta)
    """
    readers: dict[str, int] = {value.name: 1 for value in graph.output}
    for node in graph.node:
        for name in node_inputs(node):
            readers[name] = readers.get(name, 0) + 1
    producer = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    changed = False
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = producer.get(norm.input[0])
        if layer is None or readers[norm.input[0]] != 1 or not _foldable(layer, norm, constants):
            continue
        _fold(graph, layer, norm, constants)
        changed = True
    return changed


def _foldable(
    layer: onnx.NodeProto, norm: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> bool:
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    if attribute(norm, "training_mode", 0):
        return False
    if layer.op_type == "Gemm" and (
        attribute(layer, "alpha", 1.0) != 1.0 or attribute(layer, "beta", 1.0) != 1.0
    ):
        return False
    needed = [name for name in (*layer.input[1:], *norm.input[1:]) if name]
    return all(name in constants for name in needed) and not any(norm.output[1:])


def _fold(
    graph: onnx.GraphProto,
    layer: onnx.NodeProto,
    norm: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
) -> None:
    gamma, beta, mean, variance = (
        numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:5]
    )
    epsilon = attribute(norm, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    factor = gamma / np.sqrt(variance + epsilon)
    weight = numpy_helper.to_array(constants[layer.input[1]])
    folded = weight.astype(np.float64) * _per_channel(factor, layer, weight)
    has_bias = len(layer.input) > 2 and layer.input[2] != ""
    bias = numpy_helper.to_array(constants[layer.input[2]]) if has_bias else np.zeros(1)
    shifted = factor * (bias.astype(np.float64) - mean) + beta
    for value, wish in (
        (folded, f"{layer.output[0]}~weight"),
        (shifted, f"{layer.output[0]}~bias"),
    ):
        tensor = numpy_helper.from_array(value.astype(weight.dtype), wish)
        graph.initializer.append(tensor)
        constants[wish] = tensor
    inputs = [layer.input[0], f"{layer.output[0]}~weight", f"{layer.output[0]}~bias"]
    del layer.input[:]
    layer.input.extend(inputs)
    layer.output[0] = norm.output[0]
    graph.node.remove(norm)


def _per_channel(
    factor: NDArray[np.float64], layer: onnx.NodeProto, weight: NDArray[np.generic]
) -> NDArray[np.float64]:
    """`factor` [C_out] shaped to multiply the weight's output channels."""
    if layer.op_type == "Gemm":
        return factor[:, None] if attribute(layer, "transB", 0) else factor[None, :]
    if layer.op_type == "Conv":
        return factor.reshape(-1, *[1] * (weight.ndim - 1))
    groups = attribute(layer, "group", 1)  # ConvTranspose: [C_in, C_out / groups, ...]
    assert isinstance(groups, int)
    rows = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def edit_missing_biases(graph: onnx.GraphProto) -> None:
    """A Conv or Gemm with a constant float32 weight and no bias gets one of zeros.

    Quantization then has a place for what rounding the weights shifts on average.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or any(node.input[2:]):
            continue
        weight = constants.get(node.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        axis = 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0
        zeros = np.zeros(weight.dims[axis], np.float32)
        bias = numpy_helper.from_array(zeros, f"{node.output[0]}~bias")
        graph.initializer.append(bias)
        inputs = [*node.input[:2], bias.name]
        del node.input[:]
        node.input.extend(inputs)


def edit_dead_code(graph: onnx.GraphProto) -> bool:
    """Nodes and constants that no output depends on go."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node_inputs(node))
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    changed = len(kept) != len(graph.node) or len(constants) != len(graph.initializer)
    if changed:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        constants = [onnx.TensorProto.FromString(t.SerializeToString()) for t in constants]
        del graph.node[:]
        del graph.initializer[:]
        graph.node.extend(kept)
        graph.initializer.extend(constants)
    return changed


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
