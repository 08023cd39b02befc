"""Products with weights: Conv, ConvTranspose, Gemm, MatMul. The weights are inputs."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv")
def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (), group: int = 1, kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Cross-correlation over 1 to 3 spatial axes.

    On a processor a depthwise one with a stride takes longer in bfloat16 than in float32 (measured
    with AVX512-BF16): autocast does not reach it.
    """
    rank = x.ndim - 2
    steps, spread = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    begin, end = explicit_pads(x.shape[2:], reach, steps, auto_pad, pads)
    if begin != end:
        x, begin = F.pad(x, torch_pads(begin, end)), (0,) * rank
    depthwise = group > 1 and group == len(weight)
    if depthwise and max(steps) > 1 and not x.is_cuda and torch.is_autocast_enabled("cpu"):
        x, weight = x.float(), weight.float()
        bias = None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            return _CONV[rank](x, weight, bias, steps, begin, spread, group)
    return _CONV[rank](x, weight, bias, steps, begin, spread, group)


def explicit_pads(
    sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int], auto_pad: str,
    pads: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """Padding before and after each spatial axis; SAME: the output is ceil(size / stride)."""
    rank = len(sizes)
    if auto_pad == "VALID" or (auto_pad == "NOTSET" and not pads):
        return (0,) * rank, (0,) * rank
    if auto_pad == "NOTSET":
        return tuple(pads[:rank]), tuple(pads[rank:])
    totals = [
        max((-(-size // stride) - 1) * stride + width - size, 0)
        for size, width, stride in zip(sizes, reach, strides, strict=True)
    ]
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (large, small) if auto_pad == "SAME_LOWER" else (small, large)


def torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """The order that torch wants: the last axis first."""
    pairs = list(zip(begin, end, strict=True))
    return [width for pair in reversed(pairs) for width in pair]


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (), group: int = 1, kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (), output_shape: Sequence[int] = (),
    pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """The gradient of Conv; the whole result is computed, and cut or extended by the padding."""
    rank = x.ndim - 2
    steps, spread = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    extra = tuple(output_padding) or (0,) * rank
    made = _CONV_TRANSPOSE[rank](x, weight, bias, steps, 0, 0, group, spread)
    full = [made.shape[2 + i] + extra[i] for i in range(rank)]
    begin, end = (0,) * rank, (0,) * rank
    if output_shape or auto_pad.startswith("SAME"):
        wanted = list(output_shape[-rank:]) or [
            size * step for size, step in zip(x.shape[2:], steps, strict=True)
        ]
        totals = [size - want for size, want in zip(full, wanted, strict=True)]
        halves = tuple(t // 2 for t in totals)
        rest = tuple(t - h for t, h in zip(totals, halves, strict=True))
        begin, end = (halves, rest) if auto_pad == "SAME_UPPER" else (rest, halves)
    elif pads:
        begin, end = tuple(pads[:rank]), tuple(pads[rank:])
    cut = F.pad(
        made, [-p for p in torch_pads(begin, [e - o for e, o in zip(end, extra, strict=True)])]
    )
    if bias is not None and any(o > e for o, e in zip(extra, end, strict=True)):
        # what was appended holds the bias alone
        shape = (1, -1, *[1] * rank)
        inside = F.pad(
            torch.ones_like(made[:1, :1]),
            [-p for p in torch_pads(begin, [e - o for e, o in zip(end, extra, strict=True)])],
        )
        cut = cut + (1 - inside) * bias.reshape(shape)
    return cut


@operator("Gemm", since=7)
def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    trans_a: int = 0, trans_b: int = 0,
) -> Tensor:  # fmt: skip
    """Alpha * A B + beta * C, A and B transposed if asked for."""
    left, right = a.t() if trans_a else a, b.t() if trans_b else b
    if c is not None and alpha == beta == 1.0 and c.ndim == 1 and a.is_floating_point():
        return torch.addmm(c, left, right)
    made = left @ right
    made = made if alpha == 1.0 else made * alpha
    return made if c is None else made + (c if beta == 1.0 else c * beta)


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Numpy's matmul."""
    return torch.matmul(a, b)
