"""The deployed graph: a float model and a plan in, a QDQ model out.

`emit` is a pure function and the only place where a quantized graph is made: the final file,
the propagation from block to block, and every check use it.

Placement. Behind the producer of a quantized tensor `t` stand QuantizeLinear, below 8 bits a
Clip on the UINT8 tensor, and DequantizeLinear, whose output takes over the name `t`: readers need
no change. A quantized graph input keeps its name, and its readers read the DequantizeLinear.
A Relu or Clip(0, c) in front of a quantizer whose saturation does the same is left out:

    clip(round(clip(x, 0, c) / s), 0, q) = clip(round(x / s), 0, q)   for zero point 0, q * s <= c

(A signed activation, INT8 with zero point 0, saturates at -128 and stands for neither.)

What only moves values is written on the integers where the target needs that (`Target.moved`).

A weight's levels are stored packed and decoded by nodes that the runtime folds when it loads the
model (`onnxbrecq.emit.storage`); a bias becomes int32 at scale s_x * s_w.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

from onnxbrecq.emit import saturation
from onnxbrecq.emit.lower import ir_version, lowered
from onnxbrecq.emit.storage import (
    opset_needed,
    stays_packed,
    write_packed,
    write_shared,
    write_weight,
)
from onnxbrecq.emit.targets import Target, refusal
from onnxbrecq.emit.writer import GraphWriter
from onnxbrecq.errors import EmissionError
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, node_inputs
from onnxbrecq.graph.points import Points, find_points
from onnxbrecq.graph.roles import activation_bounds, carried
from onnxbrecq.graph.skeleton import edit_from_skeleton, skeleton
from onnxbrecq.graph.upgrade import REFUSALS, first_line
from onnxbrecq.graph.weights import Layer, Table
from onnxbrecq.plan import QuantPlan, TensorQuant

# Grid, and whether there are more than 8 bits → stem of the zero point's name, type.
_ACTIVATIONS: Mapping[tuple[str, bool], tuple[str, type[np.integer[Any]]]] = {
    ("affine", False): ("u", np.uint8),
    ("affine", True): ("v", np.uint16),
    ("signed", False): ("s", np.int8),
}
_CAST_PAYS = 64  # elements; below, a Cast node takes more bytes than it saves
_INT32_LIMIT = float(2**31 - 1)


def emit(model: Model, plan: QuantPlan, target: Target) -> onnx.ModelProto:
    """The quantized model. With an empty plan it computes exactly what `model` does.

    Raises:
        EmissionError: the target does not take a decision, or a bias does not fit int32 at its
            scale; names the tensor or node.
    """
    decisions = plan.tensors
    points = find_points(model)
    layers = {n: p for n, p in points.layers.items() if p.weight in decisions}
    tables = {n: t for n, t in points.tables.items() if t.weight in decisions}
    opset = opset_needed(plan, target, model.opset)
    operators = {layer.weight: layer.op for layer in layers.values()}
    operators.update({table.weight: "Gather" for table in tables.values()})
    _check(plan, target, operators, opset)
    proto = _at_opset(model, opset)
    graph = GraphWriter(_names(proto))
    written = _Written(graph, model, plan, target, points)
    outer = written.inputs()
    folded = {name: node.input[0] for name, node in _absorbed(model, decisions)}
    for node in proto.graph.node:
        name = node.output[0]
        if name in folded:
            written.quantizer(name, outer.get(node.input[0], node.input[0]))
            continue
        if node.op_type in target.moved and written.moved(node):
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [outer.get(read, read) for read in node.input]
        if node.name in layers:
            written.constants(copy, layers[node.name])
        elif node.name in tables:
            written.table(copy, tables[node.name])
        copy.output[:] = [graph.name("f") if made in decisions else made for made in node.output]
        graph.nodes.append(copy)
        for raw, made in zip(copy.output, node.output, strict=True):
            if made in decisions:
                written.quantizer(made, raw)
    made = _assembled(model, plan, proto, graph)
    return lowered(made) if target.lowered else made


def _check(plan: QuantPlan, target: Target, operators: Mapping[str, str], opset: int) -> None:
    """Refuses what the target does not take."""
    if opset > target.opset:
        raise EmissionError(
            f"the model has opset {opset}; target {target.name} reads up to {target.opset}: export "
            "it with an older one"
        )
    for name, quant in plan.tensors.items():
        known = quant.levels is None or name in operators
        reason = refusal(target, quant, operators.get(name)) if known else None
        if reason:
            raise EmissionError(
                f"tensor {name!r}: {reason}; quantize the model with --target {target.name}"
            )
    integer = any(quant.levels is None for quant in plan.tensors.values())
    if operators and not integer and None not in target.activations:
        raise EmissionError(
            f"the plan leaves all activations float, which target {target.name} does not take: "
            f"{target.computes}; quantize the model with --target {target.name}"
        )


def _names(proto: onnx.ModelProto) -> set[str]:
    graph = proto.graph
    found = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    return found | {name for node in graph.node for name in (*node.input, *node.output)}


def _at_opset(model: Model, opset: int) -> onnx.ModelProto:
    if opset <= model.opset:
        return model.proto
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    try:
        converted = version_converter.convert_version(skeleton(proto), opset)
    except REFUSALS as error:
        raise EmissionError(
            f"opset {model.opset} cannot be converted to {opset}, which has the types that "
            f"these bits need ({first_line(error)}); choose 8 bits, or export the "
            f"model with opset {opset}"
        ) from error
    edit_from_skeleton(proto, converted)
    names = {node.output[0]: node.name for node in model.nodes}
    for node in proto.graph.node:  # the converter drops node names
        node.name = names.get(node.output[0], "")
    return proto


def _absorbed(
    model: Model, decisions: Mapping[str, TensorQuant]
) -> Iterator[tuple[str, onnx.NodeProto]]:
    """The tensors whose Relu or Clip the quantizer behind it stands for, and that node."""
    for name, quant in decisions.items():
        nonnegative, ceiling = activation_bounds(model, name)
        if nonnegative and name not in model.inputs and _cuts_at_zero(quant):
            top = np.float32(quant.scale) * np.float32(quant.qtype.levels - 1)
            if ceiling is None or top <= np.float32(ceiling):
                yield name, model.producer[name]


def _cuts_at_zero(quant: TensorQuant) -> bool:
    return quant.qtype.grid == "affine" and int(quant.zero_point) == 0


@dataclass
class _Written:
    """The quantizers, weights and biases of a graph under construction."""

    graph: GraphWriter
    model: Model
    plan: QuantPlan
    target: Target
    points: Points
    levels: dict[str, str] = field(default_factory=dict)  # tensor → its integers
    unsigned: dict[str, bool] = field(default_factory=dict)  # group of weights → stored as UINT8

    @cached_property
    def nodes(self) -> dict[str, onnx.NodeProto]:
        """By their names."""
        return {node.name: node for node in self.model.nodes}

    @cached_property
    def scales(self) -> Counter[bytes]:
        """How many weights have the same scale, as those do that layers share.

        onnxruntime 1.32 makes a MatMulNBits of none of them (tests/emit/test_placement.py).
        """
        decided = self.plan.tensors.values()
        return Counter(quant.scale.tobytes() for quant in decided if quant.levels is not None)

    def inputs(self) -> dict[str, str]:
        """Quantizes graph inputs; returns the names under which their readers find them."""
        outer = {}
        for name in self.model.inputs:
            if name in self.plan.tensors:
                outer[name] = self.graph.name("d")
                self._pair(name, name, outer[name], clip=True)
        return outer

    def quantizer(self, name: str, raw: str) -> None:
        """Writes the quantizer of `name` behind its float value `raw`."""
        node, decisions = self.model.producer[name], self.plan.tensors
        same_grid = carried(self.model, node) and decisions.get(node.input[0]) == decisions[name]
        self._pair(name, raw, name, clip=not same_grid)

    def moved(self, node: onnx.NodeProto) -> bool:
        """Writes a node that only moves values on the integers, if both its ends have the same."""
        source, name = node.input[0], node.output[0]
        quant = self.plan.tensors.get(name)
        shared = quant is not None and quant == self.plan.tensors.get(source)
        if quant is None or not shared or not carried(self.model, node) or quant.qtype.bits > 8:
            return False
        scale, zero = self._grid(quant)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = self.levels[source]
        if node.op_type == "Pad":  # its third input, the filling, is zero
            del copy.input[2:]
            copy.input.append(zero)
        copy.output[0] = self.levels[name] = self.graph.name("q")
        self.graph.nodes.append(copy)
        self.graph.node("DequantizeLinear", [copy.output[0], scale, zero], name)
        return True

    def constants(self, node: onnx.NodeProto, layer: Layer) -> None:
        """Writes the weight and the bias of a layer, which `node` is to read."""
        weight = self.plan.tensors[layer.weight]
        data = self.plan.tensors.get(layer.data) if layer.integer else None
        turned = layer.op == "Gemm" and layer.axis == 0
        integer = data is not None
        packed = stays_packed(weight, self.target, layer.op, integer_data=integer)
        if packed and self.scales[weight.scale.tobytes()] == 1:
            node.input[1] = write_packed(self.graph, weight, self.target, turned=turned)
            kept = [entry for entry in node.attribute if entry.name != "transB"]
            del node.attribute[:]
            node.attribute.extend(kept)
        else:
            node.input[1] = write_weight(
                self.graph,
                weight,
                self.target,
                op=layer.op,
                integer_data=integer,
                unsigned=self._unsigned(layer),
            )
        if layer.bias is not None:
            bias = self.plan.biases.get(layer.bias, self.model.initializers[layer.bias])
            node.input[2] = _write_bias(self.graph, layer, bias, data, weight)

    def table(self, node: onnx.NodeProto, table: Table) -> None:
        """Writes the table that a Gather is to read; of one that is tied, the layer's bytes."""
        tied, quant = table.tied, self.plan.tensors[table.weight]
        if tied is None or self.plan.tensors.get(tied.weight) is None:
            node.input[0] = write_weight(
                self.graph, quant, self.target, op="Gather", integer_data=False, unsigned=False
            )
            return
        weight = self.plan.tensors[tied.weight]
        made = write_shared(self.graph, weight, self.target, unsigned=self._unsigned(tied))
        if weight.axis == 1:
            made = self.graph.node("Transpose", [made], self.graph.name("w"))
        node.input[0] = made

    def _unsigned(self, layer: Layer) -> bool:
        """Whether the layer's weight is stored as UINT8, so that none of its layers saturates."""
        weight = self.plan.tensors[layer.weight]
        if not self.target.unsigned or weight.qtype.bits != 8:
            return False
        head = self.points.points[layer.weight].group
        if head not in self.unsigned:
            reads = (
                (other, self.plan.tensors.get(other.data))
                for other in self.points.layers.values()
                if self.points.points[other.weight].group == head and other.integer
            )
            self.unsigned[head] = not all(
                data is None
                or saturation.fits(self.nodes[other.node], weight, data.qtype.levels - 1)
                for other, data in reads
            )
        return self.unsigned[head]

    def _pair(self, name: str, source: str, output: str, *, clip: bool) -> None:
        """QuantizeLinear, Clip on UINT8 where levels must be cut off, DequantizeLinear."""
        graph, quant = self.graph, self.plan.tensors[name]
        scale, zero = self._grid(quant)
        levels = graph.node("QuantizeLinear", [source, scale, zero], graph.name("q"))
        if clip and quant.qtype.levels < 256:
            highest = quant.qtype.levels - 1
            top = graph.shared(f"u{highest}", np.asarray(highest, np.uint8))
            levels = graph.node("Clip", [levels, "", top], graph.name("c"))
        self.levels[name] = levels
        graph.node("DequantizeLinear", [levels, scale, zero], output)

    def _grid(self, quant: TensorQuant) -> tuple[str, str]:
        """The constants of an activation's scale and zero point."""
        scale = self.graph.constant("s", np.asarray(quant.scale, np.float32))
        stem, kind = _ACTIVATIONS[quant.qtype.grid, quant.qtype.bits > 8]
        point = int(quant.zero_point)
        return scale, self.graph.shared(f"{stem}{point}", np.asarray(point, kind))


