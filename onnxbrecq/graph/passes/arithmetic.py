"""Arithmetic with constants that is nothing, or that two nodes do where one could.

x + 0 = x - 0 = x * 1 = x / 1 = x
(x + a) + b = x + (a + b)        (x a) b = x (a b)
"""

import numpy as np
import onnx

from onnxbrecq.graph.passes.editor import Editor, altered, is_a

_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


def edit_neutral(editor: Editor) -> None:
    """A node that adds zero or multiplies by one becomes an Identity."""
    for node in editor.nodes:
        if not is_a(node, *_NEUTRAL):
            continue
        either = node.op_type in ("Add", "Mul")
        for data, name in ((0, 1), (1, 0)) if either else ((0, 1),):
            shape, other = editor.shape(node.input[data]), editor.shape(node.input[name])
            if editor.scalar(node.input[name]) != _NEUTRAL[node.op_type]:
                continue
            if shape is not None and len(other or ()) <= len(shape):
                same = onnx.helper.make_node("Identity", [node.input[data]], node.output, node.name)
                editor.replace([node], [same])
                break


def edit_constant_pairs(editor: Editor) -> None:
    """Two additions of constants, or two products with constants, become one."""
    for node in editor.nodes:
        if not is_a(node, "Add", "Mul") or not editor.has(node):
            continue
        parts = _parts(editor, node)
        first = None if parts is None else editor.producer(parts[0], node.op_type)
        inner = None if first is None else _parts(editor, first)
        if first is None or parts is None or inner is None:
            continue
        if editor.reader(first.output[0]) is not node:
            continue
        a, b = inner[1].astype(np.float64), parts[1].astype(np.float64)
        value = (a + b if node.op_type == "Add" else a * b).astype(inner[1].dtype)
        if value.size <= max(a.size, b.size) and np.isfinite(value).all():
            name = editor.add_constant(f"{node.output[0]}~constant", value)
            editor.replace([first, node], [altered(node, inputs=[inner[0], name])])


def _parts(editor: Editor, node: onnx.NodeProto) -> tuple[str, np.ndarray] | None:
    """The one tensor that is no constant, and the float constant."""
    constants = {name: editor.constant(name) for name in node.input}
    data = [name for name, value in constants.items() if value is None]
    value = next((v for v in constants.values() if v is not None), None)
    if len(data) != 1 or value is None or value.dtype.kind != "f":
        return None
    return data[0], value
