"""What each block loses at each combination of its layers' bits, and the loss of a whole model.

The loss of the network is taken for the sum of its blocks', as BRECQ does: between blocks the
Hessian is neglected, within a block it is not. With z a block's output, e its error, y the
network's output, taken for the mean of a Gaussian with Fisher information J^T J, J = dy/dz,

    loss = E[ e^T J^T J e ] / E[ |y|^2 ] = E[ (n^T J e)^2 ] / E[ |y|^2 ]        n: unit Gaussian

that is the noise at the network's output relative to its energy: -10 log10 of the sum over blocks
is the SQNR that is predicted.

A block of up to `JOINT` layers is measured at every combination of its layers' bits. One of more is
put together from measured pairs (`interaction` terms are 0 with a layer at its finest):

    loss(a, b, c, ...) = base + sum_l [loss(l) - base] + sum_{l < m} interaction(l, m)
    interaction(l, m) = loss(l, m) - loss(l) - loss(m) + base

where `base` has all layers at their finest, loss(l) one of them at its bits, loss(l, m) two.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.bits import Allocation, Bits
from onnxbrecq.errors import DataError

JOINT = 3  # layers of a block that are measured at all combinations

Combination = tuple[int, ...]  # of each layer of a block, the place of its bits among the choices
Measure = Literal["fisher", "relative"]


@dataclass(frozen=True)
class Factor:
    """A term of the loss: of the bits of `layers`, [choices of each]."""

    layers: tuple[str, ...]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class BlockTable:
    """What a block loses.

    Attributes:
        name: the block's.
        choices: layer → what it may get, the finest last, of the layers that have a choice.
        losses: combination → measured loss; those of `combinations`.
        outputs: layer → of each of its choices, with all other layers of the network at their
            finest, the divergence at the network's output; empty unless asked for.
    """

    name: str
    choices: Mapping[str, tuple[Bits, ...]]
    losses: Mapping[Combination, float]
    outputs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that have a choice."""
        return tuple(self.choices)

    @property
    def finest(self) -> Combination:
        """All layers at their finest."""
        return tuple(len(bits) - 1 for bits in self.choices.values())

    @property
    def base(self) -> float:
        """The loss with all layers at their finest."""
        return self.losses[self.finest]

    def single(self, layer: str, choice: int) -> float:
        """The loss with one layer at its choice, the others at their finest."""
        return self.losses[self._at({layer: choice})]

    def interaction(self, choices: Mapping[str, int]) -> float:
        """What two layers lose together beyond what they lose one by one; measured pairs only."""
        alone = sum(self.single(layer, choice) - self.base for layer, choice in choices.items())
        return self.losses[self._at(choices)] - self.base - alone

    def factors(self, *, interactions: bool = True) -> Iterator[Factor]:
        """The terms whose sum is the loss; without `interactions` as if layers added up."""
        sizes = {layer: len(bits) for layer, bits in self.choices.items()}
        if interactions and len(sizes) <= JOINT:
            losses = np.empty(tuple(sizes.values()))
            for combination, loss in self.losses.items():
                losses[combination] = loss
            yield Factor(self.layers, losses)
            return
        yield Factor((), np.array(self.base))
        for layer, size in sizes.items():
            single = [self.single(layer, choice) - self.base for choice in range(size)]
            yield Factor((layer,), np.array(single))
        for one, two in itertools.combinations(sizes, 2) if interactions else ():
            pairs = np.array([
                [self.interaction({one: i, two: j}) for j in range(sizes[two])]
                for i in range(sizes[one])
            ])  # fmt: skip
            yield Factor((one, two), pairs)

    def _at(self, choices: Mapping[str, int]) -> Combination:
        pairs = zip(self.choices, self.finest, strict=True)
        return tuple(choices.get(layer, finest) for layer, finest in pairs)