def _write_bias(
    graph: GraphWriter,
    layer: Layer,
    bias: NDArray[np.generic],
    data: TensorQuant | None,
    weight: TensorQuant,
) -> str:
    """Writes the bias, int32 at scale s_x * s_w, or float where the data is; returns its name."""
    if data is None:
        return graph.constant("b", bias.astype(np.float32))
    scale = (data.scale * weight.scale).astype(np.float32)
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    if np.abs(codes).max(initial=0) > _INT32_LIMIT:
        raise EmissionError(
            f"node {layer.node}: its bias reaches {np.abs(bias).max():.3g}, too large for int32 "
            f"at scale {scale.min():.3g}; exclude the layer from quantization"
        )
    inputs = [graph.constant("b", codes.astype(np.int32)), graph.constant("s", scale)]
    axis = {"axis": 0} if scale.ndim else {}
    return graph.node("DequantizeLinear", inputs, graph.name("b"), **axis)


def _planned(tensor: onnx.TensorProto, plan: QuantPlan) -> onnx.TensorProto:
    """The constant with the value that the plan has for it."""
    value = plan.biases.get(tensor.name)
    return tensor if value is None else numpy_helper.from_array(value, tensor.name)


def _assembled(
    model: Model, plan: QuantPlan, proto: onnx.ModelProto, graph: GraphWriter
) -> onnx.ModelProto:
    """The model of what was written, with the source's signature; unused constants left out."""
    reads = {name for node in graph.nodes for name in node_inputs(node)}
    reads |= set(model.outputs)
    # What is moved on integers leaves the values in front of it unread.
    nodes = [
        n for n in graph.nodes if n.op_type != "DequantizeLinear" or not reads.isdisjoint(n.output)
    ]
    kept = [_planned(t, plan) for t in proto.graph.initializer if t.name in reads]
    if model.stored_type != onnx.TensorProto.FLOAT:
        kept, casts = _narrowed(kept, graph, model.stored_type)
        nodes[:0] = casts
    inputs, outputs = model.signature
    result = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            proto.graph.name or "graph",
            inputs,
            outputs,
            [*kept, *(t for name, t in graph.initializers.items() if name in reads)],
            value_info=_summed(model, nodes),
        ),
        opset_imports=proto.opset_import,
        producer_name="onnxbrecq",
    )
    opset = max(o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS)
    result.ir_version = max(proto.ir_version, ir_version(opset))
    return result


