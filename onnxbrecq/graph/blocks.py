"""Partition into blocks by topology: every node in exactly one block, blocks in order.

A *cut* lies between two consecutive nodes (in topological order) where a single activation
crosses: every path from input to output passes through that tensor, so residual branches always
fall inside one segment. What a network computes under (masks, positions) does not cross: every
block that needs it has it from the graph's inputs (`onnxbrecq.graph.conditions`). Segments are then
joined:

- what holds no layer (activation functions, pooling, reshapes) belongs to the segment before it;
- segments without branches are grouped up to `CHAIN_LAYERS` layers, and a group closes behind a
  linear bottleneck: a layer that no activation function follows;
- where something selects among the outputs of the last layers (NonMaxSuppression, TopK, ArgMax),
  all that is behind these layers is a block of its own: they are judged by what they make, not by
  which of it comes first;
- a segment with branches is a block of its own; one with more than `REGION_LAYERS` layers is
  split where the fewest tensors cross, into units with several inputs and outputs.

No block has more than `BLOCK_WEIGHTS` weights, unless a single layer has, or nothing separates its
layers: a tensor between blocks is cached sample by sample, so only float tensors that hold one
sample after another can be cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxbrecq.graph.batch import BATCH
from onnxbrecq.graph.conditions import conditions
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, node_inputs
from onnxbrecq.graph.roles import LAYERS

CHAIN_LAYERS = 3
REGION_LAYERS = 12
BLOCK_WEIGHTS = 1 << 24  # elements; a larger layer is a block of its own

_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Gelu", "Tanh",
     "Elu", "Selu", "Softmax", "Mish", "Softplus", "Erf"}
)  # fmt: skip
# What comes out depends on an order of values, in jumps.
_SELECTIONS = frozenset(
    {"ArgMax", "ArgMin", "Hardmax", "MaxRoiPool", "NonMaxSuppression", "NonZero", "RoiAlign",
     "TopK", "Unique"}
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
    for node in model.nodes:
        tensors = crossing[node.name]
        segments[-1].append(node)
        if len(tensors) <= 1 and all(_per_sample(model, name) for name in tensors):
            segments.append([])
    groups = _group([segment for segment in segments if segment], model)
    groups = [part for group in groups for part in _before_selection(group, model, crossing)]
    groups = [part for group in groups for part in _split(group, model, crossing)]
    return tuple(_block(group, model) for group in groups)


def _crossing(model: Model) -> dict[str, set[str]]:
    """For each node, the activations behind it that a later node reads.

    Every block can have the graph's inputs: they cross only as far as the data that layers read.
    """
    given = conditions(model.nodes, model.inputs, model.initializers)
    last = {}
    for i, node in enumerate(model.nodes):
        conditional = not given.isdisjoint(node.output)
        reads = (n for n in node_inputs(node) if not (conditional and n in model.inputs))
        last.update(dict.fromkeys(reads, i))
    alive = {name for name in model.inputs if name in last and name not in given}
    crossing = {}
    for i, node in enumerate(model.nodes):
        alive |= {name for name in node.output if name in last}
        alive = {name for name in alive if last[name] > i}
        crossing[node.name] = set(alive)
    return crossing


def _per_sample(model: Model, tensor: str) -> bool:
    """Whether axis 0 counts samples, so that the tensor can be cached batch by batch."""
    value = model.value_infos.get(tensor)
    if value is None or model.dtypes.get(tensor) != onnx.TensorProto.FLOAT:
        return False
    dims = value.type.tensor_type.shape.dim
    if not dims:
        return False
    return bool(dims[0].dim_param == BATCH if model.batched else dims[0].dim_value == model.batch)


def _is_layer(node: onnx.NodeProto, model: Model) -> bool:
    known = node.domain in STANDARD_DOMAINS and node.op_type in LAYERS
    return known and node.input[1] in model.initializers


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
    return _layer_count(chain, model) > CHAIN_LAYERS or _weight_count(chain, model) > BLOCK_WEIGHTS


def _weight_count(segment: Segment, model: Model) -> int:
    return sum(model.elements(n.input[1]) for n in segment if _is_layer(n, model))


def _activated(node: onnx.NodeProto, model: Model) -> bool:
    readers = [r for name in node.output for r in model.consumers.get(name, ())]
    return any(reader.op_type in _ACTIVATIONS for reader in readers)


def _before_selection(
    group: Segment, model: Model, crossing: Mapping[str, set[str]]
) -> list[Segment]:
    """`group` up to its last layer, and the rest, if that selects and can be cut off."""
    made = {name for node in group for name in node.output}
    last = max((i for i, node in enumerate(group) if _is_layer(node, model)), default=len(group))
    behind = [i for i, node in enumerate(group) if i > last and node.op_type in _SELECTIONS]
    for i in range(last + 1, behind[0] + 1) if behind else ():
        if all(_per_sample(model, name) for name in crossing[group[i - 1].name] & made):
            return [group[:i], group[i:]]
    return [group]


def _split(group: Segment, model: Model, crossing: Mapping[str, set[str]]) -> list[Segment]:
    """`group` in parts of bounded size, cut where few tensors cross.

    Of all places to cut, the one where the normalised cut is smallest (Shi and Malik, 2000):
    crossing tensors times (1 / size before + 1 / size behind).
    """
    sizes = [_size([node], model) for node in group]
    layers = sum(size > 0 for size in sizes)
    if layers <= 1 or _size(group, model) <= 1:
        return [group]
    names = {name for node in group for name in node.output}
    best: tuple[float, int] | None = None
    seen, before, total = 0, 0.0, sum(sizes)
    for i, node in enumerate(group[:-1]):
        seen, before = seen + (sizes[i] > 0), before + sizes[i]
        alive = crossing[node.name]
        if 0 < seen < layers and all(_per_sample(model, n) for n in alive & names):
            cost = (len(alive) * (1 / before + 1 / (total - before)), i)
            best = cost if best is None or cost < best else best
    if best is None:
        return [group]
    first, second = group[: best[1] + 1], group[best[1] + 1 :]
    return [*_split(first, model, crossing), *_split(second, model, crossing)]


def _size(segment: Segment, model: Model) -> float:
    """Layers and weights as a share of what a block may have, the greater of the two."""
    layers = _layer_count(segment, model) / REGION_LAYERS
    return max(layers, _weight_count(segment, model) / BLOCK_WEIGHTS)


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
