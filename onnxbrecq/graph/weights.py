"""Constants that can be quantized: the weights of layers, and the tables of embeddings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxbrecq.graph.decoding import decoding, output_axis
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute
from onnxbrecq.graph.roles import LAYERS, dequantized, is_product

_FLOAT = onnx.TensorProto.FLOAT
_WIDTH = 8  # values of a row, from which on a scale of its own is worth its bytes
_GLANCE = 64  # values by which most weights are told apart


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


def find_layers(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
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


def find_tables(model: Model, layers: Mapping[str, Layer]) -> dict[str, Table]:
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


def shared_weights(model: Model, layers: Iterable[Layer]) -> dict[str, str]:
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
        return "already quantized" if dequantized(model, node) else "both inputs are activations"
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
