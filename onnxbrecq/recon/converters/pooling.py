"""Pooling over 1 to 3 spatial axes, with every padding and rounding rule of ONNX.

The number of output positions along an axis is

    floor or ceil((size + begin + end - reach) / stride) + 1,   reach = (kernel - 1) * dilation + 1

where with ceil a window that would start in the padding behind the input is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from onnxbrecq.recon.converters.linear import explicit_pads, torch_pads
from onnxbrecq.recon.converters.operator import operator

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class _Window:
    """Kernel, strides, dilations and padding of each spatial axis, `end` reaching all windows."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    declared_end: tuple[int, ...]


def _window(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], auto_pad: str, pads: Sequence[int], *, ceil: bool,
) -> _Window:  # fmt: skip
    rank = len(sizes)
    steps, spread = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    begin, end = explicit_pads(sizes, reach, steps, auto_pad, pads)
    reached = []
    for i in range(rank):
        room = sizes[i] + begin[i] + end[i] - reach[i]
        count = (math.ceil if ceil else math.floor)(room / steps[i]) + 1
        if ceil and (count - 1) * steps[i] >= sizes[i] + begin[i]:
            count -= 1
        reached.append((count - 1) * steps[i] + reach[i] - sizes[i] - begin[i])
    return _Window(tuple(kernel), steps, spread, begin, tuple(reached), end)


def _windows(x: Tensor, window: _Window, filling: float) -> Tensor:
    """Every window's values, [N, C, positions ..., kernel elements]."""
    x = F.pad(x, torch_pads(window.begin, window.end), value=filling)
    rank = len(window.kernel)
    for i in range(rank):
        reach = (window.kernel[i] - 1) * window.dilations[i] + 1
        x = x.unfold(2 + i, reach, window.strides[i])[..., :: window.dilations[i]]
    return x.flatten(2 + rank)


@operator("MaxPool")
def max_pool(
    x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Sequence[int] = (),
    kernel_shape: Sequence[int], pads: Sequence[int] = (), storage_order: int = 0,
    strides: Sequence[int] = (), n_outputs: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The largest value of each window, padding never among them; its index in the flat input."""
    window = _window(
        x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads, ceil=bool(ceil_mode)
    )
    rank = len(kernel_shape)
    least = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    if n_outputs == 1 and x.is_floating_point():
        padding = window.begin
        if window.begin != window.end or any(
            2 * p > k for p, k in zip(padding, kernel_shape, strict=True)
        ):
            x, padding = F.pad(x, torch_pads(window.begin, window.end), value=least), (0,) * rank
        return (_MAX[rank](x, window.kernel, window.strides, padding, window.dilations),)
    values, best = _windows(x, window, least).max(-1)
    number = torch.arange(math.prod(x.shape[2:])).reshape(x.shape[2:])
    if storage_order:  # column-major
        number = number.permute(*reversed(range(rank)))
        number = torch.arange(number.numel()).reshape(number.shape).permute(*reversed(range(rank)))
    places = _windows(number[None, None].float(), window, -1.0).to(torch.int64)
    inside = places.expand(*x.shape[:2], *places.shape[2:]).gather(-1, best[..., None])[..., 0]
    plane = math.prod(x.shape[2:])
    offsets = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * rank) * plane
    return values, inside + offsets


@operator("AveragePool")
def average_pool(
    x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Sequence[int] = (), kernel_shape: Sequence[int], pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """The mean of each window: over what lies in the input, or in its declared padding too."""
    window = _window(
        x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads, ceil=bool(ceil_mode)
    )
    rank = len(kernel_shape)
    plain = window.begin == window.end == window.declared_end and set(window.dilations) == {1}
    if (
        rank == 2
        and plain
        and all(2 * p <= k for p, k in zip(window.begin, kernel_shape, strict=True))
    ):
        return F.avg_pool2d(
            x, window.kernel, window.strides, window.begin,
            count_include_pad=bool(count_include_pad),
        )  # fmt: skip
    counted = torch.ones_like(x[:1, :1])
    if count_include_pad:
        counted = F.pad(counted, torch_pads(window.begin, window.declared_end), value=1.0)
        beyond = [e - d for e, d in zip(window.end, window.declared_end, strict=True)]
        rest = _Window(
            window.kernel, window.strides, window.dilations, (0,) * rank, tuple(beyond), ()
        )
        weights = _windows(counted, rest, 0.0).sum(-1)
    else:
        weights = _windows(counted, window, 0.0).sum(-1)
    return _windows(x, window, 0.0).sum(-1) / weights


@operator("LpPool")
def lp_pool(
    x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Sequence[int] = (),
    kernel_shape: Sequence[int], p: int = 2, pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """The p-norm of each window."""
    window = _window(
        x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads, ceil=bool(ceil_mode)
    )
    return _windows(x.abs(), window, 0.0).pow(p).sum(-1).pow(1 / p)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest value of each channel."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm of each channel."""
    return x.abs().pow(p).sum(tuple(range(2, x.ndim)), keepdim=True).pow(1 / p)
