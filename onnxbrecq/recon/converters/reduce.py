"""Reductions. Up to opset 17 (ReduceSum: 12) the axes are an attribute, then an input."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import Function, operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if 0 in (x.shape[axis] for axis in axes):  # the least value of the type, as numpy's initial
        shape = torch.empty(x.shape, device="meta").sum(axes, keepdim=keep).shape
        return x.new_full(shape, _limit(x.dtype, sign=-1))
    return x.amax(axes, keepdim=keep)


def _smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if 0 in (x.shape[axis] for axis in axes):
        shape = torch.empty(x.shape, device="meta").sum(axes, keepdim=keep).shape
        return x.new_full(shape, _limit(x.dtype, sign=1))
    return x.amin(axes, keepdim=keep)


def _limit(dtype: torch.dtype, *, sign: int) -> float:
    if dtype.is_floating_point:
        return sign * torch.inf
    if dtype == torch.bool:
        return sign > 0
    return torch.iinfo(dtype).max if sign > 0 else torch.iinfo(dtype).min


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": _largest,
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": _smallest,
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _reduced(
    reduction: Reduction, x: Tensor, axes: Sequence[int], *, keep: bool, noop: bool
) -> Tensor:
    """The reduction over `axes`; none means all of them, or, if `noop`, that nothing is summed."""
    chosen = [axis % x.ndim for axis in axes]
    if not chosen and noop:
        return reduction(x[None], [0], False)  # over one element: its square, logarithm, ...
    chosen = chosen or list(range(x.ndim))
    return reduction(x, chosen, keep).to(x.dtype) if chosen else reduction(x[None], [0], False)


def _by_input(reduction: Reduction) -> Function:
    def reduced(
        x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = [] if axes is None else axes.tolist()
        noop = bool(noop_with_empty_axes)
        return _reduced(reduction, x, chosen, keep=bool(keepdims), noop=noop)

    return reduced


def _by_attribute(reduction: Reduction) -> Function:
    def reduced(x: Tensor, *, axes: Sequence[int] = (), keepdims: int = 1) -> Tensor:
        return _reduced(reduction, x, axes, keep=bool(keepdims), noop=False)

    return reduced


for _name, _reduction in _REDUCTIONS.items():
    _changed = 13 if _name == "ReduceSum" else 18
    operator(_name, until=_changed - 1)(_by_attribute(_reduction))
    operator(_name, since=_changed)(_by_input(_reduction))


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The index of the first largest element along the axis, or of the last."""
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return x.argmax(axis, keepdim=bool(keepdims))


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The index of the first smallest element along the axis, or of the last."""
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return x.argmin(axis, keepdim=bool(keepdims))


@operator("TopK", since=10)
def top_k(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along the axis and their indices; ties: the lower index."""
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
