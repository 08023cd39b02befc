"""Efforts side by side: what each makes of the same block, and how long it takes; run by hand.

    python tests/benchmarks/reconstruction.py --data DIR --models resnet20 --weights 4,2 \
        --output DIR

The network is walked as `quantize` walks it. At each block every effort learns from the same
inputs, targets and starting plan; the loss is the squared error of what it decided, run in ONNX
Runtime on samples that nothing was learned from, relative to the energy of the block's output. The
first effort's decisions are handed on.
*to_paper* is a loss in units of that of `paper` with the same seed; *fisher_to_paper* the same for
the error that `paper` itself minimises, weighted by the Fisher information.

Seconds are of all that an effort does with a block; those of a step, from the end of the first to
the end of the last. Where `paper` would take longer than `--paper-seconds`, only a schedule of
`--steps` steps is timed, behind a shorter one to warm up: its seconds are extrapolated, which the
table says, and it has no loss.

Models are named as in `subjects.py`, --data as in `real_models.py`. OUTPUT/results.json and .md are
written after each block; an interrupted run goes on behind the last one (OUTPUT/work).
"""

import argparse
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import rows
import subjects
from rows import Row
from torch.optim.optimizer import register_optimizer_step_post_hook

from onnxbrecq import blockwise, parts
from onnxbrecq.calibrate import calibrate
from onnxbrecq.emit.targets import target_for
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import load
from onnxbrecq.graph.points import find_points
from onnxbrecq.progress import silent
from onnxbrecq.recipe import EFFORTS, Recipe, Reconstruction
from onnxbrecq.runtime.doctor import environment, saturation_free
from onnxbrecq.state import digest, opened

log = logging.getLogger("reconstruction")

PAPER = "paper"
_WARM_UP = 5  # steps
_SEED_STRIDE = 1000  # the walk counts its seeds up, block by block
_learn = blockwise._improved  # the walk's own: `contest` takes its place


@dataclass(frozen=True)
class Job:
    """One walk. `activations` in bits, None: float; `blocks` as on the command line."""

    model: str
    weights: int
    activations: int | None
    efforts: tuple[str, ...]
    between: str
    blocks: str
    calibration: int
    seeds: int
    steps: int
    paper_seconds: float
    threads: int

    @property
    def setting(self) -> str:
        """Such as W4A8."""
        return f"W{self.weights}A{self.activations or 'float'}"

    def recipe(self) -> Recipe:
        """Of the walk: that of `paper`, so that there are Fisher weights."""
        return Recipe(
            weights=self.weights,
            activations=self.activations,
            threads=self.threads,
            reconstruction=of(PAPER),
        )


def of(effort: str) -> Reconstruction:
    """The settings of an effort."""
    return Recipe(effort=effort).settings()  # type: ignore[arg-type]


# ---- one block ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solution:
    """What the walk makes of a block with some settings, and when the optimiser's steps ended."""

    outcome: Any
    ends: tuple[float, ...]

    @property
    def step_seconds(self) -> float | None:
        """Of all steps but the first; None where there are not two."""
        span = len(self.ends) - 1
        return (self.ends[-1] - self.ends[0]) / span if span > 0 else None

    def columns(self) -> Row:
        """The time it took."""
        return {
            "steps": len(self.ends),
            "step_seconds": self.step_seconds,
            "seconds": self.outcome.facts.seconds,
        }


@dataclass(frozen=True)
class Problem:
    """A block to be learned: the arguments of the walk's own function."""

    task: parts.Task
    part: Any
    plan: Any
    data: Any
    seed: int

    def solved(self, settings: Reconstruction) -> Solution:
        """Learns the block."""
        recipe = replace(self.task.recipe, reconstruction=settings)
        data = self.data if settings.loss == "fisher" else replace(self.data, weights={})
        with step_ends() as ends:
            outcome = _learn(
                replace(self.task, recipe=recipe), self.part, self.plan, data, seed=self.seed
            )
        return Solution(outcome, tuple(ends))

    def losses(self, solution: Solution) -> Row:
        """Plain, and weighted by the Fisher information; on samples that it did not learn from."""
        _, held = blockwise._parted(self.data, self.task.model.batch or 1)
        made = parts.run(self.task, self.part, solution.outcome.plan, held.inputs)
        return {
            "loss": parts.relative_error(made, held.targets, {}),
            "fisher_loss": parts.relative_error(made, held.targets, held.weights),
            "note": solution.outcome.facts.note,
        }


@contextmanager
def step_ends() -> Iterator[list[float]]:
    """Within the context the times at which optimiser steps end are added to the list."""
    ends: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *_: ends.append(perf_counter()))
    try:
        yield ends
    finally:
        handle.remove()


