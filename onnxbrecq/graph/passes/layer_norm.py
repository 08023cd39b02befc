"""LayerNormalization that an exporter wrote out in means, squares and roots.

    gamma (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) + beta

over the last axes; gamma and beta may be missing, the quotient may be a product with a reciprocal.
"""

import math

import numpy as np
import onnx

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.editor import Editor
from onnxbrecq.graph.passes.values import integers

_OPSET = 17


def edit_layer_normalization(editor: Editor) -> None:
    """A LayerNormalization in many nodes becomes one (see above)."""
    if editor.opset < _OPSET:
        return
    for node in editor.nodes:
        parts = _quotient(editor, node) if editor.has(node) else None
        if parts is None:
            continue
        centred, deviation = parts
        found = _normalized(editor, centred, deviation)
        if found is not None:
            _edit(editor, node, *found)


def _edit(editor: Editor, node: onnx.NodeProto, x: str, count: int, epsilon: float) -> None:
    """`node` makes the normalized x, over its `count` last axes; gamma and beta are taken in."""
    shape = (editor.shape(x) or ())[-count:]
    if not all(shape):
        return
    old, names = [node], []
    for op in ("Mul", "Add"):
        behind = editor.reader(old[-1].output[0], op)
        name = None if behind is None else _trailing(editor, behind, old[-1].output[0], shape)
        if behind is not None and name is not None:
            old.append(behind)
            names.append(name)
        elif op == "Mul":
            ones = np.ones([size or 1 for size in shape], np.float32)
            names.append(editor.add_constant(f"{node.output[0]}~ones", ones))
    made = onnx.helper.make_node(
        "LayerNormalization", [x, *names], old[-1].output, old[-1].name, axis=-count,
        epsilon=epsilon,
    )  # fmt: skip
    editor.replace(old, [made])


def _trailing(
    editor: Editor, node: onnx.NodeProto, data: str, shape: tuple[int | None, ...]
) -> str | None:
    """The constant that `node` takes besides `data`, if it is float32 of this shape."""
    name = next((other for other in node.input if other != data), data)
    value = editor.constant(name)
    if value is None or value.dtype != np.float32 or value.size != math.prod(s or 0 for s in shape):
        return None
    if value.shape == shape:
        return name
    leading = value.ndim - len(shape)
    if leading < 0 or value.shape[leading:] != shape:
        return None
    return editor.add_constant(f"{name}~row", value.reshape(value.shape[leading:]))


def _quotient(editor: Editor, node: onnx.NodeProto) -> tuple[str, str] | None:
    """The tensors c and d where the node makes c / sqrt(d)."""
    if node.op_type == "Div":
        root = _root(editor, node.input[1], 0.5)
        return (node.input[0], root) if root else None
    if node.op_type != "Mul":
        return None
    for c, inverse in (node.input, reversed(node.input)):
        root = _root(editor, inverse, -0.5)
        maker = editor.producer(inverse, "Reciprocal", "Div")
        if root is None and maker is not None and maker.op_type == "Reciprocal":
            root = _root(editor, maker.input[0], 0.5)
        elif root is None and maker is not None and editor.scalar(maker.input[0]) == 1:
            root = _root(editor, maker.input[1], 0.5)
        if root:
            return c, root
    return None


def _root(editor: Editor, name: str, exponent: float) -> str | None:
    """The tensor d where this one is d to the power of `exponent`."""
    node = editor.producer(name, "Sqrt", "Pow")
    if node is None:
        return None
    power = 0.5 if node.op_type == "Sqrt" else editor.scalar(node.input[1])
    return str(node.input[0]) if power == exponent else None


def _normalized(editor: Editor, centred: str, deviation: str) -> tuple[str, int, float] | None:
    """x, the number of its last axes, and epsilon."""
    add, outer = editor.producer(deviation, "Add"), _centred(editor, centred)
    if add is None or outer is None:
        return None
    scalars = [editor.scalar(name) for name in add.input]
    epsilon = next((value for value in scalars if value is not None), None)
    variance = next((n for n, v in zip(add.input, scalars, strict=True) if v is None), "")
    mean = editor.producer(variance, "ReduceMean")
    square = editor.producer(mean.input[0], "Pow", "Mul") if mean is not None else None
    if mean is None or square is None or epsilon is None:
        return None
    second = square.input[1] == square.input[0]
    if not second and (square.op_type != "Pow" or editor.scalar(square.input[1]) != 2):
        return None
    x, count = outer
    if _centred(editor, square.input[0]) != outer or _last_axes(editor, mean) != count:
        return None
    return x, count, epsilon


def _centred(editor: Editor, name: str) -> tuple[str, int] | None:
    """x, and the number of its last axes, where the tensor is x minus its mean over them."""
    node = editor.producer(name, "Sub")
    mean = editor.producer(node.input[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or mean.input[0] != node.input[0]:
        return None
    count = _last_axes(editor, mean)
    return (str(node.input[0]), count) if count else None


def _last_axes(editor: Editor, mean: onnx.NodeProto) -> int | None:
    """Over how many of the last axes the mean is; None if over others, or they are dropped."""
    shape = editor.shape(mean.input[0])
    axes = integers(mean, "axes")
    if len(mean.input) > 1:
        value = editor.constant(mean.input[1])
        axes = [] if value is None else [int(axis) for axis in value.reshape(-1)]
    if not axes or not shape or attribute(mean, "keepdims", 1) != 1:
        return None
    wanted = set(range(len(shape) - len(axes), len(shape)))
    return len(axes) if {axis % len(shape) for axis in axes} == wanted else None
