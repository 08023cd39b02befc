"""The Pareto front: the least predicted loss at each of many budgets."""

from collections.abc import Sequence

import numpy as np

from onnxbrecq.progress import Progress, silent
from onnxbrecq.search.allocate import Found, Limit, Problem, exact, least
from onnxbrecq.search.costs import Cost

POINTS = 33


def front(
    problem: Problem,
    cost: Cost,
    limits: Sequence[Limit] = (),
    points: int = POINTS,
    progress: Progress = silent,
) -> tuple[Found, ...]:
    """Allocations of rising cost and falling loss, each the best that its cost can buy.

    Budgets are evenly spaced between what is cheapest and what loses least; each allocation is
    proved optimal (`onnxbrecq.search.allocate`), and those that are no better than a cheaper one
    are left out.

    Args:
        problem: what there is to choose.
        cost: that of the front.
        limits: on other costs, which all keep.
        points: how many budgets.
        progress: told of each.

    Raises:
        RecipeError: the limits leave nothing.
    """
    others = [limit for limit in limits if limit.cost.key != cost.key]
    highest = exact(problem, [Limit(cost, _most(cost)), *others])
    lowest = exact(problem, [Limit(cost, least(problem, cost, others)), *others])
    budgets = np.linspace(lowest.costs[cost.key], highest.costs[cost.key], points)
    found = [lowest]
    for i, budget in enumerate(budgets[1:-1].tolist(), 1):
        progress("pareto", i, points)
        found.append(exact(problem, [Limit(cost, budget), *others]))
    progress("pareto", points, points)
    return _rising([*found, highest], cost.key)


def _most(cost: Cost) -> float:
    return cost.base + sum(max(values) for values in cost.layers.values())


def _rising(found: Sequence[Found], key: str) -> tuple[Found, ...]:
    kept: list[Found] = []
    for point in sorted(found, key=lambda f: (f.costs[key], f.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return tuple(kept)
