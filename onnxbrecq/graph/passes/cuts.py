"""What is cut out of a tensor along one axis: by Split, by Slice, by Gather at constant places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.passes.editor import Editor, is_a
from onnxbrecq.graph.passes.values import number

CUTTING = ("Split", "Slice", "Gather")
_FAR = 2**31 - 1  # an end that exporters write for "to the last"
_LONGEST = 1 << 20  # positions; boxes of a detector are tens of thousands

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """One part: the positions `places` of the axis, in this order.

    Attributes:
        node: what cuts it out.
        output: its name.
        places: distinct positions; those of several parts are distinct, too.
        flat: it is a single position, and the axis is gone.
    """

    node: onnx.NodeProto
    output: str
    places: Places
    flat: bool = False


@dataclass(frozen=True)
class Cuts:
    """All that is cut out of a tensor along `axis`, which has `length` positions."""

    axis: int
    length: int
    cuts: tuple[Cut, ...]


def cut_apart(editor: Editor, name: str, nodes: Sequence[onnx.NodeProto]) -> Cuts | None:
    """What `nodes` cut out of the tensor.

    None if not all do, if a position goes to two parts, or where any of it is not known.
    """
    dims = editor.dims(name)
    if not dims:
        return None
    found: list[Cut] = []
    axes: set[int] = set()
    for node in nodes:
        made = _of_node(editor, node, dims) if list(node.input[:1]) == [name] else None
        if made is None:
            return None
        axes.add(made[0])
        found += made[1]
    places = [place for cut in found for place in cut.places.tolist()]
    length = dims[next(iter(axes))] if len(axes) == 1 else None
    if not isinstance(length, int) or len(set(places)) != len(places):
        return None
    return Cuts(axes.pop(), length, tuple(found))


def _of_node(
    editor: Editor, node: onnx.NodeProto, dims: tuple[int | str, ...]
) -> tuple[int, list[Cut]] | None:
    if is_a(node, "Split"):
        return _split(editor, node, dims)
    if is_a(node, "Slice"):
        return _slice(editor, node, dims)
    return _gather(editor, node, dims) if is_a(node, "Gather") else None


def _split(
    editor: Editor, node: onnx.NodeProto, dims: tuple[int | str, ...]
) -> tuple[int, list[Cut]] | None:
    axis, start, cuts = int(number(node, "axis", 0)) % len(dims), 0, []
    if not _is_listed(dims[axis]):
        return None
    for output in node.output:
        made = editor.shape(output)
        size = made[axis] if made else None
        if not size:
            return None
        cuts.append(Cut(node, output, np.arange(start, start + size)))
        start += size
    return (axis, cuts) if start == dims[axis] else None


def _is_listed(length: int | str) -> TypeGuard[int]:
    """Whether the positions of an axis of that length are few enough to go through."""
    return isinstance(length, int) and length <= _LONGEST


def _slice(
    editor: Editor, node: onnx.NodeProto, dims: tuple[int | str, ...]
) -> tuple[int, list[Cut]] | None:
    given = [editor.constant(name) if name else None for name in node.input[1:]]
    if any(value is None and name for value, name in zip(given, node.input[1:], strict=True)):
        return None
    if len(given) < 2 or any(value is not None and value.ndim != 1 for value in given):
        return None  # onnxruntime takes scalars too
    starts, ends, axes, steps = (
        None if value is None else value.tolist() for value in [*given, None, None][:4]
    )
    if starts is None or ends is None:
        return None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    found = None
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = dims[axis]
        if step == 1 and start == 0 and end >= (length if isinstance(length, int) else _FAR):
            continue  # all of it
        if found is not None or not _is_listed(length):
            return None
        found = axis % len(dims), np.arange(length)[start:end:step]
    if found is None or not found[1].size:
        return None
    return found[0], [Cut(node, node.output[0], found[1])]


def _gather(
    editor: Editor, node: onnx.NodeProto, dims: tuple[int | str, ...]
) -> tuple[int, list[Cut]] | None:
    axis = int(number(node, "axis", 0)) % len(dims)
    length, given = dims[axis], editor.constant(node.input[1])
    if not _is_listed(length) or given is None or given.ndim > 1 or not given.size:
        return None
    places = np.asarray(given, np.int64)
    if (places < -length).any() or (places >= length).any():
        return None
    inside = np.arange(length)[places.reshape(-1)]
    return axis, [Cut(node, node.output[0], inside, flat=places.ndim == 0)]
