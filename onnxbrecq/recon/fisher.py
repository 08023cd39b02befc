"""How much each element of a block's output matters to the network's output.

The diagonal of the Fisher information at a tensor z is E[(d log p(y|x) / dz)^2] with y drawn from
the network's own prediction (BRECQ, section 3.3: it stands for the Hessian of the task loss, and
needs no label). Outputs that are no class scores are taken for the means of unit Gaussians; the
gradient at y is then a unit Gaussian as well. One reverse sweep of vector-Jacobian products over
the blocks, by tensor name, gives it at every block boundary: the same gradients as autograd through
the whole model.

Drawn from unit Gaussians instead, for class scores too, the gradients g of single samples tell what
an error e of z becomes at the output: E[(g^T e)^2] = E[|J e|^2], J the Jacobian. Unlike the
diagonal that knows which errors add up on their way (those of all places of a map, in a pooling
average), and unlike labels, of which a network that is sure of its samples draws but one, it tells
as much of every sample.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq.recon.bridge import TorchBlock
from onnxbrecq.recon.device import CPU, placed

Arrays = Mapping[str, NDArray[Any]]


class FisherSweep:
    """Accumulates squared gradients at the blocks' outputs, batch by batch."""

    def __init__(
        self, blocks: Sequence[TorchBlock | None], seed: int, device: torch.device = CPU
    ) -> None:
        """Blocks in execution order; None stands for an island, which ends the sweep."""
        self._blocks = blocks
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Arrays, outputs: Sequence[str]) -> None:
        """One batch.

        Args:
            values: every block boundary tensor of the float network, graph inputs included.
            outputs: the network's outputs that count: one [N, C] holds the scores of classes.
        """
        made = {name: torch.from_numpy(np.array(values[name])) for name in outputs}
        if len(made) == 1 and all(value.ndim == 2 for value in made.values()):
            seeds = {n: _score_gradient(v, self._generator) for n, v in made.items()}
        else:
            seeds = {n: _unit_gaussian(v, self._generator) for n, v in made.items()}
        for name, gradient in _swept(self._blocks, values, seeds, self._device):
            total = gradient.square().sum(dim=0, keepdim=True).to(CPU)
            self._sums[name] = self._sums.get(name, torch.zeros(())) + total

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Tensor name → Fisher weight of each element [1, ...], with mean 1."""
        found = {}
        for name, total in self._sums.items():
            mean = total.mean()
            if float(mean) > 0 and bool(torch.isfinite(mean)):
                found[name] = (total / mean).numpy()
        return found


def random_numbers(seed: int) -> torch.Generator:
    """What `random_gradients` draws from."""
    return torch.Generator().manual_seed(seed)


def random_gradients(
    blocks: Sequence[TorchBlock | None],
    values: Arrays,
    outputs: Sequence[str],
    generator: torch.Generator,
    device: torch.device = CPU,
) -> dict[str, NDArray[np.float32]]:
    """Block output → gradient of each sample [N, ...], for unit Gaussians at the network's outputs.

    Arguments are those of `FisherSweep`; outputs that none reaches are left out.
    """
    seeds = {n: _unit_gaussian(torch.from_numpy(np.array(values[n])), generator) for n in outputs}
    return {
        name: gradient.to(CPU).numpy() for name, gradient in _swept(blocks, values, seeds, device)
    }


def _swept(
    blocks: Sequence[TorchBlock | None],
    values: Arrays,
    seeds: Mapping[str, Tensor],
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """Each block output that is reached and its gradient, from the last block to the first."""
    gradients = dict(seeds)
    for block in reversed(blocks):
        if block is None:
            return
        wanted = {name: gradients[name] for name in block.outputs if name in gradients}
        yield from wanted.items()
        with placed(block, device):
            _pull_back(block, values, wanted, gradients, device)


def _score_gradient(scores: Tensor, generator: torch.Generator) -> Tensor:
    """d(-log p(y)) / d scores for a y drawn from softmax(scores): p - onehot(y)."""
    probability = scores.softmax(dim=-1)
    drawn = torch.multinomial(probability, 1, generator=generator)
    return probability.scatter_add(1, drawn, -torch.ones_like(drawn, dtype=scores.dtype))


def _unit_gaussian(values: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(values.shape, generator=generator)


def _pull_back(
    block: TorchBlock,
    values: Arrays,
    wanted: Mapping[str, Tensor],
    gradients: dict[str, Tensor],
    device: torch.device,
) -> None:
    """Adds to `gradients` what the block's inputs receive from its outputs `wanted`."""
    if not wanted:
        return
    feed = {name: torch.from_numpy(np.array(values[name])).to(device) for name in block.inputs}
    leaves = [value.requires_grad_() for value in feed.values() if value.is_floating_point()]
    names = [name for name, value in feed.items() if value.is_floating_point()]
    outputs = block.run(feed)
    received = torch.autograd.grad(
        [outputs[name] for name in wanted],
        leaves,
        [gradient.to(device) for gradient in wanted.values()],
        allow_unused=True,
    )
    for name, gradient in zip(names, received, strict=True):
        if gradient is not None:
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
