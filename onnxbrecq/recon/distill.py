"""Samples distilled from a network: what its own normalisations and outputs say of its data.

The network is run in torch, block after block, and the samples x of a batch are moved down the
gradient of

    mean_l mean_c [ ((m_lc - beta_lc) / sigma_lc)^2 + (s_lc / sigma_lc - 1)^2 ]          norms
    + a * ( mean_n H(p_n) - H(mean_n p_n) )                                             outputs
    + b * mean |x_i - x_j| over neighbouring places i, j                                 variation

m and s are mean and deviation of channel c over the batch at the output of normalisation l, beta
and sigma = |gamma| what the file says of them: the statistics of the training data (ZeroQ, Cai et
al., CVPR 2020; BRECQ distils its data so). Where none are in the file, or they were folded by
whoever exported it, the outputs are left: each prediction p_n sure of itself, all of them unlike
each other (DAFL, Chen et al., ICCV 2019). A gain and an offset of each channel are learned along
with the values: they are the preprocessing, which nobody has told.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq.graph.model import Norm
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recon.bridge import Hook, TorchBlock
from onnxbrecq.recon.device import CPU, placed
from onnxbrecq.recon.resources import buffers_kept

Arrays = Mapping[str, NDArray[Any]]

_RATE = 0.1  # of the values, whose deviation is 1 at the start,
_SCALE_RATE = 0.05  # of the gains and offsets
_OUTPUTS = {True: 0.1, False: 0.3}  # a, beside norms and alone
_VARIATION = {True: 0.01, False: 0.1}  # b, likewise
_LEAST = 0.1  # of the mean sigma of a layer: narrower channels count as if they had it
_IMAGE = 4  # dimensions of a feature map
_COLOURS = (1, 3)  # channels of an image


def channel_axis(shape: Sequence[int | None]) -> int:
    """Where the channels of samples [N, ...] are: the last axis if they are images there only."""
    last = len(shape) == _IMAGE and shape[1] not in _COLOURS and shape[3] in _COLOURS
    return len(shape) - 1 if last else min(1, len(shape) - 1)


@dataclass(frozen=True)
class Source:
    """What is distilled from.

    Attributes:
        blocks: of the network in order of execution; None stands for one that torch cannot run, and
            what comes behind it tells nothing.
        norms: tensor name → statistics of its channels.
        scores: name of an output that holds the scores of classes [N, C], or None.
    """

    blocks: Sequence[TorchBlock | None]
    norms: Mapping[str, Norm]
    scores: str | None


@dataclass(frozen=True)
class Distilled:
    """The samples, and the loss of the first and of the last step (mean over the batches)."""

    samples: Mapping[str, NDArray[np.float32]]
    loss_before: float
    loss_after: float


def distill(
    source: Source,
    start: Arrays,
    *,
    steps: int,
    batch: int,
    device: torch.device = CPU,
    progress: Progress = silent,
) -> Distilled:
    """The samples of `start` after `steps` steps of Adam; integers stay as they are.

    Args:
        source: the network.
        start: graph input → [N, ...]; floats with mean 0 and deviation 1, times a scale.
        steps: of each batch.
        batch: samples whose statistics are taken together.
        device: where it is done.
        progress: told of each step.
    """
    count = len(next(iter(start.values())))
    made: list[dict[str, Tensor]] = []
    before, after = [], []
    starts = range(0, count, batch)
    with buffers_kept():
        for number, first in enumerate(starts):
            one = _Batch(source, {n: a[first : first + batch] for n, a in start.items()}, device)
            for step in range(steps):
                loss = one.step(0.5 + 0.5 * math.cos(math.pi * step / steps))
                if step == 0:
                    before.append(loss)
                progress("distill", number * steps + step + 1, len(starts) * steps)
            after += [loss] if steps else []
            made.append(one.values())
    samples = {name: torch.cat([part[name] for part in made]).numpy() for name in start}
    return Distilled(samples, sum(before) / len(starts), sum(after) / len(starts))


class _Batch:
    """Samples that are learned together."""

    def __init__(self, source: Source, start: Arrays, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._fixed: dict[str, Tensor] = {}
        self._learned: dict[str, tuple[Tensor, Tensor, Tensor, float]] = {}
        values, scales = [], []
        for name, array in start.items():
            tensor = torch.from_numpy(np.array(array)).to(device)
            if not tensor.is_floating_point():
                self._fixed[name] = tensor
                continue
            unit = max(float(tensor.std()), torch.finfo(torch.float32).tiny)
            axis = channel_axis(tensor.shape)
            shape = [size if i == axis else 1 for i, size in enumerate(tensor.shape)]
            value = (tensor / unit).requires_grad_()
            gain = torch.ones(shape, device=device).requires_grad_()
            offset = torch.zeros(shape, device=device).requires_grad_()
            self._learned[name] = (value, gain, offset, unit)
            values.append(value)
            scales += [gain, offset]
        self._optimiser = torch.optim.Adam(
            [{"params": values, "lr": _RATE}, {"params": scales, "lr": _SCALE_RATE}]
        )
        self._rates = [group["lr"] for group in self._optimiser.param_groups]

    def values(self) -> dict[str, Tensor]:
        """The samples as they are now."""
        with torch.no_grad():
            return {name: value.to(CPU) for name, value in self._feed().items()}

    def step(self, rate: float) -> float:
        """One step at that share of the rates; the loss in front of it."""
        for group, usual in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = usual * rate
        self._optimiser.zero_grad()
        loss = self._loss()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        return float(loss.detach())

    def _feed(self) -> dict[str, Tensor]:
        made = {
            name: (value * gain + offset) * unit
            for name, (value, gain, offset, unit) in self._learned.items()
        }
        return {**made, **self._fixed}

    def _loss(self) -> Tensor:
        source, feed = self._source, self._feed()
        terms: list[Tensor] = []
        hooks = {name: _watching(norm, terms) for name, norm in source.norms.items()}
        scores = _run(source, feed, hooks, self._device)
        known = bool(terms)
        loss = torch.stack(terms).mean() if known else torch.zeros((), device=self._device)
        if scores is not None:
            loss = loss + _OUTPUTS[known] * _indecision(scores)
        for value, *_ in self._learned.values():
            if value.ndim == _IMAGE:
                loss = loss + _VARIATION[known] * _variation(value)
        return loss


def _run(
    source: Source, feed: Mapping[str, Tensor], hooks: Mapping[str, Hook], device: torch.device
) -> Tensor | None:
    """The scores of classes, if the run gets that far; hooks see what is on the way."""
    values = dict(feed)
    for block in source.blocks:
        if block is None or any(name not in values for name in block.inputs):
            break
        with placed(block, device):
            values.update(block.run({n: values[n] for n in block.inputs}, hooks=hooks))
    return values.get(source.scores) if source.scores is not None else None


def _watching(norm: Norm, terms: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A hook that appends how far a tensor's statistics are from the norm."""

    def watch(values: Tensor) -> Tensor:
        terms.append(_distance(values, norm))
        return values

    return watch