def extrapolated(problem: Problem, settings: Reconstruction, steps: int) -> Row:
    """The time that the whole schedule would take, from a short one."""
    problem.solved(replace(settings, iterations=_WARM_UP))
    short = problem.solved(replace(settings, iterations=steps))
    columns = short.columns()
    whole = round(settings.iterations * columns["steps"] / steps)  # fewer steps where all is 8 bits
    left = (whole - columns["steps"]) * (short.step_seconds or 0.0)
    note = f"seconds extrapolated from {columns['steps']} steps"
    return {**columns, "steps": whole, "seconds": columns["seconds"] + left, "note": note}


class EnoughError(Exception):
    """The last block that is asked for is done."""


def contest(job: Job, folder: Path, *arguments: Any, seed: int) -> Any:
    """What the first effort makes of the block; rows of all efforts are kept in `folder`.

    `arguments` are those of the walk's own function: task, part, plan and data.
    """
    task, part, plan, data = arguments
    problem = Problem(task, part, plan, data, seed)
    place = task.blocks.index(part.block)
    wanted = chosen(job.blocks, len(task.blocks))
    if place > max(wanted):
        raise EnoughError
    if place not in wanted or not part.block.weights:
        return problem.solved(of(job.between)).outcome
    first = problem.solved(of(job.efforts[0]))
    if not first.ends and of(job.efforts[0]).iterations:
        log.info("block %d %s: skipped: %s", place, part.block.name, first.outcome.facts.note)
        return first.outcome
    columns = {
        "model": Path(job.model).stem, "setting": job.setting, "calibration": job.calibration,
        "block": place, "name": part.block.name,
    }  # fmt: skip
    found = []
    for number in range(job.seeds):
        again = replace(problem, seed=seed + number * _SEED_STRIDE)
        known = {job.efforts[0]: first} if number == 0 else {}
        made = [
            {**columns, "effort": effort, "seed": number, **attempt(again, effort, job, known)}
            for effort in job.efforts
        ]
        found += [against(row, made) for row in made]
    add(folder, found)
    return first.outcome


def attempt(problem: Problem, effort: str, job: Job, known: dict[str, Solution]) -> Row:
    """Losses and time of one effort; of `paper`, perhaps the time only."""
    try:
        if effort == PAPER:
            row = extrapolated(problem, of(effort), job.steps)
            if row["seconds"] > job.paper_seconds:
                return {**row, "extrapolated": True}
        solution = known.get(effort) or problem.solved(of(effort))
    except Exception as error:  # noqa: BLE001, RUF100  one effort must not end the table
        log.exception("%s failed", effort)
        return {"note": f"failed: {type(error).__name__}: {error}"}
    return {**solution.columns(), **problem.losses(solution), "extrapolated": False}


def against(row: Row, made: Sequence[Row]) -> Row:
    """The row with its losses in units of those of `paper` among `made`."""
    paper = next((other for other in made if other["effort"] == PAPER), {})
    ratios = {}
    for loss, ratio in (("loss", "to_paper"), ("fisher_loss", "fisher_to_paper")):
        if row.get(loss) is not None and paper.get(loss):
            ratios[ratio] = row[loss] / paper[loss]
    return {**row, **ratios, "environment": environment()}


# ---- one walk -------------------------------------------------------------------------------


def walk(job: Job, root: Path, folder: Path) -> None:
    """Walks the network as far as the last block asked for."""
    path = subjects.source(job.model, root)
    data, _ = subjects.samples(job.model, root, calibration=job.calibration, evaluation=1)
    recipe = job.recipe()
    model = fork(load(path), recipe.activations)
    points, blocks = find_points(model), partition(model)
    target = target_for(recipe.target, saturates=not saturation_free())
    task = parts.Task(model, blocks, points, data, recipe, target)
    plan = calibrate(model, points, data, recipe)
    key = {**asdict(job), "sha256": model.source_sha256, "data": digest(data.inputs)}
    work = folder / "work" / f"{path.stem}-{job.setting}"
    work.parent.mkdir(parents=True, exist_ok=True)
    learn = mock.patch.object(blockwise, "_improved", partial(contest, job, folder))
    with opened(work, key, resume=True) as state, learn, suppress(EnoughError):
        blockwise.walk(task, plan, silent, state)


def chosen(text: str, count: int) -> set[int]:
    """The indices that `all`, `last2` or `0,3` mean among `count` blocks."""
    if text == "all":
        return set(range(count))
    if text.startswith("last"):
        return set(range(count)[-int(text.removeprefix("last")) :])
    return {int(index) for index in text.split(",")}


# ---- the tables -----------------------------------------------------------------------------

_TELLING = ("model", "setting", "calibration", "block", "effort", "seed")

