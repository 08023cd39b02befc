"""The quantizers that are learned, as torch modules; the formula is `onnxbrecq.affine`'s.

Weights follow AdaRound (Nagel et al., ICML 2020, eq. 21-24): with b = floor((w/s + o) / step) the
soft level of a weight is

    clip(b + h(V), 0, L - 1),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

and the regularizer sum 1 - |2 h(V) - 1|^beta drives every h to 0 or 1. Activations follow LSQ
(Esser et al., ICLR 2020): the step is learned through a straight-through rounding.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxbrecq import affine
from onnxbrecq.plan import TensorQuant

_ZETA, _GAMMA = 1.1, -0.1  # stretch of the sigmoid, AdaRound eq. 23
_LEAST = torch.finfo(torch.float32).tiny
_PLACES = 1 << 16  # from which a mask may start


class Pull(NamedTuple):
    """The regularizer of one weight's gates: weight * sum(1 - |2 h - 1|**beta)."""

    beta: float
    weight: float


class SoftRounding(nn.Module):
    """A weight whose rounding is learned."""

    floor: Tensor
    start: Tensor
    offset: Tensor

    def __init__(self, weight: Tensor, quant: TensorQuant, lean: float = 0.0) -> None:
        """Starts between the float `weight` (`lean` 0) and its levels in `quant` (`lean` 1).

        Each weight has two levels to choose from: its present one, and the next towards `weight`.
        """
        super().__init__()
        self._quant = quant
        self._shape = tuple(weight.shape)
        offsets = affine.offsets(quant.qtype, quant.zero_point)
        offset = torch.from_numpy(affine.along(offsets, quant, self._shape).astype(np.float32))
        scale = torch.from_numpy(affine.along(quant.scale, quant, self._shape).copy())
        top = quant.qtype.levels - 1
        level = ((weight / scale + offset) / quant.qtype.step).clamp_(0, top)
        assert quant.levels is not None
        chosen = torch.from_numpy(quant.levels.astype(np.float32))
        floor = torch.where(level >= chosen, chosen, chosen - 1).clamp_(0, top - 1)
        level = torch.lerp(level, chosen, lean)
        rest = (level - floor).clamp(0.01, 0.99)
        self.register_buffer("floor", floor)
        start = scale if quant.block_size is None else torch.from_numpy(quant.scale.copy())
        self.register_buffer("start", start)
        self.gain = nn.Parameter(torch.zeros_like(start))
        self.hard = False
        self.register_buffer("offset", offset)
        self.rounding = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1))

    def soft(self, pull: Pull | None = None) -> Tensor:
        """The weight at its soft levels; once hard, at those that it ended nearest to.

        The gradient of the rounding variables is that of the weight, and what `pull` adds.
        """
        if self.hard:
            return self._at(self.floor + (self.rounding.detach() >= 0))
        made: Tensor = _SoftWeight.apply(  # type: ignore[no-untyped-call]
            self.rounding, self._along(), self.floor, self.offset, self._quant.qtype.step, pull
        )
        return made

    def gate(self) -> Tensor:
        """h(V): how far each weight leans to its upper level, in [0, 1]."""
        return (torch.sigmoid(self.rounding) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def scale(self) -> Tensor:
        """The step of each channel or block, as learned so far."""
        return self.start * torch.exp(self.gain)

    def _along(self) -> Tensor:
        """The steps as they broadcast to the weight (`affine.along`)."""
        scale, size, axis = self.scale(), self._quant.block_size, self._quant.axis
        if size is None or axis is None:
            return scale
        inputs = 1 - axis
        wide = [size if i == inputs + 1 else -1 for i in range(3)]
        spread = scale.unsqueeze(inputs + 1).expand(*wide).flatten(inputs, inputs + 1)
        return spread.narrow(inputs, 0, self._shape[inputs])

    def nearest(self) -> Tensor:
        """The weight with each element at its nearest level; the start of the search."""
        return self._at(self.floor + (self.rounding >= 0))

    def hardened(self) -> TensorQuant:
        """The decision: each weight at its nearer level."""
        with torch.no_grad():
            level = self.floor + (self.rounding >= 0)
            scale = self.scale().reshape(self._quant.scale.shape)
        return dataclasses.replace(
            self._quant, levels=level.to(torch.uint8).cpu().numpy(), scale=scale.cpu().numpy()
        )

    def _at(self, level: Tensor) -> Tensor:
        return self._along() * (level * self._quant.qtype.step - self.offset)


class _SoftWeight(torch.autograd.Function):
    """scale * (step * (floor + h(V)) - offset), its gradient in as few passes as there can be.

    With u = 2 h(V) - 1 before the clip, h'(V) is 1.2 s (1 - s) where |u| < 1, s the sigmoid; the
    regularizer c (1 - |u|^beta) adds -2 c beta u |u|^(beta - 2) h'(V).
    """

    @staticmethod
    def forward(  # noqa: PLR0917 -- torch's own interface
        ctx: Any,
        rounding: Tensor,
        scale: Tensor,
        floor: Tensor,
        offset: Tensor,
        step: int,
        pull: Pull | None,
    ) -> Tensor:
        sigmoid = torch.sigmoid(rounding)
        codes = (sigmoid * (_ZETA - _GAMMA)).add_(_GAMMA).clamp_(0, 1).add_(floor)
        codes = codes.mul_(step).sub_(offset)
        ctx.save_for_backward(sigmoid, codes, scale)
        ctx.step, ctx.pull = step, pull
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        sigmoid, codes, scale = ctx.saved_tensors
        (gradient,) = gradients
        of_scale = (gradient * codes).sum_to_size(scale.shape)
        lean = (sigmoid * (2 * (_ZETA - _GAMMA))).add_(2 * _GAMMA - 1)  # u
        slope = gradient * (scale * (ctx.step * (_ZETA - _GAMMA)))
        if ctx.pull is not None:
            beta, weight = ctx.pull
            # |u|^(beta - 2); torch's own pow takes twice as long.
            power = lean.abs().clamp_(min=_LEAST).log2_().mul_(beta - 2).exp2_()
            slope.addcmul_(lean, power, value=-2 * (_ZETA - _GAMMA) * beta * weight)
        slope = torch.ops.aten.sigmoid_backward(slope, sigmoid)
        slope = torch.ops.aten.hardtanh_backward(slope, lean, -1, 1)
        return slope, of_scale, None, None, None, None


class LearnedBias(nn.Module):
    """A bias that follows what rounding shifts; in units of the layer's own rounding error."""

    unit: Tensor
    start: Tensor

    def __init__(self, bias: NDArray[np.float32], weight: TensorQuant, reach: float) -> None:
        """Starts at `bias` [C].

        A weight's rounding error has a standard deviation of about scale / 4; over the K terms
        of an output and data of magnitude `reach` it adds up to sqrt(K) * scale / 4 * reach.
        """
        super().__init__()
        assert weight.levels is not None
        terms = weight.levels.size / len(bias)
        scale = affine.channel_scale(weight)
        # (A group of a ConvTranspose has as many scales as channels, the same for all groups.)
        unit = np.resize(scale * math.sqrt(terms) / 4 * reach, bias.shape)
        self.register_buffer("start", torch.from_numpy(np.array(bias, np.float32)))
        self.register_buffer("unit", torch.from_numpy(np.array(unit, np.float32)))
        self.shift = nn.Parameter(torch.zeros(len(bias)))

    def value(self) -> Tensor:
        """The bias [C]."""
        return self.start + self.unit * self.shift

    def hardened(self) -> NDArray[np.float32]:
        """The decision."""
        with torch.no_grad():
            return self.value().cpu().numpy().copy()


class LearnedStep(nn.Module):
    """An activation quantizer whose step is learned; the zero point stays.

    The step is s0 * exp(t), so that one learning rate suits every tensor; with a `ceiling`,
    (L - 1) * s never exceeds it (the quantizer stands for a Clip there).
    """

    def __init__(
        self, quant: TensorQuant, ceiling: float | None, dropping: "Dropping | None" = None
    ) -> None:
        """Starts from the step of `quant`; `dropping` serves training only."""
        super().__init__()
        self._dropping = dropping
        self._quant = quant
        self._start = float(quant.scale)
        self._zero = int(affine.offsets(quant.qtype, quant.zero_point))
        self._top = quant.qtype.levels - 1
        self._ceiling = ceiling
        self._most = math.inf
        if ceiling is not None and quant.qtype.grid != "signed":  # as `affine.rescaled`
            self._most = math.log(ceiling / self._top / self._start)
        self.log_ratio = nn.Parameter(torch.zeros(()))

    def forward(self, value: Tensor) -> Tensor:
        """`value` on the quantizer's grid; while training, some of it passes as it is."""
        scale = self._start * torch.exp(self.log_ratio)
        passes = self._dropping.mask(value) if self.training and self._dropping else None
        made: Tensor = _FakeQuantize.apply(value, scale, passes, self._zero, self._top)  # type: ignore[no-untyped-call]
        return made

    def constrain(self) -> None:
        """Brings the step back under the ceiling; to be called after each optimiser step."""
        with torch.no_grad():
            self.log_ratio.clamp_(max=self._most)

    def hardened(self) -> TensorQuant:
        """The decision with the learned step."""
        return affine.rescaled(self._quant, math.exp(self.log_ratio.item()), self._ceiling)


class Dropping:
    """Which values pass unquantized while activations learn (QDrop, Wei et al., ICLR 2022).

    Drawing a number for each value costs more than a convolution; so a long row of draws is made
    once, and each mask is a piece of it from a random place.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        """A `share` of all values passes."""
        self._share = share
        self._generator = generator
        self._draws = torch.empty(0)

    def settle(self) -> None:
        """From now on the values that activations will have count, where none had so far."""
        self._share = 0.0 if self._share == 1 else self._share

    def mask(self, like: Tensor) -> Tensor | None:
        """1 where a value passes, else 0: shape, layout and type of `like`; None: none passes."""
        if self._share == 0:
            return None
        if len(self._draws) < like.numel() + _PLACES:
            count = like.numel() + _PLACES
            draws = torch.rand(count, generator=self._generator, device="cpu")
            self._draws = (draws < self._share).to(like.device, torch.float32)
        start = int(torch.randint(_PLACES, (1,), generator=self._generator, device="cpu"))
        layout = torch.empty_like(like, device="meta").stride()
        return self._draws.as_strided(like.shape, layout, start).to(like.dtype)


class _FakeQuantize(torch.autograd.Function):
    """s * clip(round(x / s), -z, top - z), with LSQ's gradients for x and s.

    Only operations on floats: torch's on booleans (where, comparisons) take 5 to 40 times as long.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 -- torch's own interface
        ctx: Any, value: Tensor, scale: Tensor, passes: Tensor | None, zero: int, top: int
    ) -> Tensor:
        ratio = value / scale
        code = ratio.round().clamp_(-zero, top - zero)
        ctx.save_for_backward(ratio, code, passes)
        ctx.inside = (-zero - 0.5, top - zero + 0.5)
        made = code * scale
        return made if passes is None else made.lerp_(value, passes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        ratio, code, passes = ctx.saved_tensors
        (gradient,) = gradients
        kept = gradient
        if passes is not None:
            kept = torch.addcmul(gradient, gradient, passes, value=-1)
        straight = torch.ops.aten.hardtanh_backward(kept, ratio, *ctx.inside)
        # d/ds = code - x/s inside the range, code outside (LSQ, eq. 3).
        of_scale = _inner(kept, code) - _inner(straight, ratio)
        if passes is not None:
            straight.addcmul_(gradient, passes)
        return straight, of_scale, None, None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of all products, float32."""
    if a.dtype == b.dtype == torch.float32 and a.stride() == b.stride() and _dense(a):
        return torch.dot(*(t.as_strided((t.numel(),), (1,)) for t in (a, b)))
    return (a * b).sum(dtype=torch.float32)


def _dense(value: Tensor) -> bool:
    """Whether the tensor's elements fill one piece of memory, in whatever order."""
    return value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
