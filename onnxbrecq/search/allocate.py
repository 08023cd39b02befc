"""The bits of least predicted loss within budgets, proved optimal.

A multiple-choice knapsack with terms of several layers. With x[l, i] = 1 if layer l takes its i-th
choice, and for each term of several layers y[c] = 1 if they take the combination c,

    minimise    sum of losses * x, y
    such that   sum_i x[l, i] = 1                      for each layer l
                sum_{c: l takes i} y[c] = x[l, i]      for each term, each of its layers l, each i
                sum of costs * x <= budget             for each budget
                sum_{i: a bits} x[l, i] - x[m, i] = 0  for layers l, m that read one quantizer

x is binary; y then is, by the second row. HiGHS (Huangfu and Hall, 2018; through scipy) solves it
by branch and bound, and its lower bound proves the gap.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.bits import Bits
from onnxbrecq.errors import RecipeError
from onnxbrecq.search.costs import Cost
from onnxbrecq.search.table import Factor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SECONDS = 60.0  # after which the best that was found is taken, with its gap
_SCALE = 1e3  # of the least loss in the solver, whose absolute gap is 1e-6
_NEAR = 1e-2  # of the loss that was expected: as well scaled as need be
_ROUNDS = 4  # of scaling, and of keeping integers within a budget

Places = dict[str, int]  # layer → place of its bits among its choices
Row = tuple[dict[int, float], float, float]  # coefficients, least, most


@dataclass(frozen=True)
class Limit:
    """At most so much of a cost."""

    cost: Cost
    most: float


@dataclass(frozen=True)
class Found:
    """An allocation of the layers that have a choice.

    Attributes:
        bits: layer → its bits.
        loss: predicted.
        costs: key → what it costs, of each budget.
        gap: how much less the loss of the best allocation may be, relative; None: not known.
        method: exact or genetic.
        seconds: how long it took.
    """

    bits: Mapping[str, Bits]
    loss: float
    costs: Mapping[str, float]
    gap: float | None
    method: str
    seconds: float


class Problem:
    """What there is to choose, as numbers."""

    def __init__(
        self,
        choices: Mapping[str, tuple[Bits, ...]],
        factors: Sequence[Factor],
        ties: Sequence[Sequence[str]] = (),
    ) -> None:
        """Of layers and their choices, and terms of the loss; a tie's layers read the same bits."""
        self.choices = choices
        self.factors = tuple(factors)
        self.ties = tuple(ties)

    def loss(self, places: Places) -> float:
        """The predicted loss."""
        return float(sum(f.losses[tuple(places[x] for x in f.layers)] for f in self.factors))

    def holds(self, places: Places, limits: Sequence[Limit]) -> bool:
        """Whether no budget is exceeded, and tied layers agree."""
        within = all(limit.cost.total(places) <= limit.most for limit in limits)
        return within and all(len({self.data(x, places) for x in tie}) == 1 for tie in self.ties)

    def data(self, layer: str, places: Places) -> int | None:
        """Bits of what the layer reads."""
        return self.choices[layer][places[layer]].data

    def found(
        self,
        places: Places,
        limits: Sequence[Limit],
        method: str,
        gap: float | None,
        started: float,
    ) -> Found:
        """The allocation, told in full."""
        return Found(
            bits={name: self.choices[name][place] for name, place in places.items()},
            loss=self.loss(places),
            costs={limit.cost.key: limit.cost.total(places) for limit in limits},
            gap=gap,
            method=method,
            seconds=time.perf_counter() - started,
        )


def exact(problem: Problem, limits: Sequence[Limit]) -> Found:
    """The allocation of least loss within the limits.

    Of several with the same loss, none has a layer that could do with less.

    Raises:
        RecipeError: there is none; says what is the nearest that can be had.
    """
    started = time.perf_counter()
    if not problem.choices:
        check_feasible(problem, limits)
        return problem.found({}, limits, "exact", 0.0, started)
    solved = _solved(problem, problem.factors, limits)
    if solved is None:
        check_feasible(problem, limits)
        raise RecipeError("budget: no allocation was found in time; give more, or offer fewer bits")
    places, gap = solved
    return problem.found(_economised(problem, places, limits), limits, "exact", gap, started)


