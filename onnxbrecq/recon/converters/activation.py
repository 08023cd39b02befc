"""Activation functions."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator


@operator("Relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X where positive, alpha * x elsewhere."""
    return F.leaky_relu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where above alpha, 0 elsewhere."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Alpha * (exp(x) - 1) below zero."""
    return F.elu(x, alpha)


@operator("Selu")
def selu(
    x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> Tensor:
    """Gamma * elu(x, alpha)."""
    return gamma * F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Alpha * (exp(x / alpha) - 1) below zero."""
    return F.celu(x, alpha)


@operator("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """clip(alpha * x + beta, 0, 1)."""
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    """X * clip(x / 6 + 1 / 2, 0, 1)."""
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@operator("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@operator("Mish")
def mish(x: Tensor) -> Tensor:
    """X * tanh(softplus(x))."""
    return F.mish(x)


@operator("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X * Phi(x), Phi by erf, or approximated by tanh."""
    return F.gelu(x, approximate=approximate)


@operator("Softplus")
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without torch's linear branch."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softsign")
def softsign(x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return F.softsign(x)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """X + bias below -lambd, x - bias above lambd, 0 between."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))


@operator("Softmax", until=12)
def softmax_of_rest(x: Tensor, *, axis: int = 1) -> Tensor:
    """Up to opset 12: over all axes from `axis` on, taken as one."""
    return _over_rest(torch.softmax, x, axis)


@operator("LogSoftmax", until=12)
def log_softmax_of_rest(x: Tensor, *, axis: int = 1) -> Tensor:
    """As `softmax_of_rest`."""
    return _over_rest(torch.log_softmax, x, axis)


@operator("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Over one axis, from opset 13 on."""
    return torch.softmax(x, axis)


@operator("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """log(softmax(x)), over one axis."""
    return torch.log_softmax(x, axis)


@operator("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest element along the axis, 0 elsewhere."""
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


def _over_rest(function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int) -> Tensor:
    rows = math.prod(x.shape[: axis % x.ndim])
    return function(x.reshape(rows, -1), -1).reshape(x.shape)
