"""`onnxbrecq sensitivity` and `pareto`: what bits cost and lose, before any are chosen."""

import dataclasses
from importlib.metadata import version
from pathlib import Path

import numpy as np

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emitted
from onnxbrecq.mixed import Space, explored, feasible, sized
from onnxbrecq.pipeline.decisions import learned, measured, menu_for, saved_table
from onnxbrecq.pipeline.results import emitted_bytes
from onnxbrecq.preparation import Clock, PathLike, Prepared, prepared
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.facts import source_facts
from onnxbrecq.search.allocate import Found
from onnxbrecq.search.findings import Exploration, Front, Point, Verified
from onnxbrecq.search.front import POINTS, front
from onnxbrecq.state import State, opened
from onnxbrecq.validation.metrics import metric_for


def sensitivities(
    model: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    check_output: bool = False,
    measure_latency: bool = False,
    work_dir: PathLike | None = None,
    resume: bool = True,
    progress: Progress = silent,
) -> Exploration:
    """What each layer of the model loses at each of the bits that the recipe offers.

    Args:
        model: a float ONNX file.
        data: unlabelled samples; None: STEM.calib.npz beside the model.
        recipe: what is offered; None: the defaults.
        check_output: also measure the divergence at the network's output, layer by layer.
        measure_latency: also time each layer in onnxruntime, in integers and in float.
        work_dir: where finished blocks are kept until all are; None: STEM.sensitivity.work beside
            the model.
        resume: go on with what is there; False: start afresh.
        progress: told of every step.

    Raises:
        RecipeError, ModelError, DataError, OutputError: as `quantize`.
    """
    clock, folder = Clock(), _beside(model, "sensitivity", work_dir)
    wanted = dataclasses.replace(_mixed(recipe), effort="fast", reconstruction=None)
    ready = prepared(
        Path(model), wanted, data=data, evaluation=None, folder=folder, clock=clock,
        progress=progress,
    )  # fmt: skip
    menu = menu_for(ready)
    with opened(folder, ready.key(), resume=resume) as state:
        space = explored(menu, progress, state=state, check_output=check_output)
        state.discard()
    keys = ("bitops",) if wanted.latency.model == "onnxruntime" else ("bitops", "latency")
    return Exploration(
        version("onnxbrecq"), source_facts(ready.original), _layers(ready), space.table,
        {key: space.menu.cost(key) for key in keys} | {"size": space.menu.size},
        menu.measured_ms() if measure_latency else {},
        (*ready.original.notes, *ready.notes, *space.table.notes),
    )  # fmt: skip


def pareto(
    model: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    cost: str = "size",
    points: int = POINTS,
    verify: int = 0,
    evaluation: PathLike | Dataset | None = None,
    sensitivity: PathLike | None = None,
    work_dir: PathLike | None = None,
    resume: bool = True,
    progress: Progress = silent,
) -> Front:
    """The least predicted loss at each cost, from the cheapest model to the best.

    Args:
        model: a float ONNX file.
        data: unlabelled calibration samples; None: STEM.calib.npz beside the model.
        recipe: what is offered, and budgets on other costs; None: the defaults.
        cost: `size`, `bitops` or `latency`.
        points: how many budgets, evenly spaced.
        verify: how many of the points are really quantized, and measured.
        evaluation: labelled samples, for those; None: STEM.eval.npz beside the model, else none.
        sensitivity: the JSON of `sensitivities`; None: they are measured.
        work_dir: where finished blocks are kept until all is done; None: STEM.pareto.work beside
            the model.
        resume: go on with what is there; False: start afresh.
        progress: told of every step.

    Raises:
        RecipeError, ModelError, DataError, EmissionError, OutputError: as `quantize`.
    """
    clock, folder = Clock(), _beside(model, "pareto", work_dir)
    ready = prepared(
        Path(model), _mixed(recipe), data=data, evaluation=evaluation, folder=folder, clock=clock,
        progress=progress,
    )  # fmt: skip
    menu, table = menu_for(ready), saved_table(sensitivity)
    asked = feasible(menu, [b for b in ready.recipe.budget if b.key != cost])
    axis = menu.cost(cost)
    with opened(folder, ready.key(), resume=resume) as state:
        space = explored(menu, progress, state=state, table=table)
        points_found = front(space.problem, axis, asked, points, progress)
        found = tuple(sized(menu, f) for f in points_found)
        picked = set(np.linspace(0, len(found) - 1, min(verify, len(found))).round().astype(int))
        made = tuple(
            Point(f, _verified(ready, space, f, progress, state) if i in picked else None)
            for i, f in enumerate(found)
        )
        state.discard()
    return Front(
        version("onnxbrecq"), source_facts(ready.original), _layers(ready), space.table,
        axis, made, (*ready.original.notes, *ready.notes, *space.table.notes),
    )  # fmt: skip


def _verified(
    ready: Prepared, space: Space, found: Found, progress: Progress, state: State
) -> Verified:
    """The point, really quantized."""
    best = learned(ready, space.menu.all_bits(found.bits), Clock(), progress, state)
    size = emitted_bytes(emitted(best.model, best.plan, ready.target))
    accuracy, nearness, _ = measured(ready, best, metric_for(ready.labelled, None, None), progress)
    return Verified(size, accuracy, nearness)


def _beside(model: PathLike, kind: str, work_dir: PathLike | None) -> Path:
    source = Path(model)
    return Path(work_dir) if work_dir else source.with_name(f"{source.stem}.{kind}.work")


def _mixed(recipe: Recipe | None) -> Recipe:
    """The recipe with mixed precision on."""
    recipe = recipe or Recipe()
    return dataclasses.replace(recipe, search=recipe.search or "exact")


def _layers(ready: Prepared) -> dict[str, str]:
    """Layer → its block."""
    names = ready.task.points.layers
    return {n: block.name for block in ready.task.blocks for n in block.nodes if n in names}
