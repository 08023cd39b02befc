"""Partition into blocks by topology: every node in exactly one block, blocks in order.

A *cut* lies between two consecutive nodes (in topological order) where a single activation
crosses: every path from input to output passes through that tensor, so residual branches always
fall inside one segment. Segments are then joined:

- what holds no layer (activation functions, pooling, reshapes) belongs to the segment before it;
- segments without branches are grouped up to `CHAIN_LAYERS` layers and `CHAIN_WEIGHTS` weights, and
  a group closes behind a linear bottleneck: a layer that no activation function follows;
- a segment with branches is a block of its own; one with more than `REGION_LAYERS` layers is
  split where the fewest tensors cross, into units with several inputs and outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnxbrecq.graph.model import Model, node_inputs
from onnxbrecq.graph.points import LAYERS

CHAIN_LAYERS = 3
CHAIN_WEIGHTS = 1 << 24  # elements; a larger layer is a block of its own
REGION_LAYERS = 12

_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Gelu", "Tanh",
     "Elu", "Selu", "Softmax", "Mish", "Softplus", "Erf"}
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A stretch of the network that is reconstructed as one.

    Attributes:
        name: the name of its first layer, or of its first node.
        nodes: node names in topological order.
        inputs: activations that it reads from outside.
        outputs: activations that others (or the caller) read.
        weights: names of the layers' weight initializers.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


Segment = list[onnx.NodeProto]


def partition(model: Model) -> tuple[Block, ...]:
    """The blocks of `model`, in execution order."""
    crossing = _crossing(model)
    segments: list[Segment] = [[]]
    for node, tensors in zip(model.nodes, crossing, strict=True):
        segments[-1].append(node)
        if len(tensors) <= 1 and all(_per_sample(model, name) for name in tensors):
            segments.append([])
    groups = _group([segment for segment in segments if segment], model)
    groups = [part for group in groups for part in _split(group, model)]
    return tuple(_block(group, model) for group in groups)


def _crossing(model: Model) -> list[set[str]]:
    """For each node, the activations that are alive behind it."""
    last = {name: i for i, node in enumerate(model.nodes) for name in node_inputs(node)}
    last.update({name: len(model.nodes) for name in model.outputs})
    alive = {name for name in model.inputs if name in last}
    crossing = []
    for i, node in enumerate(model.nodes):
        alive |= {name for name in node.output if name in last}
        alive = {name for name in alive if last[name] > i}
        crossing.append(set(alive))
    return crossing


def _per_sample(model: Model, tensor: str) -> bool:
    """Whether axis 0 counts samples, so that the tensor can be cached batch by batch."""
    shape = model.shapes.get(tensor)
    if not shape or model.dtypes.get(tensor) != onnx.TensorProto.FLOAT:
        return False
    return shape[0] is None if model.batched else shape[0] == 1


def _is_layer(node: onnx.NodeProto, model: Model) -> bool:
    return node.op_type in LAYERS and node.input[1] in model.initializers


def _layer_count(segment: Segment, model: Model) -> int:
    return sum(_is_layer(node, model) for node in segment)


def _group(segments: list[Segment], model: Model) -> list[Segment]:
    groups: list[Segment] = []
    closed = True
    for segment in segments:
        count = _layer_count(segment, model)
        chain = len(segment) == 1
        if groups and count == 0:
            groups[-1] += segment
        elif closed or not chain or _too_long(groups[-1] + segment, model):
            groups.append(list(segment))
            closed = not chain
        else:
            groups[-1] += segment
        if count and chain:
            closed = closed or not _activated(segment[-1], model)
    if len(groups) > 1 and _layer_count(groups[0], model) == 0:
        groups[:2] = [groups[0] + groups[1]]
    return groups


def _too_long(chain: Segment, model: Model) -> bool:
    weights = (model.initializers[n.input[1]].size for n in chain if _is_layer(n, model))
    return _layer_count(chain, model) > CHAIN_LAYERS or sum(weights) > CHAIN_WEIGHTS


def _activated(node: onnx.NodeProto, model: Model) -> bool:
    readers = [r for name in node.output for r in model.consumers.get(name, ())]
    return any(reader.op_type in _ACTIVATIONS for reader in readers)


def _split(group: Segment, model: Model) -> list[Segment]:
    """`group` in parts of at most `REGION_LAYERS` layers, cut where few tensors cross.

    Of all places to cut, the one where the normalised cut is smallest (Shi and Malik, 2000):
    crossing tensors times (1 / layers before + 1 / layers behind).
    """
    total = _layer_count(group, model)
    if total <= REGION_LAYERS:
        return [group]
    names = {name for node in group for name in node.output}
    behind = zip(model.nodes, _crossing(model), strict=True)
    crossing = {node.name: tensors for node, tensors in behind}
    best: tuple[float, int] | None = None
    seen = 0
    for i, node in enumerate(group[:-1]):
        seen += _is_layer(node, model)
        alive = crossing[node.name]
        if 0 < seen < total and all(_per_sample(model, n) for n in alive & names):
            cost = (len(alive) * (1 / seen + 1 / (total - seen)), i)
            best = cost if best is None or cost < best else best
    if best is None:
        return [group]
    first, second = group[: best[1] + 1], group[best[1] + 1 :]
    return [*_split(first, model), *_split(second, model)]


def _block(group: Sequence[onnx.NodeProto], model: Model) -> Block:
    inside = {name for node in group for name in node.output if name}
    reads = dict.fromkeys(name for node in group for name in node_inputs(node))
    names = {node.name for node in group}
    outputs = tuple(
        name
        for node in group
        for name in node.output
        if name in model.outputs
        or any(reader.name not in names for reader in model.consumers.get(name, ()))
    )
    inputs = tuple(n for n in reads if n not in inside and n not in model.initializers)
    layers = [node for node in group if _is_layer(node, model)]
    return Block(
        name=(layers or list(group))[0].name,
        nodes=tuple(node.name for node in group),
        inputs=inputs,
        outputs=outputs,
        weights=tuple(node.input[1] for node in layers),
    )
