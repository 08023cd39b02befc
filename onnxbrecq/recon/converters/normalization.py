"""Normalisations; statistics are biased (divided by the count), as everywhere in ONNX."""

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator


@operator("BatchNormalization", since=9)
def batch_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    """By the running statistics."""
    if training_mode:
        raise ValueError("BatchNormalization in training mode")
    shape = (1, -1, *[1] * (x.ndim - 2))
    factor = scale / torch.sqrt(variance + epsilon)
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


@operator("InstanceNormalization", since=6)
def instance_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """Each channel of each sample by its own statistics."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("GroupNormalization", since=18, until=20)
def group_normalization_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int
) -> Tensor:
    """Opset 18: scale and bias per group."""
    count = x.shape[1] // num_groups
    return F.group_norm(
        x, num_groups, scale.repeat_interleave(count), bias.repeat_interleave(count), epsilon
    )


@operator("GroupNormalization", since=21)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int,
    stash_type: int = 1,
) -> Tensor:  # fmt: skip
    """Opset 21: scale and bias per channel."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1,
    epsilon: float = 1e-5, stash_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Over the axes from `axis` on; also the mean and the inverse standard deviation."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    made = centred * inverse * scale
    return made if bias is None else made + bias, mean, inverse


@operator("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """By the root of the mean square over the axes from `axis` on."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """By the squares of `size` neighbouring channels; an even size reaches further back."""
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    spatial = x.ndim - 2
    squares = F.pad(x.square(), [*[0, 0] * spatial, before, after])
    summed = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * summed).pow(beta)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """By the p-norm along the axis; 0 where that is 0."""
    norm = x.norm(p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """(x - mean) / (standard deviation + 1e-9), as the ONNX function body has it."""
    mean = x.mean(tuple(axes), keepdim=True)
    spread = (x.square().mean(tuple(axes), keepdim=True) - mean.square()).sqrt()
    return (x - mean) / (spread + 1e-9)
