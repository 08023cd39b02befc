"""The decisions of a run, at uniform bits or at those that were chosen for a budget."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxbrecq.bits import Allocation
from onnxbrecq.blockwise import walk
from onnxbrecq.emission import emitted
from onnxbrecq.errors import DataError
from onnxbrecq.graph.model import Model
from onnxbrecq.mixed import Menu, Space, chosen, explored, feasible, menu_of, smallest
from onnxbrecq.plan import QuantPlan
from onnxbrecq.preparation import Clock, PathLike, Prepared
from onnxbrecq.progress import Progress
from onnxbrecq.report.result import (
    Accuracy,
    BlockFacts,
    BudgetFacts,
    Fidelity,
    Gate,
    SearchFacts,
    TrialFacts,
)
from onnxbrecq.search.allocate import Found, Limit
from onnxbrecq.search.findings import predicted_db
from onnxbrecq.search.table import Sensitivity
from onnxbrecq.state import State
from onnxbrecq.validation.metrics import Metric
from onnxbrecq.validation.validate import measure

Scoring = Callable[[], Metric | None]  # a new one for each model


@dataclass(frozen=True)
class Best:
    """The decisions that are to be written, and how they came about."""

    model: Model
    start: QuantPlan  # all weights rounded to nearest
    plan: QuantPlan
    blocks: tuple[BlockFacts, ...]
    search: SearchFacts | None = None
    notes: tuple[str, ...] = ()
    choice: tuple[Space, Found, Sequence[Limit]] | None = None  # what there was, and was chosen


def decided(
    ready: Prepared,
    clock: Clock,
    progress: Progress,
    state: State,
    *,
    scoring: Scoring,
    table: Sensitivity | None,
) -> Best:
    """All decisions: at uniform bits, at the best for the budgets, or at the fewest that pass."""
    if not ready.recipe.mixed:
        return learned(ready, ready.uniform(), clock, progress, state)
    menu = menu_for(ready)
    asked = feasible(menu, ready.recipe.budget)
    with clock.stage("sensitivity"):
        space = explored(menu, progress, state=state, table=table)
    trials: list[TrialFacts] = []

    def passes(found: Found) -> bool:
        best = learned(ready, space.menu.all_bits(found.bits), clock, progress, state)
        with clock.stage("search"):
            gate = measured(ready, best, scoring(), progress)[2]
        trials.append(TrialFacts(found.costs["size"], found.loss, bool(gate.met), gate.reason))
        return bool(gate.met)

    if asked:
        with clock.stage("search"):
            found = chosen(space, asked)
    else:
        found, _ = smallest(space, passes, progress)
    best = learned(ready, space.menu.all_bits(found.bits), clock, progress, state)
    search = dataclasses.replace(_search(space, found, asked), trials=tuple(trials))
    choice = space, found, asked
    return dataclasses.replace(best, search=search, notes=space.table.notes, choice=choice)


def learned(
    ready: Prepared, bits: Allocation, clock: Clock, progress: Progress, state: State
) -> Best:
    """The model's decisions at these bits; blocks that the state knows at them are not learned."""
    task, plan = ready.at(bits)
    with clock.stage("reconstruct"):
        walked = walk(task, plan, progress, state)
    return Best(task.model, plan, walked.plan, walked.blocks)


def measured(
    ready: Prepared, best: Best, metric: Metric | None, progress: Progress
) -> tuple[Accuracy | None, Fidelity | None, Gate]:
    """Accuracy, fidelity and gate of the decisions, as they would be written for here."""
    proto = emitted(best.model, best.plan, ready.task.target)
    return measure(
        proto, ready.original, samples=ready.task.data, labelled=ready.labelled, metric=metric,
        max_drop=ready.recipe.max_drop, threads=ready.recipe.threads, progress=progress,
    )  # fmt: skip


def menu_for(ready: Prepared) -> Menu:
    return menu_of(ready.task, ready.calibration, ready.target, ready.data_sha256)


def _search(space: Space, found: Found, asked: Sequence[Limit]) -> SearchFacts:
    told = [BudgetFacts(x.cost.key, x.cost.unit, x.most, found.costs[x.cost.key]) for x in asked]
    if all(x.cost.key != "size" for x in asked):
        told.append(BudgetFacts("size", "bytes", None, found.costs["size"]))
    table = space.table
    return SearchFacts(
        found.method, table.measure, table.samples, found.loss, predicted_db(table, found.loss),
        found.gap, found.seconds, tuple(told),
    )  # fmt: skip


def saved_table(path: PathLike | None) -> Sensitivity | None:
    """The saved table of sensitivities, if one was given.

    Raises:
        DataError: the file cannot be read, or is no such table.
    """
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_bytes())
        return Sensitivity.from_json(found["sensitivity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a table of sensitivities: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