def _summed(model: Model, nodes: Sequence[onnx.NodeProto]) -> list[onnx.ValueInfoProto]:
    """The types of what is added up in front of each LayerNormalization.

    onnxruntime makes a SkipLayerNormalization of both only where it knows their shapes, which it
    does not infer through its own operators (1.32: test_a_sum_and_its_norm_are_one_node).
    """
    makers = {name: node for node in nodes for name in node.output}
    found: dict[str, None] = {}
    for node in nodes:
        add = makers.get(node.input[0]) if node.op_type == "LayerNormalization" else None
        if add is not None and add.op_type == "Add":
            found.update(dict.fromkeys((*add.input, *add.output)))
    return [
        model.value_infos[name]
        for name in found
        if name in model.value_infos and name in makers and name not in model.outputs
    ]


def _narrowed(
    constants: Sequence[onnx.TensorProto], graph: GraphWriter, stored_type: int
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Float32 constants stored in the half-precision type that the source stores them in.

    They are cast back when the model is loaded, where that folds; small ones, and those that the
    type cannot hold, stay.
    """
    kept, casts = [], []
    dtype = onnx.helper.tensor_dtype_to_np_dtype(stored_type)
    for tensor in constants:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > _CAST_PAYS:
            with np.errstate(over="ignore"):
                half = numpy_helper.to_array(tensor).astype(dtype)
            if np.isfinite(half.astype(np.float32)).all():
                name = graph.name("h")
                kept.append(numpy_helper.from_array(half, name))
                casts.append(
                    onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT)
                )
                continue
        kept.append(tensor)
    return kept, casts
