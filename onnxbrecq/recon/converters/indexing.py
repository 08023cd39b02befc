"""Taking tensors apart and putting them together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator


@operator("Concat")
def concat(*parts: Tensor, axis: int) -> Tensor:
    """The parts one after another along the axis."""
    return torch.cat(parts, axis)


@operator("Slice", until=9)
def slice_attributes(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] = ()
) -> Tensor:
    """The bounds are attributes up to opset 9."""
    for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
        x = _sliced(x, axis, start, end, 1)
    return x


@operator("Slice", since=10)
def slice_inputs(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """As Python slices, bounds out of reach cut; a negative step walks backwards."""
    chosen = list(range(len(starts))) if axes is None else axes.tolist()
    strides = [1] * len(chosen) if steps is None else steps.tolist()
    for axis, start, end, step in zip(chosen, starts.tolist(), ends.tolist(), strides, strict=True):
        x = _sliced(x, axis, start, end, step)
    return x


def _sliced(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    axis %= x.ndim
    picked = range(*slice(start, _end(end, x.shape[axis], step), step).indices(x.shape[axis]))
    if step > 0:
        index = [slice(None)] * x.ndim
        index[axis] = slice(picked.start, picked.stop, step)
        return x[tuple(index)]
    return x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))


def _end(end: int, size: int, step: int) -> int | None:
    """A lower bound before the first element, walking backwards: up to and with the first."""
    return None if step < 0 and end < -size else end


@operator("Split", until=12)
def split_attribute(
    x: Tensor, *, axis: int = 0, split: Sequence[int] = (), n_outputs: int
) -> tuple[Tensor, ...]:
    """The sizes are an attribute up to opset 12."""
    return torch.split(x, list(split) or x.shape[axis] // n_outputs, axis)


@operator("Split", since=13)
def split_input(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Equal parts where no sizes are given; the last is smaller if it does not come out even."""
    if sizes is not None:
        return torch.split(x, sizes.tolist(), axis)
    count = num_outputs or n_outputs
    return torch.split(x, -(-x.shape[axis] // count), axis)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The slices at `indices` along the axis; negative indices count from the end."""
    axis %= x.ndim
    index = torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Element by element, the one at the index along the axis."""
    index = torch.where(indices < 0, indices + x.shape[axis], indices)
    return x.gather(axis, index.to(torch.int64))


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last axis of `indices` is an index tuple into x, behind the batch axes."""
    batch = x.shape[:batch_dims]
    flat = x.reshape(-1, *x.shape[batch_dims:])
    index = indices.reshape(flat.shape[0], -1, indices.shape[-1]).to(torch.int64)
    rows = torch.arange(flat.shape[0])[:, None].expand(index.shape[:2])
    picked = flat[(rows, *index.unbind(-1))]
    rest = x.shape[batch_dims + indices.shape[-1] :]
    return picked.reshape((*batch, *indices.shape[batch_dims:-1], *rest))


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Scatter")
@operator("ScatterElements")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """X with the updates put (or added, ...) at their indices along the axis."""
    index = torch.where(indices < 0, indices + x.shape[axis], indices).to(torch.int64)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _SCATTER[reduction], include_self=True)


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """X with slices put (or added, ...) at the index tuples of the last axis of `indices`."""
    depth = indices.shape[-1]
    index, flat = indices.reshape(-1, depth).to(torch.int64), torch.zeros(1, dtype=torch.int64)
    for i in range(depth):
        column = index[:, i]
        flat = flat * x.shape[i] + torch.where(column < 0, column + x.shape[i], column)
    rest = x.shape[depth:]
    rows = x.reshape(-1, *rest) if rest else x.reshape(-1)
    values = updates.reshape(-1, *rest) if rest else updates.reshape(-1)
    place = flat.reshape(-1, *[1] * len(rest)).expand(values.shape)
    if reduction == "none":
        return rows.scatter(0, place, values).reshape(x.shape)
    made = rows.scatter_reduce(0, place, values, _SCATTER[reduction], include_self=True)
    return made.reshape(x.shape)


@operator("OneHot")
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """values[1] at the index, values[0] elsewhere; an index out of range: values[0] everywhere."""
    count = int(depth.reshape(-1)[0])
    whole = indices.to(torch.int64)
    index = torch.where(whole < 0, whole + count, whole)
    hot = index.unsqueeze(-1) == torch.arange(count)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices at which the condition holds; of the flattened tensor without an axis."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """[rank, count] indices of what is not zero."""
    return x.nonzero().t()


@operator("ReverseSequence")
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first `lengths` steps of each sample reversed in time."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1])
    ends = lengths.reshape(-1, 1)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(len(moved))[:, None]
    return moved[rows, order].movedim((0, 1), (batch_axis, time_axis))