def check_feasible(problem: Problem, limits: Sequence[Limit]) -> None:
    """Refuses limits that nothing keeps.

    Raises:
        RecipeError: names the limit, and what is the nearest that can be kept.
    """
    for limit in limits:
        attained = _least(problem, limit.cost, ())
        if attained is None or attained > limit.most:
            raise RecipeError(_refused(limit, attained, ""))
    for i, limit in enumerate(limits if len(limits) > 1 else ()):
        others = [*limits[:i], *limits[i + 1 :]]
        attained = _least(problem, limit.cost, others)
        if attained is not None and attained > limit.most:
            named = " and ".join(f"{o.cost.key} <= {_told(o.cost, o.most)}" for o in others)
            raise RecipeError(_refused(limit, attained, f" with {named}"))


def least(problem: Problem, cost: Cost, limits: Sequence[Limit] = ()) -> float:
    """The least of a cost within limits.

    Raises:
        RecipeError: there is nothing within them.
    """
    found = _least(problem, cost, limits)
    if found is None:
        check_feasible(problem, limits)
        raise RecipeError("budget: no allocation was found in time; give more, or offer fewer bits")
    return found


def _refused(limit: Limit, attained: float | None, beside: str) -> str:
    cost = limit.cost
    if attained is None:
        return f"budget {cost.key}{beside}: no allocation keeps it"
    return (
        f"budget {cost.key} = {_told(cost, limit.most)}: the least that can be had{beside} is "
        f"{_told(cost, attained, up=True)}; give that, or offer or pin fewer bits"
    )


def _told(cost: Cost, value: float, *, up: bool = False) -> str:
    """A figure as the command line takes it, rounded so that it is kept."""
    if cost.key == "size":
        return f"{int(np.ceil(value)) if up else int(value)}B"
    figure = float(f"{value:.6g}")
    if up and figure < value:
        figure = float(f"{value * (1 + 1e-5):.6g}")
    return f"{figure:g}" + ("ms" if cost.key == "latency" else "")


def _least(problem: Problem, cost: Cost, limits: Sequence[Limit]) -> float | None:
    """The least of a cost within limits; None: there is nothing within them."""
    if not problem.choices:
        return cost.base
    factors = [Factor((name,), np.array(values)) for name, values in cost.layers.items()]
    solved = _solved(problem, factors, limits)
    return None if solved is None else cost.total(solved[0])


def _economised(problem: Problem, places: Places, limits: Sequence[Limit]) -> Places:
    """The same with each layer in turn at fewer bits, where that loses nothing."""
    best = problem.loss(places)
    for name, place in sorted(places.items()):
        for lower in range(place):
            tried = {**places, name: lower}
            if problem.loss(tried) <= best and problem.holds(tried, limits):
                places = tried
                break
    return places


def _solved(
    problem: Problem, factors: Sequence[Factor], limits: Sequence[Limit]
) -> tuple[Places, float] | None:
    """The best places by these factors, and the gap; None: there are none within the limits.

    Losses span many orders of magnitude, and the solver's tolerances are absolute: what cannot be
    part of a solution better than the one at hand is left out, and the rest scaled to it.
    """
    most = [limit.most for limit in limits]
    known: tuple[Places, float] | None = None
    expected = sum(float(np.abs(f.losses).max()) for f in factors) or 1.0
    for _ in range(_ROUNDS):
        tight = [Limit(x.cost, value) for x, value in zip(limits, most, strict=True)]
        best = _value(factors, known[0]) if known else None
        made = _milp(problem, factors, tight, expected, best)
        if made is None:
            return known
        places, gap = made
        over = [limit.cost.total(places) - limit.most for limit in limits]
        if any(excess > 0 for excess in over):  # the solver's integers are not quite integers
            most = [m - max(e, 0) for m, e in zip(most, over, strict=True)]
            continue
        found = _value(factors, places)
        if best is not None and found >= best:
            return known[0], min(gap, known[1])  # type: ignore[index]
        known = places, gap
        if found >= _NEAR * expected or found <= 0:
            break
        expected = found
    return known


def _value(factors: Sequence[Factor], places: Places) -> float:
    return float(sum(f.losses[tuple(places[x] for x in f.layers)] for f in factors))


def _milp(
    problem: Problem,
    factors: Sequence[Factor],
    limits: Sequence[Limit],
    expected: float,
    best: float | None,
) -> tuple[Places, float] | None:
    from scipy import optimize  # noqa: PLC0415 -- a third of a second, for budgets alone

    columns = _Columns(problem, factors)
    objective, upper = columns.objective(_SCALE / expected, best)
    rows = [*columns.rows(), *(columns.limit(limit) for limit in limits)]
    solved = optimize.milp(
        objective,
        integrality=columns.integral,
        bounds=optimize.Bounds(np.zeros(len(upper)), upper),
        constraints=optimize.LinearConstraint(*_matrix(rows, len(upper))),
        options={"mip_rel_gap": 0.0, "time_limit": _SECONDS},
    )
    if solved.x is None:
        return None
    gap = float(solved.mip_gap) if solved.mip_gap is not None else 0.0
    return columns.places(solved.x), gap


