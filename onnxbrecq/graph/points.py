"""Quantization points: which tensors carry a quantizer, so that kernels fuse to integers.

Five kinds of operators decide:

- *layers* (Conv, Gemm, MatMul with a constant): the weight and the data input are quantized. A
  Conv needs a quantized output as well, or ONNX Runtime runs it in float; Gemm and MatMul do not.
  Of a ConvTranspose, of which it has no integer kernel, the weight alone is.
- *products* (MatMul of two activations, in attention): both are quantized; the output need not be.
- *integer operators* (Add, Mul, pooling averages, Concat, ...): run on integers when all inputs
  and the output are quantized; taken only where they stand between quantized tensors.
- *carriers* (MaxPool, Reshape, Transpose, ...): move values; output and input share one quantizer.
- *activation functions* Relu and Clip(0, c): belong to the quantizer behind them, whose
  saturation does their work; the tensor in front of one carries no quantizer of its own.

The rows of a *table* that a Gather reads (an embedding) have 8 bits and a scale each: a row is
looked up, and its error not averaged over. Where a layer multiplies by the same table, both are one
decision.

One tensor has one quantizer, for all its readers, and one weight has one decision, for all layers
that share it. The bits asked for hold for what layers read; every other quantized tensor has 8.

What detections are decoded from stays as fine as it can be: a Concat that ends the graph stays
float, so that boxes keep a scale and scores keep theirs; so do products that decode boxes
(`onnxbrecq.graph.decoding`).
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from onnxbrecq.graph.model import STANDARD_DOMAINS, Model
from onnxbrecq.graph.roles import (
    INTEGER_OPERATORS,
    ROWS,
    activation_bounds,
    behind,
    carried,
    data_inputs,
    is_product,
)
from onnxbrecq.graph.weights import Layer, Table, find_layers, find_tables, shared_weights

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class QuantPoint:
    """A tensor that can be quantized.

    Attributes:
        tensor: its ONNX name.
        kind: weight or activation.
        axis: the output-channel axis of a weight; None per tensor.
        consumers: names of the nodes that read it.
        group: name of the tensor whose quantizer it shares (itself if none); of a weight, the
            first that is equal to it.
        layers: names of the layers that read the group: they set its bits.
        nonnegative: a Relu or Clip in front: the zero point must be 0.
        ceiling: upper bound set by a Clip in front, or None.
    """

    tensor: str
    kind: Literal["weight", "activation"]
    axis: int | None
    consumers: tuple[str, ...]
    group: str
    layers: tuple[str, ...]
    nonnegative: bool = False
    ceiling: float | None = None


@dataclass(frozen=True)
class FloatNode:
    """A node that stays float, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Points:
    """All points of a model by tensor name, its layers by node name, and what stays float.

    Tables are those of Gather nodes, by node name.
    """

    points: Mapping[str, QuantPoint]
    layers: Mapping[str, Layer]
    float_nodes: tuple[FloatNode, ...]
    tables: Mapping[str, Table]

    def tied(self, tables: Container[str]) -> frozenset[str]:
        """The weights of layers that are one of the `tables` as well: they are not learned.

        What is looked up goes into the first block, and the layer is in the last.
        """
        pairs = ((t.tied, t.weight) for t in self.tables.values())
        return frozenset(tied.weight for tied, table in pairs if tied and table in tables)

    def places(self, nodes: Iterable[str], shape: Sequence[int]) -> int:
        """At how many places of a sample's tensor [N, ...] the weights of the layers are used.

        Those of a feature map, or tokens: channels come first where there is a convolution, else
        last.
        """
        last = all(self.layers[node].op in ROWS for node in nodes if node in self.layers)
        return math.prod(shape[1:-1] if last else shape[2:])


