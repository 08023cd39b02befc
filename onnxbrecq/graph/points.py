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

import numpy as np
import onnx

from onnxbrecq.graph.decoding import decoding, output_axis
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute

ROWS = frozenset({"Gemm", "MatMul"})  # layers whose channels are the last axis
LAYERS = frozenset({"Conv", "ConvTranspose"}) | ROWS
INTEGER_OPERATORS = frozenset(
    {"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Sigmoid", "LeakyRelu"}
)
CARRIERS = frozenset(
    {"DepthToSpace", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
     "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip
_FLOAT = onnx.TensorProto.FLOAT
_WIDTH = 8  # values of a row, from which on a scale of its own is worth its bytes
_GLANCE = 64  # values by which most weights are told apart


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
class Layer:
    """A layer whose weight can be quantized.

    Attributes:
        node: its name.
        op: operator type.
        data: the activation it reads.
        weight: initializer name.
        bias: initializer name, or None.
        axis: the weight's axis of scales: that of output channels; of a ConvTranspose in groups,
            unless each channel is one, that of a group's channels.
        edge: first or last of the network: no layer before it, or none after it.
    """

    node: str
    op: str
    data: str
    weight: str
    bias: str | None
    axis: int
    edge: bool

    @property
    def integer(self) -> bool:
        """Whether there are integer kernels for it; else its weight alone is quantized."""
        return self.op != "ConvTranspose"


@dataclass(frozen=True)
class Table:
    """A constant that a Gather looks rows up in: an embedding.

    Attributes:
        node: the Gather's name.
        weight: initializer name, [rows, width].
        tied: the layer whose weight is the same table, or its transpose; None: there is none.
    """

    node: str
    weight: str
    tied: Layer | None


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
    layers, refused = _layers(model)
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
    shared = _shared_weights(model, layers.values())
    alike: dict[str, list[str]] = {}
    for layer in layers.values():
        alike.setdefault(shared[layer.weight], []).append(layer.node)
    for layer in layers.values():
        head = shared[layer.weight]
        points[layer.weight] = QuantPoint(
            layer.weight, "weight", layer.axis, (layer.node,), head, tuple(alike[head])
        )
    tables = _tables(model, layers)
    told = dict.fromkeys(tables, "it looks up floats: its table alone is quantized")
    told |= {
        name: f"onnxruntime has no integer {layer.op} kernel: its weight alone is quantized"
        for name, layer in layers.items() if not layer.integer
    }  # fmt: skip
    floats = _float_nodes(model, layers, quantized, {**refused, **told})
    return Points(points, layers, floats, tables)


def activation_bounds(model: Model, tensor: str) -> tuple[bool, float | None]:
    """Whether a Relu or Clip(0, c) produces `tensor`, and c (None for a Relu)."""
    node = model.producer.get(tensor)
    if node is None or node.domain not in STANDARD_DOMAINS:
        return False, None
    if node.op_type == "Relu":
        return True, None
    if node.op_type == "Clip" and len(node.input) == 3 and node.input[1] and node.input[2]:
        low, high = (model.initializers.get(name) for name in node.input[1:3])
        if low is not None and high is not None and low.size == high.size == 1:
            bounds = float(low.reshape(())), float(high.reshape(()))
            if bounds[0] == 0 < bounds[1]:
                return True, bounds[1] if math.isfinite(bounds[1]) else None
    return False, None


def carried(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node only moves values of its first input (or adds zeros, always a level)."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in CARRIERS:
        return False
    if node.input[0] in model.initializers:  # a table that is looked up in
        return False
    if node.op_type == "Resize":
        # Outside the image, where only this mode looks, stands a value of its own.
        mode = attribute(node, "coordinate_transformation_mode", b"half_pixel")
        return attribute(node, "mode", b"nearest") == b"nearest" and mode != b"tf_crop_and_resize"
    if node.op_type != "Pad":
        return True
    filling = model.initializers.get(node.input[2]) if len(node.input) > 2 else None
    known = len(node.input) < 3 or not node.input[2] or filling is not None
    return (
        attribute(node, "mode", b"constant") == b"constant"
        and known
        and (filling is None or not filling.any())
        and not any(node.input[3:])
    )


def is_product(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node multiplies two activations, which integer kernels can."""
    return (
        node.op_type == "MatMul"
        and node.domain in STANDARD_DOMAINS
        and not any(name in model.initializers for name in node.input)
        and all(model.dtypes.get(name) == _FLOAT for name in node.input)
        and not _dequantized(model, node)
    )


def _layers(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers by node name, and the reason of each one refused."""
    found: dict[str, tuple[str, str, str | None, int]] = {}
    refused: dict[str, str] = {}
    for node in model.nodes:
        if node.domain in STANDARD_DOMAINS and node.op_type in LAYERS:
            if is_product(model, node):
                continue
            reason = _refusal(model, node)
            if reason:
                refused[node.name] = reason
                continue
            bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
            found[node.name] = (node.input[0], node.input[1], bias, _axis(model, node))
    edges = _edges(model, set(found))
    nodes = {node.name: node for node in model.nodes}
    return {
        name: Layer(name, nodes[name].op_type, *parts, edge=name in edges)
        for name, parts in found.items()
    }, refused


def _tables(model: Model, layers: Mapping[str, Layer]) -> dict[str, Table]:
    """The tables of the Gather nodes, and the layers that multiply by the same values."""
    found = {}
    for node in model.nodes:
        table = model.initializers.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or node.domain not in STANDARD_DOMAINS or table.ndim != 2:
            continue
        readers = model.consumers.get(node.input[0], ())
        if any(n.op_type != "Gather" and n.name not in layers for n in readers):
            continue  # its floats have to be there in any case
        whole = attribute(node, "axis", 0) == 0 and table.shape[1] >= _WIDTH
        if whole and model.dtypes.get(node.input[0]) == _FLOAT:
            same = (one for one in layers.values() if one.integer and _same(model, one, table))
            found[node.name] = Table(node.name, node.input[0], next(same, None))
    return found


def _same(model: Model, layer: Layer, table: np.ndarray) -> bool:
    """Whether the layer makes one output of each row of the table."""
    if layer.op == "Conv":
        return False
    weight = model.initializers[layer.weight]
    return np.array_equal(weight if layer.axis == 0 else weight.T, table)


def _axis(model: Model, node: onnx.NodeProto) -> int:
    """The axis of a layer's weight along which it has scales."""
    if node.op_type == "ConvTranspose":  # [C_in, C_out / groups, ...]
        shape, groups = model.initializers[node.input[1]].shape, attribute(node, "group", 1)
        return 0 if shape[1] == 1 and shape[0] == groups != 1 else 1
    return output_axis(node)


def _refusal(model: Model, node: onnx.NodeProto) -> str | None:
    """Why a layer cannot be quantized, or None."""
    weight = model.initializers.get(node.input[1])
    if weight is None:
        return "already quantized" if _dequantized(model, node) else "both inputs are activations"
    if node.input[0] in model.initializers:
        return "both inputs are constants"
    types = [model.dtypes.get(name, 0) for name in node.input[:2]]
    if not all(types):
        return f"the type of {node.input[0]!r} is not known; declare it in the model's value_info"
    if types != [_FLOAT, _FLOAT]:
        return "not float32"
    decoded = decoding(
        node, weight.shape, maker=model.producer.get, constant=model.initializers.get
    )
    if decoded is not None:
        return decoded
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its constant has {weight.ndim} dimensions; 2 are needed"
    if len(node.input) > 2 and node.input[2] and node.input[2] not in model.initializers:
        return "its bias is not a constant"
    if node.op_type == "Gemm":
        bias = model.initializers.get(node.input[2]) if len(node.input) > 2 else None
        channels = weight.shape[0 if attribute(node, "transB", 0) else 1]
        if attribute(node, "transA", 0):
            return "transA is set"
        if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
            return "alpha or beta is not 1"
        if bias is not None and bias.shape != (channels,):
            return f"its bias has shape {bias.shape}, not ({channels},)"
    return None


def _shared_weights(model: Model, layers: Iterable[Layer]) -> dict[str, str]:
    """Weight → the first weight that is equal to it, and read by the same kind of layer."""
    heads: dict[tuple[object, ...], list[str]] = {}
    found = {}
    for layer in layers:
        weight = model.initializers[layer.weight]
        some = weight.reshape(-1)[:: max(1, weight.size // _GLANCE)]
        alike = heads.setdefault((layer.op, layer.axis, weight.shape, some.tobytes()), [])
        same = (n for n in alike if np.array_equal(model.initializers[n], weight))
        found[layer.weight] = next(same, layer.weight)
        alike.extend({found[layer.weight]} - set(alike))
    return found


def _dequantized(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node's operands come in integers, as the file has them."""
    makers = [model.producer.get(name) for name in node.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _edges(model: Model, layers: set[str]) -> set[str]:
    """The layers without a layer before them, and those without one after them."""
    before: dict[str, bool] = {}  # tensor → a layer stands before it
    first = set()
    for node in model.nodes:
        reached = any(before.get(name, False) for name in node.input)
        if node.name in layers and not reached:
            first.add(node.name)
        for name in node.output:
            before[name] = reached or node.name in layers
    after: dict[str, bool] = {}  # tensor → a layer stands behind it
    last = set()
    for node in reversed(model.nodes):
        reached = any(after.get(name, False) for name in node.output)
        if node.name in layers and not reached:
            last.add(node.name)
        for name in node.input:
            after[name] = after.get(name, False) or reached or node.name in layers
    return first | last


def _quantized_activations(model: Model, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The activations that carry a quantizer, in topological order."""
    marked = {layer.data for layer in layers.values() if layer.integer}
    outputs = {
        _behind(model, model_node.output[0])
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
                grown.update(_data_inputs(model, node))
                grown.add(_behind(model, node.output[0]))
        if grown == marked:
            break
        marked = grown
    order = (*model.inputs, *(name for node in model.nodes for name in node.output))
    return tuple(name for name in order if name in marked and name not in model.initializers)


def _integer_operator(model: Model, node: onnx.NodeProto, marked: set[str]) -> bool:
    """Whether the node stands between quantized tensors and can run on integers."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in INTEGER_OPERATORS:
        return False
    data = _data_inputs(model, node)
    if len(data) != len([name for name in node.input if name]) or not all(
        model.dtypes.get(name) == _FLOAT for name in (*data, *node.output)
    ):
        return False
    return _behind(model, node.output[0]) in marked or (
        node.output[0] in model.outputs
        and node.op_type != "Concat"  # its inputs have scales of their own, and nobody needs one
        and all(name in marked for name in data)
    )


def _data_inputs(model: Model, node: onnx.NodeProto) -> list[str]:
    """The inputs that are activations."""
    return [name for name in node.input if name and name not in model.initializers]


def _behind(model: Model, tensor: str) -> str:
    """`tensor`, or the output of the Relu or Clip(0, c) that alone reads it."""
    readers = model.consumers.get(tensor, ())
    if len(readers) == 1 and tensor not in model.outputs:
        follower = readers[0]
        if activation_bounds(model, follower.output[0])[0] and follower.input[0] == tensor:
            return str(follower.output[0])
    return tensor


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


def constant_array(model: Model, name: str) -> np.ndarray:
    """The initializer `name` as float32."""
    return np.asarray(model.initializers[name], dtype=np.float32)
