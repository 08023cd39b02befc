"""The nodes that are written in the place of one, and the constants that they read."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.passes.editor import Editor

_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Written:
    """What a node becomes; nothing is in the graph before the node is replaced.

    Attributes:
        node: the node that goes.
        nodes: those that come.
    """

    def __init__(self, editor: Editor, node: onnx.NodeProto) -> None:
        """Nothing yet, for `node` of the graph that `editor` edits."""
        self.editor = editor
        self.node = node
        self.nodes: list[onnx.NodeProto] = []

    @property
    def typed(self) -> bool:
        """Whether the first output is known to be of floats."""
        dtype = self.editor.dtype(self.node.output[0])
        return dtype is not None and dtype.name in _FLOATS

    def add(
        self, op: str, *inputs: str, name: str = "", last: bool = False, **attributes: Any
    ) -> str:
        """Writes a node; the tensor that it makes: the first output of what goes, if `last`."""
        made = self.node.output[0] if last else self.tensor(op)
        self.nodes.append(onnx.helper.make_node(op, inputs, [made], name, **attributes))
        return made

    def tensor(self, what: str) -> str:
        """A name for a tensor."""
        return self.editor.free(f"{self.node.output[0]}~{what}{len(self.nodes)}")

    def constant(self, what: str, value: NDArray[np.generic]) -> str:
        """The name of a new constant."""
        return self.editor.add_constant(f"{self.node.output[0]}~{what}", value)

    def scalar(self, what: str, value: float) -> str:
        """A constant of the type of the first output, of floats; what is beyond it, its limit."""
        dtype = self.editor.dtype(self.node.output[0])
        assert dtype is not None
        most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        value = float(np.clip(value, -most, most)) if np.isfinite(value) else value
        return self.constant(what, np.asarray(value, dtype))

    def input(self, i: int) -> str:
        """The node's input, empty where it has none."""
        return str(self.node.input[i]) if i < len(self.node.input) else ""

    def output(self, i: int) -> str:
        """The node's output, empty where it has none, or nobody reads it."""
        name = str(self.node.output[i]) if i < len(self.node.output) else ""
        return name if self.editor.readers(name) or self.editor.is_output(name) else ""
