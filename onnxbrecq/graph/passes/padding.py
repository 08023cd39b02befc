"""Padding, in one form: explicit `pads` of the node that uses them.

`SAME` padding of a kernel of reach r = (k - 1) d + 1 and stride s over n values is

    max((ceil(n / s) - 1) s + r - n, 0)

in total, the odd one at the end (SAME_UPPER) or the beginning (SAME_LOWER); for s = 1 that is
r - 1 whatever n is.
"""

import numpy as np
import onnx

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.editor import Editor, altered, is_a
from onnxbrecq.graph.passes.values import integers

_SPATIAL = 2  # the first spatial axis
_FILLINGS = {"Conv": 0.0, "MaxPool": -np.inf}  # what each pads with by itself


def edit_auto_pads(editor: Editor) -> None:
    """The auto_pad of a Conv, MaxPool or AveragePool becomes pads, where sizes are known."""
    for node in editor.nodes:
        kind = attribute(node, "auto_pad", b"NOTSET")
        if not is_a(node, "Conv", "MaxPool", "AveragePool") or kind == b"NOTSET":
            continue
        pads = _same(editor, node, lower=kind == b"SAME_LOWER") if kind != b"VALID" else []
        if pads is None:
            continue
        changes: dict[str, object] = {"auto_pad": None, "pads": pads or None}
        if pads:
            changes["ceil_mode"] = None  # SAME says how many outputs there are
        editor.replace([node], [altered(node, attributes=changes)])


def edit_pads(editor: Editor) -> None:
    """A Pad of spatial axes goes into the Conv or MaxPool that alone reads it.

    Conv takes its own padding to be zeros, MaxPool to be minus infinity:
    conv(pad(x, p), q) = conv(x, p + q).
    """
    for node in editor.nodes:
        if not is_a(node, "Pad") or attribute(node, "mode", b"constant") != b"constant":
            continue
        layer = editor.reader(node.output[0], *_FILLINGS)
        if layer is None or attribute(layer, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        kernel = _kernel(editor, layer)
        widths = _widths(editor, node, layer, len(kernel) + _SPATIAL) if kernel else None
        if layer.input[0] != node.output[0] or not widths or any(widths[0] + widths[1]):
            continue
        own = integers(layer, "pads") or [0] * 2 * len(kernel)
        added = [pair[side] for side in (0, 1) for pair in widths[_SPATIAL:]]
        pads = [a + b for a, b in zip(own, added, strict=True)]
        if is_a(layer, "MaxPool") and not _taken_by_pooling(layer, pads, kernel):
            continue
        inputs = [node.input[0], *layer.input[1:]]
        new = altered(layer, inputs=inputs, attributes={"pads": pads, "auto_pad": None})
        editor.replace([node, layer], [new])


def _kernel(editor: Editor, layer: onnx.NodeProto) -> list[int]:
    """The sizes of a Conv's or MaxPool's kernel; empty if not known."""
    weight = editor.shape(layer.input[1]) if is_a(layer, "Conv") else None
    if weight is not None:
        return [size or 0 for size in weight[_SPATIAL:]]
    return integers(layer, "kernel_shape")


def _taken_by_pooling(layer: onnx.NodeProto, pads: list[int], kernel: list[int]) -> bool:
    """Whether a MaxPool pads so: less than its kernel, no size rounded up, no indices wanted."""
    small = all(pad < size for pad, size in zip(pads, [*kernel, *kernel], strict=True))
    return small and not attribute(layer, "ceil_mode", 0) and not any(layer.output[1:])


def _same(editor: Editor, node: onnx.NodeProto, *, lower: bool) -> list[int] | None:
    """The pads that SAME stands for: all beginnings, then all ends; None if not known."""
    shape = editor.shape(node.input[0])
    kernel = _kernel(editor, node)
    strides = integers(node, "strides") or [1] * len(kernel)
    spread = integers(node, "dilations") or [1] * len(kernel)
    sizes = shape[_SPATIAL:] if shape is not None else (None,) * len(kernel)
    totals = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, spread, strict=True):
        reach = (width - 1) * dilation + 1
        if size is None and stride != 1:
            return None
        known = size or 0
        totals.append(max((-(-known // stride) - 1) * stride + reach - known, 0))
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return large + small if lower else small + large


def _widths(
    editor: Editor, node: onnx.NodeProto, layer: onnx.NodeProto, rank: int
) -> list[tuple[int, int]] | None:
    """How much a Pad adds before and after each axis; None unless the layer pads with the same."""
    filling = editor.scalar(node.input[2]) if "".join(node.input[2:3]) else 0.0
    pads = editor.constant(node.input[1])
    axes = editor.constant(node.input[3]) if "".join(node.input[3:4]) else range(rank)
    if filling != _FILLINGS[layer.op_type] or pads is None or axes is None:
        return None
    if (np.asarray(pads, np.int64) < 0).any():
        return None
    half, widths = pads.size // 2, [(0, 0)] * rank
    for axis, begin, end in zip(axes, pads[:half], pads[half:], strict=True):
        widths[int(axis)] = int(begin), int(end)
    return widths
