"""Shape arithmetic stands where it is needed, and looks at what is at hand there.

Exporters read the batch size from the graph's input, first of all, and use it at the very end. As
long as such a number is alive, no single tensor separates what is before from what is behind, and
the network does not fall into blocks. So

- each reader of a dimension reads it by a Shape of its own;
- what computes whole numbers from dimensions moves to just before its first reader, and so does
  what depends on no input at all, but is too large to be folded;
- a Shape of which one dimension is read (the batch, the number of tokens) looks at the last tensor
  made before that which has the same one at the same place, counted from either end.

That two dimensions of inputs with one name are one number is what ONNX says, and is believed.
"""

import math
from collections.abc import Container, Mapping, Sequence

import onnx
from onnx import TensorProto, numpy_helper

from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute, node_inputs

_UNPACKING = frozenset({"Shape", "Gather", "Squeeze", "Unsqueeze", "Cast", "Identity", "Range"})
_ARITHMETIC = _UNPACKING | {
    "Size", "Slice", "Concat", "Add", "Sub", "Mul", "Div", "Mod", "Reshape", "Min", "Max",
    "ConstantOfShape", "Equal", "Where", "Neg",
}  # fmt: skip
_FAR = (1 << 31) - 1  # where exporters let a range end that has no end
_WHOLE = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)

Nodes = Sequence[onnx.NodeProto]
Types = dict[str, onnx.TypeProto.Tensor]
Readers = dict[str, list[int]]
Constants = Mapping[str, TensorProto]


def edit_order(graph: onnx.GraphProto) -> None:
    """Edits the graph, whose shapes are inferred: moves shape arithmetic (see above)."""
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type for value in values}
    outputs = {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = _unshared(graph.node, types, outputs)
    readers = _readers(nodes)
    depends = {value.name for value in graph.input}
    for node in nodes:
        if not depends.isdisjoint(node_inputs(node)):
            depends.update(node.output)
    places, moved = list(range(len(nodes))), set()
    for i in reversed(range(len(nodes))):
        behind = [places[j] for name in nodes[i].output for j in readers.get(name, ())]
        free = depends.isdisjoint(nodes[i].output) or _arithmetic(nodes[i], types)
        if behind and free and outputs.isdisjoint(nodes[i].output):
            places[i] = min(behind)
            moved.add(i)
    for i in sorted(moved):
        axis = _axis_read(nodes, i, readers, constants) if nodes[i].op_type == "Shape" else None
        if axis is not None:
            before = [nodes[j] for j in range(places[i]) if j not in moved]
            source = nodes[i].input[0]
            nodes[i].input[0] = _at_hand(before, source, axis, types, outputs)
    order = sorted(range(len(nodes)), key=lambda i: (places[i], i not in moved, i))
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)


def _unshared(source: Nodes, types: Types, outputs: set[str]) -> list[onnx.NodeProto]:
    """Copies of the nodes; a Shape, what unpacks it, and counts to it, is repeated for each reader.

    The types of what is repeated join `types`.
    """
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in source]
    unpacked: set[str] = set()
    for node in nodes:
        numbers = node.input if node.op_type == "Range" else node.input[:1]
        read = sum(name in unpacked for name in numbers)  # of more the copies would multiply
        chained = node.op_type == "Shape" or read == 1
        if node.op_type in _UNPACKING and node.domain in STANDARD_DOMAINS and chained:
            unpacked.update(node.output)
    reads: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in nodes:
        for i, name in enumerate(node.input):
            reads.setdefault(name, []).append((node, i))
        captured = set(node_inputs(node)) - set(node.input)
        unpacked -= captured  # subgraphs know them by their names
    made: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        name = "".join(node.output[:1])
        more = reads.get(name, [])[1:] if name in unpacked - outputs else []
        for count, (reader, i) in enumerate(more, 1):
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.output[0] = reader.input[i] = f"{name}~{count}"
            if name in types:
                types[copy.output[0]] = types[name]
            for j, read in enumerate(copy.input):
                reads[read].append((copy, j))
            made.append(copy)
        made.append(node)
    return made[::-1]


def _readers(nodes: Nodes) -> Readers:
    readers: Readers = {}
    for i, node in enumerate(nodes):
        for name in node_inputs(node):
            readers.setdefault(name, []).append(i)
    return readers


def _arithmetic(node: onnx.NodeProto, types: Types) -> bool:
    """Whether the node computes whole numbers, as shape arithmetic does."""
    return (
        node.domain in STANDARD_DOMAINS
        and node.op_type in _ARITHMETIC
        and all(name in types and types[name].elem_type in _WHOLE for name in node.output)
    )


def _axis_read(nodes: Nodes, i: int, readers: Readers, constants: Constants) -> int | None:
    """The one dimension that is read of a Shape's tensor, as it is counted; None: others."""
    start, end = attribute(nodes[i], "start", 0), attribute(nodes[i], "end")
    if nodes[i].attribute:
        return _single(start, _FAR if end is None else end)
    found: set[int | None] = set()
    for reader in (nodes[j] for j in readers[nodes[i].output[0]]):
        numbers = [_integer(constants.get(name)) for name in reader.input[1:]]
        whole = reader.domain in STANDARD_DOMAINS and reader.input[:1] == nodes[i].output[:1]
        if whole and reader.op_type == "Gather":
            found.add(numbers[0])
        elif whole and reader.op_type == "Slice":
            step = numbers[3] if len(numbers) > 3 else 1
            found.add(_single(*numbers[:2]) if step == 1 else None)
        else:
            found.add(None)
    return found.pop() if len(found) == 1 else None


def _integer(tensor: TensorProto | None) -> int | None:
    """The value of a constant of one element."""
    if tensor is None or math.prod(tensor.dims) != 1:
        return None
    return int(numpy_helper.to_array(tensor).reshape(()))


def _single(start: object, end: object) -> int | None:
    """The place that a range of one element has; None: it has more, or is not known."""
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    return start if end == start + 1 != 0 or (start == -1 and end >= _FAR) else None


def _at_hand(before: Nodes, source: str, axis: int, types: Types, outputs: Container[str]) -> str:
    """The last tensor that `before` makes with that dimension of `source`.

    None of the `outputs`: what they are called may be the file's word alone.
    """
    wanted = "" if source in outputs else _symbol(source, axis, types)
    for node in reversed(before if wanted else ()):
        for name in node.output:
            same = name not in outputs and _symbol(name, axis, types) == wanted
            if same and not _arithmetic(node, types):
                return str(name)
    return source


def _symbol(name: str, axis: int, types: Types) -> str:
    """The symbol of a dimension, counted from the first, or, if negative, from behind."""
    dims = types[name].shape.dim if name in types else []
    return str(dims[axis].dim_param) if -len(dims) <= axis < len(dims) else ""