def _distance(values: Tensor, norm: Norm) -> Tensor:
    """Of the channels' means and deviations, in deviations of the norm; mean over channels."""
    mean, sigma = (torch.from_numpy(v).to(values.device) for v in (norm.mean, norm.std))
    sigma = sigma.clamp(min=max(_LEAST * float(sigma.mean()), torch.finfo(sigma.dtype).tiny))
    axes = [axis for axis in range(values.ndim) if axis != 1]
    seen = values.mean(axes)
    spread = (values.var(axes, correction=0) + torch.finfo(values.dtype).tiny).sqrt()
    return (((seen - mean) / sigma).square() + (spread / sigma - 1).square()).mean()


def _indecision(scores: Tensor) -> Tensor:
    """Mean entropy of the predictions less the entropy of their mean, in nats; at best -log C."""
    tiny = torch.finfo(scores.dtype).tiny
    sums = scores.sum(dim=-1)
    if bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        logs = (scores + tiny).log()  # probabilities already
    else:
        logs = scores.log_softmax(dim=-1)
    single = -(logs.exp() * logs).sum(dim=-1).mean()
    mean = logs.exp().mean(dim=0)
    return single + (mean * (mean + tiny).log()).sum()


def _variation(values: Tensor) -> Tensor:
    """Mean difference of neighbouring places."""
    axes = [axis for axis in (1, 2, 3) if axis != channel_axis(values.shape)]
    parts = [values.diff(dim=axis).abs().mean() for axis in axes if values.shape[axis] > 1]
    return torch.stack(parts).sum() if parts else values.new_zeros(())
