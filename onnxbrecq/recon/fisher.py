"""How much each element of a block's output matters to the network's output.

The diagonal of the Fisher information at a tensor z is E[(d log p(y|x) / dz)^2] with y drawn from
the network's own prediction (BRECQ, section 3.3: it stands for the Hessian of the task loss, and
needs no label). Outputs that are no class scores are taken for the means of unit Gaussians; the
gradient at y is then a unit Gaussian as well. One reverse sweep of vector-Jacobian products over
the blocks, by tensor name, gives it at every block boundary: the same gradients as autograd through
the whole model.

Of a network that is sure of its samples, drawn labels tell little: nearly all gradients are nearly
0, and one unsure sample outweighs the rest. As unit Gaussians class scores tell as much of every
sample, and the information then weighs squared errors by what becomes of them at the output.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq.recon.bridge import TorchBlock
from onnxbrecq.recon.device import CPU, placed

Arrays = Mapping[str, NDArray[Any]]
Likelihood = Literal["classes", "gaussian"]


class FisherSweep:
    """Accumulates squared gradients at the blocks' outputs, batch by batch."""

    def __init__(
        self,
        blocks: Sequence[TorchBlock | None],
        seed: int,
        device: torch.device = CPU,
        likelihood: Likelihood = "classes",
    ) -> None:
        """Blocks in execution order; None stands for an island, which ends the sweep.

        `likelihood` says what class scores are: those of labels, or means of unit Gaussians.
        """
        self._blocks = blocks
        self._likelihood = likelihood
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._energy = 0.0

    @property
    def energy(self) -> float:
        """Of the outputs that count, a sample."""
        return self._energy / max(self._count, 1)

    def add(self, values: Arrays, outputs: Sequence[str]) -> None:
        """One batch.

        Args:
            values: every block boundary tensor of the float network, graph inputs included.
            outputs: the network's outputs that count: one [N, C] holds the scores of classes.
        """
        made = {name: torch.from_numpy(np.array(values[name])) for name in outputs}
        self._count += len(made[outputs[0]])
        self._energy += sum(float(value.double().square().sum()) for value in made.values())
        scores = len(made) == 1 and all(value.ndim == 2 for value in made.values())
        if scores and self._likelihood == "classes":
            gradients = {n: _score_gradient(v, self._generator) for n, v in made.items()}
        else:
            gradients = {n: _unit_gaussian(v, self._generator) for n, v in made.items()}
        for block in reversed(self._blocks):
            if block is None:
                return
            wanted = {name: gradients[name] for name in block.outputs if name in gradients}
            for name, gradient in wanted.items():
                total = gradient.square().sum(dim=0, keepdim=True).to(CPU)
                self._sums[name] = self._sums.get(name, torch.zeros(())) + total
            with placed(block, self._device):
                _pull_back(block, values, wanted, gradients, self._device)

    def information(self) -> dict[str, NDArray[np.float32]]:
        """Tensor name → diagonal of the Fisher information of one sample, [1, ...]; not all 0."""
        found = {name: total / self._count for name, total in self._sums.items()}
        return {
            name: value.numpy()
            for name, value in found.items()
            if float(value.mean()) > 0 and bool(torch.isfinite(value.mean()))
        }

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Tensor name → Fisher weight of each element [1, ...], with mean 1."""
        return {name: value / value.mean() for name, value in self.information().items()}


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
