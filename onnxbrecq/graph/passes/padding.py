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
    """A Pad with zeros, of spatial axes, goes into the Conv that alone reads it.

    Conv takes its own padding to be zeros: conv(pad(x, p), q) = conv(x, p + q).
    """
    for node in editor.nodes:
        if not is_a(node, "Pad") or attribute(node, "mode", b"constant") != b"constant":
            continue
        conv = editor.reader(node.output[0], "Conv")
        if conv is None or attribute(conv, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            continue
        shape = editor.shape(conv.input[1])
        widths = _zeros(editor, node, len(shape)) if shape is not None else None
        if conv.input[0] != node.output[0] or not widths or any(widths[0] + widths[1]):
            continue
        own = integers(conv, "pads") or [0] * 2 * len(widths[_SPATIAL:])
        added = [pair[side] for side in (0, 1) for pair in widths[_SPATIAL:]]
        pads = [a + b for a, b in zip(own, added, strict=True)]
        inputs = [node.input[0], *conv.input[1:]]
        new = altered(conv, inputs=inputs, attributes={"pads": pads, "auto_pad": None})
        editor.replace([node, conv], [new])


def _same(editor: Editor, node: onnx.NodeProto, *, lower: bool) -> list[int] | None:
    """The pads that SAME stands for: all beginnings, then all ends; None if not known."""
    shape = editor.shape(node.input[0])
    kernel = integers(node, "kernel_shape")
    if not kernel and is_a(node, "Conv"):
        kernel = [size or 0 for size in (editor.shape(node.input[1]) or ())[_SPATIAL:]]
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


def _zeros(editor: Editor, node: onnx.NodeProto, rank: int) -> list[tuple[int, int]] | None:
    """How many zeros a Pad adds before and after each axis; None for anything else."""
    filling = editor.scalar(node.input[2]) if "".join(node.input[2:3]) else 0.0
    pads = editor.constant(node.input[1])
    axes = editor.constant(node.input[3]) if "".join(node.input[3:4]) else range(rank)
    if filling != 0 or pads is None or axes is None or (np.asarray(pads, np.int64) < 0).any():
        return None
    half, widths = pads.size // 2, [(0, 0)] * rank
    for axis, begin, end in zip(axes, pads[:half], pads[half:], strict=True):
        widths[int(axis)] = int(begin), int(end)
    return widths
