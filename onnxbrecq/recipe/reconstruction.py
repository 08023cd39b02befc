"""How blocks are learned: each part of it a setting, each effort a choice of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe.checks import one_of

Effort = Literal["fast", "balanced", "best", "paper"]

EFFORTS = ("fast", "balanced", "best", "paper")
DEFAULT_EFFORT: Effort = "balanced"


@dataclass(frozen=True)
class Reconstruction:
    """How blocks are learned; the defaults are those of `balanced`.

    Attributes:
        start: what rounding starts from: second-order rounding, or each weight's nearest level.
        iterations: optimiser steps per block; 0: none, the start is the result.
        trials: how often a block is learned, each time with a third of the rounding rate before;
            what is best on the samples that judge is kept.
        batch_size: samples a step, at most.
        batch_places: places of a feature map, or tokens, a step: of large maps as few samples, at
            least four, as have so many; 0: as many as there are.
        batch_macs: multiply-accumulates of the float block a step: of samples that take many as
            few, at least one; 0: as many as it takes.
        rounding_rate: learning rate of the rounding variables.
        scale_rate: learning rate of the weight scales, relative to each; 0: they stay.
        bias_rate: learning rate of the biases, relative to the rounding error; 0: they stay.
        step_rate: learning rate of the activation steps below 8 bits, relative to each.
        settle: share of the steps, the last, in which the weights are hard and the rest goes on.
        loss: squared error, or squared error weighted by the Fisher information.
        regularizer: whether the term that drives rounding to 0 or 1 is relative to the block's
            starting error, or absolute as in the paper.
        regularization: its weight (paper: lambda).
        drop: share of the values that pass unquantized while activations below 8 bits learn
            (QDrop, Wei et al., ICLR 2022); with 1 they are quantized only while the block settles.
            0 by default: where blocks learn on what the quantized blocks before deliver, half
            dropped was no better (ResNet-20: W4A4 17.9 dB for 17.95, W2A4 13.8 for 14.0).
        step_search: whether activation steps are tried finer and coarser on the deployed block.
    """

    start: Literal["second-order", "nearest"] = "second-order"
    iterations: int = 400
    trials: int = 1
    batch_size: int = 16
    batch_places: int = 1 << 14
    batch_macs: float = 1.25e9
    rounding_rate: float = 0.1
    scale_rate: float = 3e-3
    bias_rate: float = 3e-2
    step_rate: float = 1e-3
    settle: float = 0.15
    loss: Literal["mse", "fisher"] = "mse"
    regularizer: Literal["relative", "absolute"] = "relative"
    regularization: float = 300.0
    drop: float = 0.0
    step_search: bool = True

    def __post_init__(self) -> None:
        one_of("reconstruction.start", self.start, ("second-order", "nearest"))
        one_of("reconstruction.loss", self.loss, ("mse", "fisher"))
        one_of("reconstruction.regularizer", self.regularizer, ("relative", "absolute"))
        for key, (least, most) in _BOUNDS.items():
            value = getattr(self, key)
            if not least <= value <= most:
                raise RecipeError(f"reconstruction.{key} = {value}: want {least} to {most:g}")

    def steps(self, *, coarse: bool) -> int:
        """Optimiser steps for a block; where all is 8 bits, a quarter: little is left to learn."""
        return self.iterations if coarse else -(-self.iterations // 4)

    def samples_a_step(self, places: int, macs: int) -> int:
        """The fewer, the more places, or work, each has.

        Of places each gives a gradient: on the first unit of MobileNetV2 (112 x 112, 2 bits) 4
        samples a step end where 16 do, in a quarter of the time. Fewer cost 0.1 to 0.3 dB on
        smaller maps (W2A4, three networks), which is only worth it where a step takes long: of an
        MLP of ViT-B (4 bits, 400 steps) one sample leaves 6 % more error than two, in 0.6 of the
        time; 200 steps of two as much. Its attention ends alike with two, four and seven.
        """
        most = self.batch_size
        if self.batch_places:
            most = min(most, max(-(-self.batch_places // places), _FEWEST))
        if self.batch_macs and macs:
            most = min(most, max(int(min(self.batch_macs / macs, most)), 1))
        return most


_FEWEST = 4  # samples a step
_BOUNDS = {
    **dict.fromkeys(("trials", "batch_size"), (1, math.inf)),
    **dict.fromkeys(
        ("iterations", "batch_places", "batch_macs", "rounding_rate", "scale_rate", "bias_rate",
         "step_rate", "regularization"), (0, math.inf),
    ),
    **dict.fromkeys(("settle", "drop"), (0, 1)),
}  # fmt: skip

# `paper` is BRECQ's schedule as its authors published it: 20 000 steps for rounding, activations in
# float, then 5000 for the steps of activations.
SETTINGS: Mapping[Effort, Reconstruction] = {
    "fast": Reconstruction(iterations=0),
    "balanced": Reconstruction(),
    "best": Reconstruction(iterations=2000, trials=2, batch_size=32, batch_macs=0),
    "paper": Reconstruction(
        start="nearest", iterations=25_000, batch_size=32, batch_places=0, batch_macs=0,
        rounding_rate=1e-3, scale_rate=0.0, bias_rate=0.0, step_rate=4e-4, settle=0.2,
        loss="fisher", regularizer="absolute", regularization=0.01, drop=1.0, step_search=False,
    ),
}  # fmt: skip
