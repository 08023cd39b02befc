"""Arithmetic, comparison and logic, element by element; broadcasting is numpy's, as in ONNX-7."""

import math
from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator
from onnxbrecq.recon.converters.types import torch_dtype

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # half to even, as ONNX
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "BitwiseNot": torch.bitwise_not,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x)  # noqa: PLW0108 -- torch's own has no signature to inspect


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda a, b: function(a, b)  # noqa: PLW0108 -- likewise


for _name, _function in _UNARY.items():
    operator(_name)(_unary(_function))
for _name, _pair in _BINARY.items():
    operator(_name, since=7)(_binary(_pair))


@operator("Div", since=7)
def div(a: Tensor, b: Tensor) -> Tensor:
    """A / b; integers are truncated towards zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder with the sign of b (as Python's %), or with fmod = 1 that of a (as C's)."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Pow", since=7)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Base ** exponent, in the type of base."""
    return torch.pow(base, exponent).to(base.dtype)


@operator("Max", since=8)
def maximum(*values: Tensor) -> Tensor:
    """The largest of all inputs; NaN wins."""
    return reduce(torch.maximum, values)


@operator("Min", since=8)
def minimum(*values: Tensor) -> Tensor:
    """The smallest of all inputs; NaN wins."""
    return reduce(torch.minimum, values)


@operator("Sum", since=8)
def total(*values: Tensor) -> Tensor:
    """The sum of all inputs."""
    return reduce(torch.add, values)


@operator("Mean", since=8)
def mean(*values: Tensor) -> Tensor:
    """The sum of all inputs divided by their number."""
    return reduce(torch.add, values) / len(values)


@operator("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A where the condition holds, else b."""
    return torch.where(condition, a, b)


@operator("Clip", until=10)
def clip_to_attributes(x: Tensor, *, min: float = -math.inf, max: float = math.inf) -> Tensor:
    """The bounds are attributes up to opset 10."""
    return x.clamp(min, max)


@operator("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """min(max(x, low), high): with low above high the upper bound wins, as numpy's clip.

    Bounds that are not learned make a hardtanh, whose gradient takes one pass where clamp's takes
    five: a third of MobileNetV2's step.
    """
    if low is None and high is None:
        return x
    least, most = (math.inf if b is None or b.requires_grad else float(b) for b in (low, high))
    if x.is_floating_point() and -math.inf < least <= most < math.inf:
        return F.hardtanh(x, least, most)
    return torch.clamp(x, low, high)


@operator("BitShift")
def bit_shift(a: Tensor, by: Tensor, *, direction: str) -> Tensor:
    """Logical shift of unsigned integers; torch shifts wide signed ones only, hence the casts."""
    wide, count = a.to(torch.int64), by.to(torch.int64)
    shifted = wide << count if direction == "LEFT" else wide >> count
    return shifted.to(a.dtype)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Infinite, of the signs that are asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_positive:
        found = found | torch.isposinf(x)
    if detect_negative:
        found = found | torch.isneginf(x)
    return found


@operator("Cast")
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """X in another type; floats are truncated to integers. (The last two concern float8.)"""
    return x.to(torch_dtype(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """X in the type of `like`."""
    return x.to(like.dtype)


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    """X itself."""
    return x


@operator("Dropout", since=12)
def dropout(
    x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """X itself, and a mask that is all true. What drops in inference is refused."""
    if training is not None and bool(training):
        raise ValueError("Dropout in training mode")
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("CumSum")
def cumulative_sum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sums along the axis, from its end if `reverse`; `exclusive`: of those before."""
    return _running(torch.cumsum, x, int(axis), exclusive=exclusive, reverse=reverse, start=0)


@operator("CumProd")
def cumulative_product(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running products, as `cumulative_sum`."""
    return _running(torch.cumprod, x, int(axis), exclusive=exclusive, reverse=reverse, start=1)


def _running(
    run: Callable[[Tensor, int], Tensor],
    x: Tensor,
    axis: int,
    *,
    exclusive: int,
    reverse: int,
    start: int,
) -> Tensor:
    if reverse:
        x = x.flip(axis)
    made = run(x, axis).to(x.dtype)
    if exclusive:
        first = torch.full_like(made.narrow(axis, 0, 1), start)
        made = torch.cat([first, made.narrow(axis, 0, made.shape[axis] - 1)], axis)
    return made.flip(axis) if reverse else made


@operator("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Einstein summation; spaces in the equation mean nothing."""
    return torch.einsum(equation.replace(" ", ""), *operands)
