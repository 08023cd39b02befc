"""The block optimiser: rounding and activation steps that keep a block's output.

Minimised over the rounding variables V of the block's weights and the steps s of its activations:

    E_batch[ mean_i w_i (z_i - z_i^float)^2 ] / L0  +  lambda * mean(1 - |2 h(V) - 1|^beta)

with z the block's output on *quantized* inputs, w the Fisher weights (1 for plain squared error;
BRECQ, eq. 10) and L0 the first batches' error at nearest rounding, so that lambda means the same
in every block. beta falls from 20 to 2 after a warm-up, as in AdaRound. lambda outweighs the error
by far, so that gates are decided while others can still answer: with a weak one a longer schedule
ends worse than a short one, and worse than it started (ResNet-20's second unit at 2 bits: 0.0071 at
the start, 0.0095 after 1000 steps with lambda 0.1, 0.0057 after 400 with 300).

Beyond the paper, rounding starts near the result of second-order rounding, and each channel's
weight scale and bias are learned along: both are free when the model runs. In the last steps the
weights are hard, and scales and biases take back what hardening shifted: with short schedules some
gates are still undecided then, and their mean error would otherwise outweigh all the rest.
Each part is a setting of `Reconstruction`; the paper's own schedule is one choice of them.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from onnxbrecq.plan import QuantPlan
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.recon.device import CPU, Rows, placed
from onnxbrecq.recon.problem import BlockData, Decisions, Problem
from onnxbrecq.recon.quantizers import Dropping, LearnedBias, LearnedStep, Pull, SoftRounding
from onnxbrecq.recon.resources import buffers_kept

_SEEN = 64  # samples that tell the energy of each output
_WARM_UP = 0.2  # share of the steps without regularizer, as in the authors' code
_LEAN = 0.9  # how near to its level a weight starts that was rounded with care
_BETA = (20.0, 2.0)
# Activations of 8 bits keep their calibrated step and are not simulated: their error is small
# beside that of weights below 8 bits, and simulating it costs more than the convolutions.
_NOISELESS = 8


class _Quantized(nn.Module):
    """A block with its learned quantizers: weights by initializer name, activations by tensor."""

    def __init__(
        self,
        problem: Problem,
        roundings: Mapping[str, SoftRounding],
        biases: Mapping[str, LearnedBias],
        steps: Mapping[str, LearnedStep],
    ) -> None:
        super().__init__()
        self.problem = problem
        self.roundings = dict(roundings)
        self.biases = dict(biases)
        self.steps = dict(steps)
        self.learned = nn.ModuleList([*roundings.values(), *biases.values(), *steps.values()])

    def forward(self, feed: Mapping[str, Tensor], pull: Pull | None) -> dict[str, Tensor]:
        """The block's outputs with soft weights; `pull` joins the gradient of their rounding."""
        soft = {name: rounding.soft(pull) for name, rounding in self.roundings.items()}
        constants = self.problem.with_others(soft)
        constants.update({name: bias.value() for name, bias in self.biases.items()})
        return self.problem.block.run(feed, constants, self.steps)

    def nearest(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The block's outputs with every weight at its nearest level."""
        weights = {name: rounding.nearest() for name, rounding in self.roundings.items()}
        return self.problem.block.run(feed, self.problem.with_others(weights), self.steps)

    def harden(self) -> None:
        """Fixes every weight at its level."""
        for rounding in self.roundings.values():
            rounding.hard = True
            rounding.rounding.requires_grad_(False)

    def constrain(self) -> None:
        """Keeps every activation step within its bounds."""
        for step in self.steps.values():
            step.constrain()

    def hardened(self) -> Decisions:
        """What was learned."""
        tensors = {name: rounding.hardened() for name, rounding in self.roundings.items()}
        tensors.update({name: step.hardened() for name, step in self.steps.items()})
        return Decisions(tensors, {name: bias.hardened() for name, bias in self.biases.items()})


def reconstruct(problem: Problem, data: BlockData, recipe: Recipe, seed: int) -> Decisions:
    """The learned decisions of one block: its weights' levels, its activations' steps, its biases.

    Args:
        problem: the block, and how its tensors are quantized so far.
        data: what to learn from.
        recipe: steps, batch size, learning rates.
        seed: of batches and dropping.
    """
    settings = recipe.settings()
    generator = torch.Generator().manual_seed(seed)
    dropping = Dropping(settings.drop, generator)
    lean = _LEAN if settings.start == "second-order" else 0.0
    model = _quantized(problem, dropping, lean).to(problem.device)
    optimizer = _optimizer(model, settings)
    source = _Source(data, generator, problem.device)
    batch_size = (
        1 if problem.alone else settings.samples_a_step(_places(problem, data), problem.macs)
    )
    iterations = steps(problem, settings)
    soft = round((1 - settings.settle) * iterations)
    input_dropping = dropping if _coarse(data.inputs, problem.plan) else None
    half = _coarse(problem.constants, problem.plan) and _fast_bfloat16(problem.device)
    with buffers_kept(), placed(problem.block, problem.device):
        unit, weight = _balance(model, source, batch_size, settings)
        model.train()
        for i in range(iterations):
            if i == soft:
                model.harden()
                dropping.settle()
            feed, targets = source.batch(batch_size, input_dropping)
            with torch.autocast(problem.device.type, torch.bfloat16) if half else nullcontext():
                outputs = model(feed, _pull(weight, i / max(soft, 1)))
            loss = source.error(outputs, targets) / unit
            if not loss.requires_grad:  # once the weights are hard, nothing may be left to learn
                break
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            model.constrain()
    return model.hardened()


def steps(problem: Problem, settings: Reconstruction) -> int:
    """Optimiser steps for the block."""
    return settings.steps(coarse=_coarse((*problem.constants, *problem.heads), problem.plan))


def _places(problem: Problem, data: BlockData) -> int:
    """Of the block's largest output."""
    nodes = [node.name for node in problem.nodes]
    return max(problem.points.places(nodes, target.shape) for target in data.targets.values())


def _coarse(names: Iterable[str], plan: QuantPlan) -> bool:
    """Whether any of the tensors is quantized to fewer than 8 bits."""
    found = [plan.tensors[name].qtype.bits for name in names if name in plan.tensors]
    return any(bits < _NOISELESS for bits in found)


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; then a step takes half the time.

    Its rounding (relative 2**-8) is far below the error of weights with fewer than 8 bits.
    """
    if device != CPU:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


def _quantized(problem: Problem, dropping: Dropping, lean: float) -> _Quantized:
    """The block with quantizers in their starting state."""
    plan, points, constants = problem.plan, problem.points.points, problem.constants
    return _Quantized(
        problem,
        {
            name: SoftRounding(torch.from_numpy(np.array(value)), plan.tensors[name], lean)
            for name, value in constants.items()
            if name in plan.tensors
        },
        _biases(problem),
        {
            name: LearnedStep(plan.tensors[name], points[name].ceiling, dropping)
            for name in problem.heads
            if _coarse([name], plan)
        },
    )


def _biases(problem: Problem) -> dict[str, LearnedBias]:
    """The biases of the layers whose weight is rounded."""
    plan, constants, found = problem.plan, problem.constants, {}
    for layer in problem.points.layers.values():
        if layer.bias is None or layer.bias not in constants:
            continue
        if layer.weight in plan.tensors:
            data = plan.tensors.get(layer.data)
            reach = 1.0 if data is None else float(data.scale) * data.qtype.levels / 4
            weight = plan.tensors[layer.weight]
            found[layer.bias] = LearnedBias(constants[layer.bias], weight, reach)
    return found


def _optimizer(model: _Quantized, settings: Reconstruction) -> torch.optim.Optimizer:
    groups = [
        {"params": [r.rounding for r in model.roundings.values()], "lr": settings.rounding_rate},
        {"params": [r.gain for r in model.roundings.values()], "lr": settings.scale_rate},
        {"params": [b.shift for b in model.biases.values()], "lr": settings.bias_rate},
        {"params": [s.log_ratio for s in model.steps.values()], "lr": settings.step_rate},
    ]
    for group in groups:
        for parameter in group["params"] if group["lr"] == 0 else ():  # type: ignore[attr-defined]
            parameter.requires_grad_(False)
    return torch.optim.Adam([group for group in groups if group["params"]], fused=True)


class _Source:
    """Random batches of a block's data, and the weighted error on them."""

    def __init__(self, data: BlockData, generator: torch.Generator, device: torch.device) -> None:
        self._count = len(data)
        self._inputs, self._float_inputs, self._targets = (
            Rows(samples, device) for samples in (data.inputs, data.float_inputs, data.targets)
        )
        self._weights = {n: torch.from_numpy(a).to(device) for n, a in data.weights.items()}
        self._generator = generator
        self._shares = {} if self._weights else self._equal_shares()

    def _equal_shares(self) -> dict[str, float]:
        """Of each output the factor that makes its energy that of the others; 1 if it is alone."""
        few = self._targets.at(np.arange(min(self._count, _SEEN)))
        energies = {name: float(target.square().mean()) for name, target in few.items()}
        known = [energy for energy in energies.values() if energy > 0]
        mean = sum(known) / max(len(known), 1)
        return {name: mean / energy for name, energy in energies.items() if energy > 0}

    def batch(
        self, size: int, dropping: Dropping | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs and targets of `size` random samples; some of the inputs' values are float."""
        draws = torch.randint(self._count, (size,), generator=self._generator, device="cpu")
        index = draws.numpy()
        feed = self._inputs.at(index)
        for name, value in feed.items() if dropping else ():
            passes = dropping.mask(value) if value.is_floating_point() else None  # type: ignore[union-attr]
            if passes is not None:
                feed[name] = torch.lerp(value, self._float_inputs.of(name, index), passes)
        return feed, self._targets.at(index)

    def error(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Mean weighted squared error, summed over the outputs; without weights all count alike."""
        terms = []
        for name, target in targets.items():
            square = (outputs[name].float() - target).square()
            weighted = square * self._weights[name] if name in self._weights else square
            terms.append(weighted.mean() * self._shares.get(name, 1.0))
        return torch.stack(terms).sum()


def _balance(
    model: _Quantized, source: _Source, batch_size: int, settings: Reconstruction
) -> tuple[float, float]:
    """What the error is divided by, and the weight of each element's regularizer.

    Relative: the error at the start, over a few batches, and the regularizer's mean. Absolute, as
    in the authors' code: the error is summed over channels, the regularizer over weights.
    """
    if settings.regularizer == "absolute":
        channels = max(len(target[0]) for target in source.batch(1)[1].values())
        return 1 / channels, settings.regularization
    weights = sum(rounding.rounding.numel() for rounding in model.roundings.values())
    model.eval()
    total = 0.0
    with torch.no_grad():
        for _ in range(4):
            feed, targets = source.batch(batch_size)
            total += float(source.error(model.nearest(feed), targets))
    return max(total / 4, 1e-12), settings.regularization / max(weights, 1)


def _pull(weight: float, progress: float) -> Pull | None:
    """The regularizer `weight` * sum(1 - |2 h - 1|**beta), beta falling; none in the warm-up."""
    if progress < _WARM_UP or progress >= 1:
        return None
    share = (progress - _WARM_UP) / (1 - _WARM_UP)
    return Pull(_BETA[1] + (_BETA[0] - _BETA[1]) * (1 - share), weight)
