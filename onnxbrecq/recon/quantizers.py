"""The quantizers that are learned, as torch modules; the formula is `onnxbrecq.affine`'s.

Weights follow AdaRound (Nagel et al., ICML 2020, eq. 21-24): with b = floor((w/s + o) / step) the
soft level of a weight is

    clip(b + h(V), 0, L - 1),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

and the regularizer sum 1 - |2 h(V) - 1|^beta drives every h to 0 or 1. Activations follow LSQ
(Esser et al., ICLR 2020): the step is learned through a straight-through rounding.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxbrecq import affine
from onnxbrecq.plan import TensorQuant

_ZETA, _GAMMA = 1.1, -0.1  # stretch of the sigmoid, AdaRound eq. 23


class SoftRounding(nn.Module):
    """A weight whose rounding is learned."""

    floor: Tensor
    start: Tensor
    offset: Tensor

    def __init__(self, weight: Tensor, quant: TensorQuant) -> None:
        """Starts at the float `weight` itself, on the grid of `quant`."""
        super().__init__()
        self._quant = quant
        ndim = weight.ndim
        scale = torch.from_numpy(affine.along(quant.scale, quant.axis, ndim).copy())
        offsets = affine.offsets(quant.qtype, quant.zero_point)
        offset = torch.from_numpy(affine.along(offsets, quant.axis, ndim).astype(np.float32))
        level = (weight / scale + offset) / quant.qtype.step
        floor = torch.floor(level)
        rest = (level - floor).clamp(0.01, 0.99)
        self.register_buffer("floor", floor)
        self.register_buffer("start", scale)
        self.gain = nn.Parameter(torch.zeros_like(scale))
        self.hard = False
        self.register_buffer("offset", offset)
        # h(V) equals the fractional part at the start: the soft weight is the float weight.
        self.rounding = nn.Parameter(-torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1))

    def gate(self) -> Tensor:
        """h(V): how far each weight leans to its upper level, in [0, 1]; once hard, 0 or 1."""
        if self.hard:
            return (self.rounding.detach() >= 0).float()
        return (torch.sigmoid(self.rounding) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def soft(self) -> tuple[Tensor, Tensor]:
        """The soft weight, and h(V)."""
        gate = self.gate()
        level = (self.floor + gate).clamp(0, self._quant.qtype.levels - 1)
        return self.scale() * (level * self._quant.qtype.step - self.offset), gate

    def scale(self) -> Tensor:
        """The step of each channel, as learned so far."""
        return self.start * torch.exp(self.gain)

    def nearest(self) -> Tensor:
        """The weight with each element at its nearest level; the start of the search."""
        level = self.floor + (self.gate() >= 0.5)
        level = level.clamp(0, self._quant.qtype.levels - 1)
        return self.scale() * (level * self._quant.qtype.step - self.offset)

    def hardened(self) -> TensorQuant:
        """The decision: each weight at its nearer level."""
        with torch.no_grad():
            level = self.floor + (self.rounding >= 0)
            level = level.clamp(0, self._quant.qtype.levels - 1)
            scale = self.scale().reshape(self._quant.scale.shape)
        return dataclasses.replace(
            self._quant, levels=level.to(torch.uint8).cpu().numpy(), scale=scale.cpu().numpy()
        )


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
        unit = np.broadcast_to(weight.scale * math.sqrt(terms) / 4 * reach, bias.shape)
        self.register_buffer("start", torch.from_numpy(np.array(bias, np.float32)))
        self.register_buffer("unit", torch.from_numpy(np.array(unit, np.float32)))
        self.shift = nn.Parameter(torch.zeros(len(bias)))

    def value(self) -> Tensor:
        """The bias [C]."""
        return self.start + self.unit * self.shift

    def hardened(self) -> NDArray[np.float32]:
        """The decision."""
        with torch.no_grad():
            return self.value().numpy().copy()


class LearnedStep(nn.Module):
    """An activation quantizer whose step is learned; the zero point stays.

    The step is s0 * exp(t), so that one learning rate suits every tensor; with a `ceiling`,
    (L - 1) * s never exceeds it (the quantizer stands for a Clip there).
    """

    def __init__(
        self,
        quant: TensorQuant,
        ceiling: float | None,
        *,
        drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Starts from the step of `quant`; `drop` and its `generator` serve training only."""
        super().__init__()
        self._generator = generator
        self._quant = quant
        self._start = float(quant.scale)
        self._zero = int(quant.zero_point)
        self._top = quant.qtype.levels - 1
        self._ceiling = ceiling
        self._most = math.inf if ceiling is None else math.log(ceiling / self._top / self._start)
        self._drop = drop
        self.log_ratio = nn.Parameter(torch.zeros(()))

    def forward(self, value: Tensor) -> Tensor:
        """`value` on the quantizer's grid; while training, a share `drop` of it passes as is."""
        scale = self._start * torch.exp(self.log_ratio)
        quantized: Tensor = _FakeQuantize.apply(value, scale, self._zero, self._top)  # type: ignore[no-untyped-call]
        if self.training and self._drop > 0:
            keep = torch.rand(value.shape, generator=self._generator) < self._drop
            return torch.where(keep, value, quantized)
        return quantized

    def constrain(self) -> None:
        """Brings the step back under the ceiling; to be called after each optimiser step."""
        with torch.no_grad():
            self.log_ratio.clamp_(max=self._most)

    def hardened(self) -> TensorQuant:
        """The decision with the learned step."""
        return affine.rescaled(self._quant, math.exp(self.log_ratio.item()), self._ceiling)


class _FakeQuantize(torch.autograd.Function):
    """s * clip(round(x / s), -z, top - z), with LSQ's gradients for x and s."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, zero: int, top: int) -> Tensor:
        ratio = value / scale
        rounded = torch.round(ratio)
        code = rounded.clamp(-zero, top - zero)
        inside = code == rounded
        # d/ds = code - x/s inside the range, code outside (LSQ, eq. 3).
        ctx.save_for_backward(torch.where(inside, code - ratio, code), inside)
        return code * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slope, inside = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * inside, (slope * gradient).sum(), None, None
