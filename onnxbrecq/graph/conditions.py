"""What a network computes under, rather than on: masks, positions, angles, sizes.

A *condition* is a tensor that no layer stands before, and that joins the network only behind one:
on each path from it to a layer, the first node that reads what a layer made comes earlier. A mask
that is added to the scores of every attention is one; an embedding that the first layer reads is
not. A dimension says nothing of the values, so that a Shape has no layer before it.

All layers may share a condition, and while a shared tensor is alive nothing separates the blocks.
So each node outside that reads conditions gets them computed just in front of it, by nodes of its
own: the same nodes on the same inputs, which onnxruntime merges again
(1.32: test_a_mask_that_all_layers_read_does_not_join_the_blocks).
"""

from collections.abc import Container, Iterable, Mapping, Sequence

import onnx

from onnxbrecq.graph.model import STANDARD_DOMAINS, node_inputs

_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
)
_DIMENSIONS = frozenset({"Shape", "Size"})
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
                     "Bernoulli", "Multinomial", "Dropout"})  # fmt: skip
_LONGEST = 128  # nodes that are repeated for one reader; what takes more stays shared


def conditions(
    nodes: Sequence[onnx.NodeProto], inputs: Iterable[str], constants: Container[str]
) -> set[str]:
    """The conditions among the graph's inputs and what its nodes make."""
    free = set(inputs)
    layers = [_weighted(node, constants) for node in nodes]
    for node, layer in zip(nodes, layers, strict=True):
        if not layer and _repeatable(node) and _reads(node, free, constants):
            free.update(node.output)
    leading: set[str] = set()  # to a layer
    for node, layer in zip(reversed(nodes), reversed(layers), strict=True):
        leading.update(set(node_inputs(node)) - set(node.input))  # subgraphs know them by name
        if node.op_type in _DIMENSIONS or not _reads(node, free, constants):
            continue
        if layer or not leading.isdisjoint(node.output):
            leading.update(node.input)
    return free - leading - {""} if any(layers) else set()


def edit_conditions(graph: onnx.GraphProto) -> None:
    """Edits the graph, whose shapes are inferred: conditions are made in front of each reader."""
    nodes = list(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    given = conditions(nodes, [value.name for value in graph.input], constants)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name in given}
    placed = _Placed(graph, makers)
    for node in nodes:
        if given.isdisjoint(node.output):
            placed.add(node)
    for value in graph.output:
        placed.keep(value.name)
    del graph.node[:]
    graph.node.extend(placed.nodes)
    graph.value_info.extend(placed.values)


class _Placed:
    """The nodes in their new order, each behind the conditions that it reads.

    The first reader of a condition has the nodes that were there; every other gets copies, whose
    outputs' names end in the reader's.
    """

    def __init__(self, graph: onnx.GraphProto, makers: dict[str, int]) -> None:
        """Of the nodes of `graph`; `makers` says which make conditions."""
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[onnx.ValueInfoProto] = []
        self._source = list(graph.node)
        self._types = {value.name: value for value in (*graph.value_info, *graph.output)}
        self._makers = makers
        self._used: set[int] = set()

    def add(self, node: onnx.NodeProto) -> None:
        """Takes in a node that makes no condition, behind those that it reads."""
        behind = self._behind(node)
        if len(behind) > _LONGEST:
            behind = [i for i in behind if i not in self._used]
        reader, names = next(filter(None, node.output), ""), dict[str, str]()
        for i in behind:
            if i in self._used:
                made = [name for name in self._source[i].output if name]
                names |= {name: f"{name}~{reader}" for name in made}
                self.values += [
                    _renamed(self._types[n], names[n]) for n in made if n in self._types
                ]
            self._place(self._source[i], names)
        self._used.update(behind)
        self._place(node, names)

    def keep(self, name: str) -> None:
        """Takes in the node that makes the condition `name`, which the caller wants as it is."""
        i = self._makers.get(name)
        if i is not None and i not in self._used:
            self._used.add(i)
            self.add(self._source[i])

    def _behind(self, node: onnx.NodeProto) -> list[int]:
        """The nodes that make the conditions which `node` reads, in order."""
        found: set[int] = set()
        waiting = [node]
        while waiting:
            makers = {self._makers.get(name) for name in waiting.pop().input} - found - {None}
            found.update(i for i in makers if i is not None)
            waiting += [self._source[i] for i in makers if i is not None]
        return sorted(found)

    def _place(self, node: onnx.NodeProto, names: Mapping[str, str]) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        self.nodes.append(copy)


def _repeatable(node: onnx.NodeProto) -> bool:
    """Whether the node makes the same of the same, and captures nothing."""
    return (
        node.domain in STANDARD_DOMAINS
        and node.op_type not in _RANDOM
        and not any(item.HasField("g") or item.graphs for item in node.attribute)
    )


def _reads(node: onnx.NodeProto, free: Container[str], constants: Container[str]) -> bool:
    """Whether no layer stands before what the node reads."""
    return node.op_type in _DIMENSIONS or all(
        name in free or name in constants for name in node_inputs(node)
    )


def _weighted(node: onnx.NodeProto, constants: Container[str]) -> bool:
    """Whether the node multiplies data by a constant weight."""
    return (
        node.op_type in _WEIGHTED
        and node.domain in STANDARD_DOMAINS
        and len(node.input) > 1
        and node.input[1] in constants
    )


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy
