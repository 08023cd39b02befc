"""A graph under edit: who makes and who reads each tensor, kept true while nodes are replaced."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.graph.arrays import Arrays
from onnxbrecq.graph.constants import Constants, add, remove, with_values
from onnxbrecq.graph.model import STANDARD_DOMAINS, node_inputs

_KEEP: Mapping[str, object] = MappingProxyType({})


class Editor:
    """The nodes of a graph, to be replaced group by group; `write` puts them back.

    Nodes are never edited in place: what a pass holds in its hands stays as it was.

    Attributes:
        opset: version of the default domain.
        changed: something was replaced.
    """

    def __init__(self, proto: onnx.ModelProto, constants: Constants) -> None:
        """Indexes the main graph of `proto`, whose shapes are inferred.

        Its large `constants` are edited at once: a weight goes when its last reader does.
        """
        self._graph = graph = proto.graph
        self.opset = max(o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS)
        self.changed = False
        self._slots = [[node] for node in graph.node]
        self._slot_of = {id(slot[0]): i for i, slot in enumerate(self._slots)}
        self._outputs = {value.name for value in graph.output}
        self._constants = constants
        self._tensors = with_values(graph, constants)
        self._arrays = Arrays(self._tensors)
        self._values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        self._made_by: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            self._enter(node)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes in topological order, as they are now."""
        return [node for slot in self._slots for node in slot]

    def has(self, node: onnx.NodeProto) -> bool:
        """Whether the node is still in the graph."""
        return id(node) in self._slot_of

    def producer(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """The node that makes the tensor, if it is one of these standard operators."""
        node = self._made_by.get(name)
        return node if node is not None and is_a(node, *operators) else None

    def reader(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """The node that alone reads the tensor, once, if it is one of these operators."""
        readers = self._readers.get(name, [])
        if len(readers) != 1 or name in self._outputs or name not in readers[0].input:
            return None  # a subgraph that captures the tensor needs its name
        return readers[0] if is_a(readers[0], *operators) else None

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read the tensor, once for each time."""
        return list(self._readers.get(name, []))

    def is_output(self, name: str) -> bool:
        """Whether the tensor is an output of the graph."""
        return name in self._outputs

    def inner(self, name: str, readers: Sequence[onnx.NodeProto]) -> bool:
        """Whether nobody but `readers` reads the tensor."""
        known = {id(node) for node in readers}
        return name not in self._outputs and all(
            id(node) in known for node in self._readers.get(name, [])
        )

    def constant(self, name: str) -> NDArray[np.generic] | None:
        """The value of a constant."""
        return self._arrays.get(name)

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is a constant, without reading it."""
        return name in self._tensors

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element."""
        tensor = self._tensors.get(name)
        if tensor is None or any(dim != 1 for dim in tensor.dims):
            return None
        return float(numpy_helper.to_array(tensor).reshape(()))

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Dimensions of a tensor, None where symbolic; None if its rank is unknown."""
        dims = self.dims(name)
        return None if dims is None else tuple(d if isinstance(d, int) else None for d in dims)

    def dims(self, name: str) -> tuple[int | str, ...] | None:
        """As `shape`, but symbols by name; it is empty where nothing is known."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        dims = value.type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims)

    def dtype(self, name: str) -> np.dtype[np.generic] | None:
        """The type of a tensor's elements; None if it is not known."""
        value, constant = self._values.get(name), self._tensors.get(name)
        kind = 0 if value is None else value.type.tensor_type.elem_type
        kind = kind if constant is None else constant.data_type
        return onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else None

    def free(self, wish: str) -> str:
        """A name that no tensor has: `wish`, or one like it."""
        name, count = wish, 0
        while name in self._tensors or name in self._made_by or name in self._values:
            count += 1
            name = f"{wish}_{count}"
        return name

    def add_constant(self, wish: str, array: NDArray[np.generic]) -> str:
        """Adds a constant; returns its name, `wish` if that is free."""
        name = self.free(wish)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        self._tensors[name] = tensor
        return name

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Puts `new` in the place of the last node of `old`, all of which go."""
        place, index = max(self._place(node) for node in old)
        gone = {id(node) for node in old}
        before = [node for node in self._slots[place][:index] if id(node) not in gone]
        behind = self._slots[place][index + 1 :]
        for node in old:
            slot = self._slot_of.pop(id(node))
            self._slots[slot] = [kept for kept in self._slots[slot] if kept is not node]
            for name in node_inputs(node):
                self._readers[name] = [r for r in self._readers[name] if r is not node]
            for name in node.output:
                self._made_by.pop(name, None)
        self._slots[place] = [*before, *new, *behind]
        for node in new:
            self._slot_of[id(node)] = place
            self._enter(node)
        for name in {name for node in old for name in node_inputs(node)} - self._outputs:
            if name in self._tensors and not self._readers[name]:
                del self._tensors[name]
                self._arrays.forget(name)
                self._constants.pop(name, None)
        self.changed = True

    def write(self) -> bool:
        """Writes the nodes and constants back into the graph; says whether anything changed."""
        if self.changed:
            nodes = [_copied(node) for node in self.nodes]
            known = {tensor.name for tensor in self._graph.initializer}
            del self._graph.node[:]
            self._graph.node.extend(nodes)
            remove(self._graph, self._constants, known - self._tensors.keys())
            for name, tensor in self._tensors.items():
                if name not in known:
                    add(self._graph, self._constants, tensor)
        return self.changed

    def _place(self, node: onnx.NodeProto) -> tuple[int, int]:
        """Its slot, and where in it: what replaced one node shares a slot."""
        slot = self._slot_of[id(node)]
        return slot, next(i for i, other in enumerate(self._slots[slot]) if other is node)

    def _enter(self, node: onnx.NodeProto) -> None:
        for name in node_inputs(node):
            self._readers.setdefault(name, []).append(node)
        for name in node.output:
            self._made_by[name] = node


def is_a(node: onnx.NodeProto, *operators: str) -> bool:
    """Whether the node is one of these operators, or any if none is named, of ONNX itself."""
    return node.domain in STANDARD_DOMAINS and (not operators or node.op_type in operators)


def altered(
    node: onnx.NodeProto,
    *,
    inputs: Sequence[str] | None = None,
    output: str | None = None,
    attributes: Mapping[str, object] = _KEEP,
) -> onnx.NodeProto:
    """A copy of the node with other inputs, another single output, other attributes."""
    copy = _copied(node)
    if inputs is not None:
        copy.input[:] = inputs
    if output is not None:
        copy.output[:] = [output]
    kept = [item for item in copy.attribute if item.name not in attributes]
    kept += [onnx.helper.make_attribute(k, v) for k, v in attributes.items() if v is not None]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
