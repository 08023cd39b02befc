"""Pad, by index along each axis, so that every mode works at any rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator


@operator("Pad", until=10)
def pad_attributes(
    x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """The widths are an attribute up to opset 10."""
    return padded(x, list(pads), mode, value)


@operator("Pad", since=11)
def pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, *,
    mode: str = "constant",
) -> Tensor:  # fmt: skip
    """Widths before and after each of the axes (all by default); negative ones cut."""
    given = pads.tolist()
    chosen = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes.tolist()]
    count = len(chosen)
    widths = [0] * (2 * x.ndim)
    for i, axis in enumerate(chosen):
        widths[axis], widths[x.ndim + axis] = given[i], given[count + i]
    return padded(x, widths, mode, 0 if value is None else value.item())


def padded(x: Tensor, widths: Sequence[int], mode: str, value: float = 0.0) -> Tensor:
    """X with widths [before each axis ..., after each axis ...] in one of ONNX's modes."""
    if mode == "constant":
        reversed_pairs = [
            width
            for axis in reversed(range(x.ndim))
            for width in (widths[axis], widths[x.ndim + axis])
        ]
        if x.dtype == torch.bool:
            return torch.nn.functional.pad(x.to(torch.uint8), reversed_pairs, value=value).bool()
        return torch.nn.functional.pad(x, reversed_pairs, value=value)
    for axis in range(x.ndim):
        before, after = widths[axis], widths[x.ndim + axis]
        if before or after:
            index = _index(x.shape[axis], before, after, mode)
            x = x.index_select(axis, index)
    return x


def _index(size: int, before: int, after: int, mode: str) -> Tensor:
    """Where each element of the padded axis comes from."""
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    if mode == "reflect":  # without repeating the edge: period 2 (size - 1)
        period = max(2 * (size - 1), 1)
        index = index % period
        return torch.where(index >= size, period - index, index)
    raise ValueError(f"Pad mode {mode!r} is not known")
