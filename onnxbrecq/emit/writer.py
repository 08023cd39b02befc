"""A graph under construction: nodes in order, initializers, and short unique names."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


@dataclass
class GraphWriter:
    """Collects nodes and initializers; added names are short, for they weigh in small files."""

    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _serial: dict[str, int] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def name(self, stem: str) -> str:
        """A name nobody has: `stem` and a number."""
        serial = self._serial.get(stem, 0)
        while f"{stem}{serial}" in self.taken:
            serial += 1
        self._serial[stem] = serial + 1
        self.taken.add(f"{stem}{serial}")
        return f"{stem}{serial}"

    def constant(self, stem: str, array: NDArray[np.generic]) -> str:
        """The name of an initializer with the value `array`; equal ones are stored once."""
        content = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).digest()
        key = str(array.dtype), array.shape, content
        if key not in self._known:
            tensor = numpy_helper.from_array(array, self.name(stem))
            self.initializers[tensor.name] = tensor
            self._known[key] = tensor.name
        return self._known[key]

    def shared(self, name: str, array: NDArray[np.generic]) -> str:
        """The name of a constant that many nodes read; `name` stands for its value."""
        key = f"{name}~"
        if key not in self.initializers:
            self.taken.add(key)
            self.initializers[key] = numpy_helper.from_array(array, key)
        return key

    def node(
        self, op: str, inputs: Sequence[str], output: str, **attributes: int | float | str
    ) -> str:
        """Appends a node with one output; returns that output's name."""
        node = onnx.helper.make_node(op, inputs, [output])
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return output
