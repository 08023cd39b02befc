"""BRECQ's genetic search for bits (Li et al., 2021, algorithm 2): an alternative, proving nothing.

A population of 50 allocations within the budgets. In each of 100 generations the better half are
parents; half of the next population are crossings of two of them, the other half mutants, each
layer's bits drawn anew with probability 0.1. What exceeds a budget is mended: layers drawn at
random give up bits until it holds.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.search.allocate import Found, Limit, Places, Problem, check_feasible

POPULATION, GENERATIONS = 50, 100
_MUTATION = 0.1


def genetic(problem: Problem, limits: Sequence[Limit], seed: int) -> Found:
    """The best allocation that the search came across.

    Raises:
        RecipeError: nothing is within the limits; says what is the nearest that can be had.
    """
    started = time.perf_counter()
    check_feasible(problem, limits)
    search = _Search(problem, limits, np.random.default_rng(seed))
    return problem.found(search.best(), limits, "genetic", None, started)


class _Search:
    """The population on its way."""

    def __init__(
        self, problem: Problem, limits: Sequence[Limit], generator: np.random.Generator
    ) -> None:
        self._problem, self._limits, self._generator = problem, limits, generator
        self._names = list(problem.choices)
        self._sizes = np.array([len(bits) for bits in problem.choices.values()])

    def best(self) -> Places:
        """The least loss of all generations."""
        population = [self._mended(self._drawn()) for _ in range(POPULATION)]
        for _ in range(GENERATIONS):
            parents = sorted(population, key=self._problem.loss)[: POPULATION // 2]
            half = POPULATION // 2
            crossed = [self._mended(self._crossing(parents)) for _ in range(half)]
            mutants = [self._mended(self._mutant(parents)) for _ in range(half)]
            population = [parents[0], *crossed, *mutants]
        return min(population, key=self._problem.loss)

    def _drawn(self) -> Places:
        return self._named(self._generator.integers(0, self._sizes))

    def _crossing(self, parents: Sequence[Places]) -> Places:
        one, two = (parents[i] for i in self._generator.integers(0, len(parents), 2))
        from_one = self._generator.random(len(self._names)) < 0.5
        return {
            n: (one if first else two)[n] for n, first in zip(self._names, from_one, strict=True)
        }

    def _mutant(self, parents: Sequence[Places]) -> Places:
        parent = parents[int(self._generator.integers(len(parents)))]
        changed = self._generator.random(len(self._names)) < _MUTATION
        drawn = self._drawn()
        return {
            n: drawn[n] if new else parent[n] for n, new in zip(self._names, changed, strict=True)
        }

    def _named(self, places: NDArray[np.int64]) -> Places:
        return {name: int(place) for name, place in zip(self._names, places, strict=True)}

    def _mended(self, places: Places) -> Places:
        """Within the limits: layers in random order come down to what costs less."""
        places = self._agreed(places)
        for i in self._generator.permutation(len(self._names)):
            name = self._names[i]
            while not self._problem.holds(places, self._limits):
                lower = self._agreed({**places, name: max(places[name] - 1, 0)}, leader=name)
                if lower == places:
                    break
                places = lower
        if self._problem.holds(places, self._limits):
            return places
        return self._cheapest()

    def _agreed(self, places: Places, leader: str = "") -> Places:
        """Tied layers read the bits of the first, or of `leader`."""
        found = dict(places)
        for tie in self._problem.ties:
            data = self._problem.data(leader if leader in tie else tie[0], places)
            for name in tie:
                offered = self._problem.choices[name]
                wanted = [i for i, bits in enumerate(offered) if bits.data == data]
                weight = offered[found[name]].weight
                same = [i for i in wanted if offered[i].weight == weight]
                if wanted:
                    found[name] = (same or wanted)[0]
        return found

    def _cheapest(self) -> Places:
        """The cheapest of each layer, by the sum of its shares of the budgets."""

        def share(name: str, place: int) -> float:
            limits = self._limits
            return sum(limit.cost.layers[name][place] / limit.most for limit in limits)

        return self._agreed({
            name: min(range(size), key=lambda place: share(name, place))
            for name, size in zip(self._names, self._sizes.tolist(), strict=True)
        })  # fmt: skip