def combinations(choices: Mapping[str, Sequence[Bits]]) -> list[Combination]:
    """What of a block is measured: all, or (beyond `JOINT` layers) up to two below the finest."""
    sizes = [len(bits) for bits in choices.values()]
    every = itertools.product(*(range(size) for size in sizes))
    if len(sizes) <= JOINT:
        return list(every)
    finest = tuple(size - 1 for size in sizes)
    found = [finest]
    for count in (1, 2):
        for places in itertools.combinations(range(len(sizes)), count):
            for lower in itertools.product(*(range(sizes[place] - 1) for place in places)):
                changed = dict(zip(places, lower, strict=True))
                found.append(tuple(changed.get(i, top) for i, top in enumerate(finest)))
    return found


@dataclass(frozen=True)
class Sensitivity:
    """The table of a whole model.

    Attributes:
        model_sha256: of the float model's file.
        data_sha256: of the samples it was measured on.
        target: whose deployed blocks were measured.
        measure: `fisher`: as above; `relative`: where gradients do not reach every block, error
            relative to the energy of each block's own output.
        samples: how many were measured on.
        blocks: those that hold a choice.
        fixed: layer → its bits, of layers without a choice.
        output_measure: what `BlockTable.outputs` hold: `kl` (nats) or `mse`; None: nothing.
        output_base: the same with all layers at their finest.
        seconds: how long it took.
        notes: lines for the reader.
    """

    model_sha256: str
    data_sha256: str
    target: str
    measure: Measure
    samples: int
    blocks: tuple[BlockTable, ...]
    fixed: Mapping[str, Bits]
    output_measure: str | None = None
    output_base: float | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def choices(self) -> dict[str, tuple[Bits, ...]]:
        """Layer → what it may get, of all layers that have a choice."""
        return {n: bits for block in self.blocks for n, bits in block.choices.items()}

    def factors(self, *, interactions: bool = True) -> tuple[Factor, ...]:
        """The terms whose sum is the predicted loss."""
        return tuple(f for b in self.blocks for f in b.factors(interactions=interactions))

    def loss(self, allocation: Allocation, *, interactions: bool = True) -> float:
        """The predicted loss of the allocation.

        Raises:
            KeyError: it leaves out a layer that has a choice.
        """
        choices = self.choices
        return float(sum(
            factor.losses[tuple(choices[x].index(allocation[x]) for x in factor.layers)]
            for factor in self.factors(interactions=interactions)
        ))  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_json` makes an equal table."""
        found = asdict(self)
        found["fixed"] = {name: _pair(bits) for name, bits in self.fixed.items()}
        found["blocks"] = [_block_json(block) for block in self.blocks]
        found["notes"] = list(self.notes)
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The table that `as_json` told of.

        Raises:
            DataError: it is damaged, or something else.
        """
        try:
            blocks = tuple(_block(block) for block in found["blocks"])
            fixed = {name: Bits(*pair) for name, pair in found["fixed"].items()}
            names = ("model_sha256", "data_sha256", "target", "measure", "samples",
                     "output_measure", "output_base", "seconds")  # fmt: skip
            rest = {name: found[name] for name in names}
            return cls(**rest, blocks=blocks, fixed=fixed, notes=tuple(found["notes"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a table of sensitivities: {error!r}; measure it anew") from error


def _pair(bits: Bits) -> list[int | None]:
    return [bits.weight, bits.data]


def _block_json(block: BlockTable) -> dict[str, Any]:
    return {
        "name": block.name,
        "choices": {name: [_pair(b) for b in bits] for name, bits in block.choices.items()},
        "losses": [[list(key), loss] for key, loss in block.losses.items()],
        "outputs": {name: list(values) for name, values in block.outputs.items()},
    }


def _block(found: Mapping[str, Any]) -> BlockTable:
    choices = {name: tuple(Bits(*b) for b in bits) for name, bits in found["choices"].items()}
    losses = {tuple(key): float(loss) for key, loss in found["losses"]}
    if set(losses) != set(combinations(choices)):
        raise ValueError(f"block {found['name']!r}: combinations are missing")
    outputs = {name: tuple(values) for name, values in found["outputs"].items()}
    return BlockTable(found["name"], choices, losses, outputs)