COLUMNS = {
    "model": "{}",
    "setting": "{}",
    "block": "{}",
    "name": "{}",
    "effort": "{}",
    "seed": "{}",
    "loss": "{:.3g}",
    "to_paper": "{:.3f}",
    "fisher_to_paper": "{:.3f}",
    "steps": "{}",
    "step_seconds": "{:.4f}",
    "seconds": "{:.1f}",
    "note": "{}",
}
SUMMARY = {
    "model": "{}",
    "setting": "{}",
    "effort": "{}",
    "blocks": "{}",
    "median_to_paper": "{:.3f}",
    "worst_to_paper": "{:.3f}",
    "median_fisher_to_paper": "{:.3f}",
    "seconds": "{:.1f}",
    "paper_seconds": "{:.1f}",
    "paper_over_effort": "{:.1f}",
    "note": "{}",
}


def add(folder: Path, new: Sequence[Row]) -> None:
    """Keeps the rows, in place of former ones of the same."""
    names = [tuple(row[name] for name in _TELLING) for row in new]
    found = [r for r in rows.kept(folder) if tuple(r[name] for name in _TELLING) not in names]
    rows.keep(folder, [*found, *new], markdown([*found, *new]))
    log.info("%s", rows.table(COLUMNS, new).split("\n", 2)[2])


def markdown(found: Sequence[Row]) -> str:
    """The summary, and all rows."""
    return f"{rows.table(SUMMARY, summary(found))}\n{rows.table(COLUMNS, found)}"


def summary(found: Sequence[Row]) -> list[Row]:
    """One row for each model, setting and effort."""
    groups = defaultdict(list)
    for row in found:
        groups[row["model"], row["setting"], row["effort"]].append(row)
    return [
        {
            "model": model,
            "setting": setting,
            "effort": effort,
            **summed(part, groups.get((model, setting, PAPER), [])),
        }
        for (model, setting, effort), part in groups.items()
    ]


def summed(part: Sequence[Row], paper: Sequence[Row]) -> Row:
    """Ratios over blocks and seeds; seconds of all blocks, a mean over seeds.

    What `paper` takes is compared on what both efforts finished.
    """
    mine, its = ({(r["block"], r["seed"]): r for r in side if "seconds" in r}
                 for side in (part, paper))  # fmt: skip
    seeds = len({row["seed"] for row in part})
    both = mine.keys() & its.keys()
    seconds, yardstick = (sum(side[place]["seconds"] for place in both) for side in (mine, its))
    guessed = sum(its[place]["extrapolated"] for place in both)
    ratios, fisher = (
        [row[name] for row in part if name in row] for name in ("to_paper", "fisher_to_paper")
    )
    return {
        "blocks": len({row["block"] for row in part}),
        "median_to_paper": median(ratios) if ratios else None,
        "worst_to_paper": max(ratios, default=None),
        "median_fisher_to_paper": median(fisher) if fisher else None,
        "seconds": sum(row["seconds"] for row in mine.values()) / seeds,
        "paper_seconds": yardstick / seeds if both else None,
        "paper_over_effort": yardstick / seconds if both else None,
        "note": f"paper: {len(both)} of {len(part)} rows, {guessed} extrapolated",
    }


def main() -> None:
    """Reads the command line and makes the tables."""
    parser = argparse.ArgumentParser(description="Compares efforts block by block.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA", "."))
    parser.add_argument("--models", required=True, help="names or .onnx files, commas")
    parser.add_argument("--weights", default="4,2", help="bits, commas")
    parser.add_argument("--activations", default="8", help="bits, or float")
    parser.add_argument("--efforts", default="balanced,best,paper", help="the first hands on")
    parser.add_argument("--between", help="effort of blocks that are not measured; the first")
    parser.add_argument("--blocks", default="all", help="all, last2 or indices such as 0,3")
    parser.add_argument("--calibration", type=int, default=512, help="samples, at most")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="that are timed of paper")
    parser.add_argument("--paper-seconds", type=float, default=600.0, help="at most, for a block")
    arguments = rows.arguments(parser)
    efforts = tuple(arguments.efforts.split(","))
    unknown = sorted({*efforts, arguments.between or efforts[0]} - set(EFFORTS))
    if unknown or efforts[0] == PAPER:
        parser.error(f"efforts: {EFFORTS}, the first not {PAPER}; unknown: {unknown}")
    activations = None if arguments.activations == "float" else int(arguments.activations)
    jobs = [
        Job(model, int(weights), activations, efforts, arguments.between or efforts[0],
            arguments.blocks, arguments.calibration, arguments.seeds, arguments.steps,
            arguments.paper_seconds, arguments.threads)
        for model in arguments.models.split(",") for weights in arguments.weights.split(",")
    ]  # fmt: skip
    for job in jobs:
        job.recipe()  # a wrong width ends the run here
        reason = subjects.absent(job.model, arguments.data)
        if reason:
            log.info("%s %s: skipped: %s", job.model, job.setting, reason)
            continue
        walk(job, arguments.data, arguments.output)


if __name__ == "__main__":
    main()