class _Columns:
    """The variables: choices of layers, then combinations of factors of several layers."""

    def __init__(self, problem: Problem, factors: Sequence[Factor]) -> None:
        self._problem, self._factors = problem, factors
        self._first: dict[str, int] = {}
        count = 0
        for name, bits in problem.choices.items():
            self._first[name] = count
            count += len(bits)
        self.integral = np.ones(count)
        self._cells: list[int] = []  # first column of each factor of several layers
        for factor in factors:
            self._cells.append(count if len(factor.layers) > 1 else -1)
            count += factor.losses.size if len(factor.layers) > 1 else 0
        self.integral = np.concatenate([self.integral, np.zeros(count - len(self.integral))])

    def objective(
        self, scale: float, best: float | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Losses, scaled, and upper bounds: 0 of what alone loses more than `best` allows."""
        loss, upper = np.zeros(len(self.integral)), np.ones(len(self.integral))
        least = sum(float(f.losses.min()) for f in self._factors)
        for factor, cells in zip(self._factors, self._cells, strict=True):
            if not factor.layers:
                continue
            first = cells if cells >= 0 else self._first[factor.layers[0]]
            columns = slice(first, first + factor.losses.size)
            values = factor.losses.reshape(-1)
            loss[columns] += values * scale
            if best is not None:
                hopeless = least - values.min() + values > best * (1 + 1e-9)
                upper[columns] = np.where(hopeless, 0.0, upper[columns])
                loss[columns] = np.where(hopeless, 0.0, loss[columns])
        return loss, upper

    def rows(self) -> list[Row]:
        """One choice of each layer; factors agree with layers; ties."""
        found: list[Row] = []
        for name, bits in self._problem.choices.items():
            found.append(({self._first[name] + i: 1.0 for i in range(len(bits))}, 1.0, 1.0))
        for factor, cells in zip(self._factors, self._cells, strict=True):
            if cells < 0:
                continue
            index = np.arange(factor.losses.size).reshape(factor.losses.shape) + cells
            for axis, name in enumerate(factor.layers):
                for i in range(factor.losses.shape[axis]):
                    row = dict.fromkeys(index.take(i, axis).reshape(-1).tolist(), 1.0)
                    found.append(({**row, self._first[name] + i: -1.0}, 0.0, 0.0))
        for tie in self._problem.ties:
            for other in tie[1:]:
                found += self._tie(tie[0], other)
        return found

    def _tie(self, one: str, other: str) -> list[Row]:
        choices = self._problem.choices
        reads = {bits.data for name in (one, other) for bits in choices[name]}
        rows = []
        for data in sorted(reads, key=str):
            row = {
                self._first[name] + i: sign
                for name, sign in ((one, 1.0), (other, -1.0))
                for i, bits in enumerate(choices[name])
                if bits.data == data
            }
            rows.append((row, 0.0, 0.0))
        return rows

    def limit(self, limit: Limit) -> Row:
        """A budget as a share of it."""
        room = limit.most - limit.cost.base
        unit = max(abs(room), 1e-9 * max(limit.cost.base, 1.0))
        row = {
            self._first[name] + i: value / unit
            for name, values in limit.cost.layers.items()
            for i, value in enumerate(values)
        }
        return row, -np.inf, room / unit

    def places(self, solution: NDArray[np.float64]) -> Places:
        """The choice of each layer."""
        return {
            name: int(solution[first : first + len(self._problem.choices[name])].argmax())
            for name, first in self._first.items()
        }


def _matrix(
    rows: Sequence[Row], columns: int
) -> "tuple[csr_array, NDArray[np.float64], NDArray[np.float64]]":
    from scipy.sparse import csr_array  # noqa: PLC0415 -- as above

    at = [(i, column) for i, (row, _, _) in enumerate(rows) for column in row]
    values = [value for row, _, _ in rows for value in row.values()]
    i, j = np.array(at).T
    matrix = csr_array((values, (i, j)), shape=(len(rows), columns))
    return matrix, np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