def find_points(model: Model) -> Points:
    """The quantization points of `model`, as ONNX Runtime's CPU provider fuses them."""
    layers, refused = find_layers(model)
    quantized = _quantized_activations(model, layers)
    groups = _groups(model, quantized)
    readers: dict[str, list[str]] = {}
    for layer in layers.values():
        if layer.integer:
            readers.setdefault(groups[layer.data], []).append(layer.node)
    points = {}
    for tensor in quantized:
        nonnegative, ceiling = activation_bounds(model, groups[tensor])
        points[tensor] = QuantPoint(
            tensor,
            "activation",
            None,
            tuple(node.name for node in model.consumers.get(tensor, ())),
            groups[tensor],
            tuple(readers.get(groups[tensor], ())),
            nonnegative,
            ceiling,
        )
    shared = shared_weights(model, layers.values())
    alike: dict[str, list[str]] = {}
    for layer in layers.values():
        alike.setdefault(shared[layer.weight], []).append(layer.node)
    for layer in layers.values():
        head = shared[layer.weight]
        points[layer.weight] = QuantPoint(
            layer.weight, "weight", layer.axis, (layer.node,), head, tuple(alike[head])
        )
    tables = find_tables(model, layers)
    told = dict.fromkeys(tables, "it looks up floats: its table alone is quantized")
    told |= {
        name: f"onnxruntime has no integer {layer.op} kernel: its weight alone is quantized"
        for name, layer in layers.items() if not layer.integer
    }  # fmt: skip
    floats = _float_nodes(model, layers, quantized, {**refused, **told})
    return Points(points, layers, floats, tables)


def _quantized_activations(model: Model, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The activations that carry a quantizer, in topological order."""
    marked = {layer.data for layer in layers.values() if layer.integer}
    outputs = {
        behind(model, model_node.output[0])
        for model_node in model.nodes
        if model_node.name in layers and model_node.op_type == "Conv"
    }
    marked |= outputs
    marked |= {name for node in model.nodes if is_product(model, node) for name in node.input}
    while True:
        grown = set(marked)
        for node in reversed(model.nodes):
            if carried(model, node) and any(name in grown for name in node.output):
                grown.add(node.input[0])
            elif _integer_operator(model, node, grown):
                grown.update(data_inputs(model, node))
                grown.add(behind(model, node.output[0]))
        if grown == marked:
            break
        marked = grown
    order = (*model.inputs, *(name for node in model.nodes for name in node.output))
    return tuple(name for name in order if name in marked and name not in model.initializers)


def _integer_operator(model: Model, node: onnx.NodeProto, marked: set[str]) -> bool:
    """Whether the node stands between quantized tensors and can run on integers."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in INTEGER_OPERATORS:
        return False
    data = data_inputs(model, node)
    if len(data) != len([name for name in node.input if name]) or not all(
        model.dtypes.get(name) == _FLOAT for name in (*data, *node.output)
    ):
        return False
    return behind(model, node.output[0]) in marked or (
        node.output[0] in model.outputs
        and node.op_type != "Concat"  # its inputs have scales of their own, and nobody needs one
        and all(name in marked for name in data)
    )


def _groups(model: Model, quantized: tuple[str, ...]) -> dict[str, str]:
    """Tensor → the tensor at the head of its chain of carriers."""
    groups: dict[str, str] = {}
    for tensor in quantized:
        node = model.producer.get(tensor)
        head = node.input[0] if node is not None and carried(model, node) else None
        groups[tensor] = groups.get(head, tensor) if head else tensor
    return groups


def _float_nodes(
    model: Model,
    layers: Mapping[str, Layer],
    quantized: tuple[str, ...],
    refused: Mapping[str, str],
) -> tuple[FloatNode, ...]:
    marked, found = set(quantized), []
    for node in model.nodes:
        if node.name in layers and node.name not in refused:
            continue
        if activation_bounds(model, node.output[0])[0]:
            continue
        if is_product(model, node) and set(node.input) <= marked:
            continue
        reason = refused.get(node.name) or _reason(model, node, marked)
        if reason:
            found.append(FloatNode(node.name, node.op_type, reason))
    return tuple(found)


def _reason(model: Model, node: onnx.NodeProto, marked: set[str]) -> str | None:
    """Why a node stays float that is no layer; None: it does not, or there is nothing to say."""
    if node.domain not in STANDARD_DOMAINS:
        return f"operator of the custom domain {node.domain!r}"
    # Shapes are nothing to quantize, and no runtime executes an Identity.
    shapes = not any(model.dtypes.get(name) == _FLOAT for name in node.output)
    if shapes or node.op_type == "Identity":
        return None
    if carried(model, node):
        unread = marked.isdisjoint(node.output)
        return "no quantized operator reads its output" if unread else None
    if node.op_type not in INTEGER_OPERATORS:
        return "no integer kernel used for this operator"
    if _integer_operator(model, node, marked):
        return None
    if any(name in model.initializers for name in node.input):
        return "one operand is a constant"
    return "no quantized operator reads its output"
