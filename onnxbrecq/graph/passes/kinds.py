"""Kinds of values along one axis of a tensor, followed back to where they come from.

On its axis position p is of kind p // inner % count: with A anchors, of 4 + C values each, channel
a (4 + C) + k of a Conv is of kind k. Moving values changes the axis and `inner`, functions of one
value change neither, and what is joined along another axis has the kinds where the whole has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from onnxbrecq.graph.passes.cuts import Places
from onnxbrecq.graph.passes.editor import Editor, is_a
from onnxbrecq.graph.passes.values import integers, number

_OF_ONE_VALUE = ("Clip", "Exp", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


@dataclass(frozen=True)
class Kinds:
    """Where a tensor has its kinds: position p of `axis` is of kind p // inner % count."""

    axis: int
    count: int
    inner: int = 1

    def places(self, length: int, kinds: Places) -> Places:
        """The positions of these kinds on the axis, which is so long."""
        whole = np.arange(length).reshape(-1, self.count, self.inner)
        return np.asarray(whole[:, kinds].reshape(-1))


def sources(editor: Editor, node: onnx.NodeProto, kinds: Kinds) -> list[tuple[str, Kinds]] | None:
    """The tensors that the node's output has its kinds from, and where; None if it mixes them."""
    if is_a(node, *_OF_ONE_VALUE):
        return [(node.input[0], kinds)]
    if is_a(node, "Reshape"):
        at = _before_reshape(editor, node, kinds)
        return None if at is None else [(node.input[0], at)]
    rank = len(editor.dims(node.output[0]) or ())
    if is_a(node, "Transpose") and rank:
        order = integers(node, "perm") or list(range(rank))[::-1]
        return [(node.input[0], Kinds(order[kinds.axis], kinds.count, kinds.inner))]
    if is_a(node, "Concat") and rank:
        elsewhere = int(number(node, "axis", 0)) % rank != kinds.axis
        return [(name, kinds) for name in node.input] if elsewhere else None
    return None


def _before_reshape(editor: Editor, node: onnx.NodeProto, kinds: Kinds) -> Kinds | None:
    """Where the input of a Reshape has the kinds of its output.

    Of all values in a row the kind changes every `step`, and comes again after `step * count`. On
    an axis whose positions are `size` values apart that is so if `size` divides the one, and the
    other divides `size * length`. Dimensions at the end that both tensors have need not be known.
    """
    before, after = editor.dims(node.input[0]), editor.dims(node.output[0])
    if before is None or after is None or not isinstance(after[kinds.axis], int):
        return None  # a length that is not known could not be made that of a part
    same, most = 0, min(len(before), len(after) - 1 - kinds.axis)
    while same < most and before[-1 - same] == after[-1 - same] != "":
        same += 1
    values = _values(after[kinds.axis + 1 : len(after) - same])
    size = 1
    for axis in reversed(range(len(before) - same)):
        length = before[axis]
        if values is None or not isinstance(length, int):
            return None
        step = values * kinds.inner
        if step % size == 0 and size * length % (step * kinds.count) == 0:
            return Kinds(axis, kinds.count, step // size)
        size *= length
    return None


def _values(dims: Sequence[int | str]) -> int | None:
    """How many values so many dimensions hold."""
    known = [dim for dim in dims if isinstance(dim, int)]
    return prod(known) if len(known) == len(dims) else None
