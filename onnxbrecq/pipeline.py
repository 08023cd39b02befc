"""The order of the stages: the only module that knows it."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxbrecq.adoption import check_origin, recalibrated, repaired, taken_apart
from onnxbrecq.bits import Allocation
from onnxbrecq.blockwise import walk
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.sources import Reading
from onnxbrecq.emission import emitted, written
from onnxbrecq.emit.targets import any_file
from onnxbrecq.errors import DataError, EmissionError, RecipeError
from onnxbrecq.forecast import forecast
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.load import load, read
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.provenance import provenance
from onnxbrecq.graph.write import contents, places
from onnxbrecq.mixed import Menu, Space, chosen, explored, feasible, menu_of, sized, smallest
from onnxbrecq.output import claim, write_atomically
from onnxbrecq.parts import Task
from onnxbrecq.plan import QuantPlan
from onnxbrecq.preparation import Clock, Prepared, labelled_of, prepared, samples_of
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.device import learning_device
from onnxbrecq.report.evidence import Front as Shown
from onnxbrecq.report.evidence import FrontPoint
from onnxbrecq.report.facts import layer_facts, mean_bits, output_facts, source_facts
from onnxbrecq.report.html import as_html
from onnxbrecq.report.result import (
    Accuracy,
    BlockFacts,
    BudgetFacts,
    DataFacts,
    Fidelity,
    Gate,
    Result,
    SearchFacts,
    TrialFacts,
)
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.doctor import environment, saturation_free
from onnxbrecq.runtime.memory import peak
from onnxbrecq.search.allocate import Found, Limit
from onnxbrecq.search.findings import Exploration, Front, Point, Verified, predicted_db
from onnxbrecq.search.front import POINTS, front
from onnxbrecq.search.table import Sensitivity
from onnxbrecq.state import State, opened
from onnxbrecq.validation.evidence import gather
from onnxbrecq.validation.gate import Limits
from onnxbrecq.validation.metrics import Metric as Scorer
from onnxbrecq.validation.metrics import metric_for
from onnxbrecq.validation.validate import Validation, measure
from onnxbrecq.validation.validate import validate as validate_files

PathLike = str | os.PathLike[str]
_SHOWN = 17  # points of a front in a report
Metric = str | Callable[..., Any] | None
Scoring = Callable[[], Scorer | None]  # a new one for each model


def quantize(
    model: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    evaluation: PathLike | Dataset | None = None,
    metric: Metric = None,
    detections: Metric = None,
    output: PathLike | None = None,
    plan: PathLike | None = None,
    sensitivity: PathLike | None = None,
    report: PathLike | None = None,
    work_dir: PathLike | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> Result:
    """Quantizes the ONNX model at `model`, writes it, validates what was written.

    Args:
        model: a float ONNX file.
        data: unlabelled calibration samples; None: STEM.calib.npz beside the model, else samples
            made from the model itself.
        recipe: what to do; None: the defaults.
        evaluation: labelled samples; None: STEM.eval.npz beside the model, else none.
        metric: of accuracy: `mAP`, `mAP50`, or a function of outputs and samples or its name
            `module:function`; None: mAP where the samples have boxes, top-1 where they have labels.
        detections: what makes boxes of the outputs, for mAP; None: the model gives them.
        output: where to write; None: STEM.quant.onnx beside the model.
        plan: where the decisions are kept beside it, for `emit_plan`; None: nowhere.
        sensitivity: the JSON of `sensitivities`, for mixed precision; None: they are measured.
        report: where a page for people is written, one HTML file; None: nowhere.
        work_dir: where finished blocks are kept until the output is written, so that a run that
            was cut off goes on where it was; None: OUTPUT.work beside the output.
        resume: go on with what is there; False: start afresh.
        force: replace an existing output.
        progress: told of every step.

    Raises:
        RecipeError: the target does not take what the recipe asks for; before any work. Or no
            allocation of bits keeps a budget.
        ModelError: the model cannot be read or run.
        DataError: the data does not fit the model.
        EmissionError: a decision cannot be written.
        OutputError: the output cannot be written.
    """
    recipe = recipe or Recipe()
    if recipe.mixed and not recipe.budget and recipe.max_drop is None:
        raise RecipeError("search: for what? Give a budget, or max_drop")
    clock = Clock()
    source = Path(model)
    destination = Path(output) if output else source.with_name(f"{source.stem}.quant.onnx")
    folder = Path(work_dir) if work_dir else destination.with_name(f"{destination.name}.work")
    _claim_report(report, force=force)
    kept = () if plan is None else (Path(plan),)
    ready = prepared(
        source, recipe, data=data, evaluation=evaluation, folder=folder, clock=clock,
        progress=progress, written=(destination, *kept), force=force,
    )  # fmt: skip
    scoring = partial(metric_for, ready.labelled, metric, detections)
    scoring()  # what it lacks is said before any work
    with opened(folder, ready.key(), resume=resume) as state:
        best = _decided(ready, clock, progress, state, scoring=scoring, table=_table(sensitivity))
        with clock.stage("emit"):
            proto = emitted(best.model, best.plan, ready.target)
            _check_size(proto, best.search)
            beside = {path: best.plan.as_bytes() for path in kept}
            files = written(proto, destination, threads=ready.recipe.threads, beside=beside)
        state.discard()
    with clock.stage("validate"):
        validation = validate_files(
            destination, ready.original, samples=ready.task.data, labelled=ready.labelled,
            metric=scoring(), limits=Limits.of(ready.recipe, ready.original.source_bytes),
            size_bytes=_bytes(files), target=ready.recipe.target, threads=ready.recipe.threads,
            progress=progress,
        )  # fmt: skip
    result = _result(
        ready.task.model, files, proto,
        blocks=best.blocks, validation=validation, recipe=ready.recipe, clock=clock,
        notes=(*ready.notes, *best.notes),
        data=DataFacts(ready.task.data.origin, len(ready.task.data), ready.made),
    )  # fmt: skip
    result = dataclasses.replace(result, search=best.search)
    if report is not None:
        nearest = emitted(best.model, best.start, ready.target)
        evidence = gather(
            best.model, partition(best.model), proto, nearest, ready.task.data,
            threads=ready.recipe.threads, progress=progress,
        )  # fmt: skip
        evidence = dataclasses.replace(evidence, front=_alternatives(best, progress))
        write_atomically(Path(report), as_html(result, evidence))
    return result


def validate(
    quantized: PathLike,
    reference: PathLike,
    data: PathLike | Dataset | None = None,
    evaluation: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    metric: Metric = None,
    detections: Metric = None,
    report: PathLike | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Result:
    """Compares a quantized model with the float model it came from.

    Arguments and errors are those of `quantize`; calibration samples are used only where there
    are no labelled ones.
    """
    recipe = recipe or Recipe()
    clock = Clock()
    destination = Path(quantized)
    _claim_report(report, force=force)
    with clock.stage("load"):
        float_model = load(Path(reference))
        proto, files = read(destination)
        reading = Reading(recipe.preprocess, progress=progress)
        labelled, notes = labelled_of(evaluation, float_model, reading)
        samples, made = labelled, None
        if samples is None:
            samples, notes, made = samples_of(data, float_model, recipe, reading)
        scoring = metric_for(labelled, metric, detections)
    with clock.stage("validate"):
        validation = validate_files(
            destination, float_model, samples=samples, labelled=labelled, metric=scoring,
            limits=Limits.of(recipe, float_model.source_bytes), size_bytes=_bytes(files),
            target=recipe.target or _told_target(proto, destination),
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    found = _result(
        float_model, files, proto,
        blocks=(), validation=validation, recipe=recipe, clock=clock, notes=notes,
        data=DataFacts(samples.origin, len(samples), made),
    )  # fmt: skip
    if report is not None:
        blocks = partition(float_model)
        evidence = gather(
            float_model, blocks, proto, None, samples, threads=recipe.threads, progress=progress
        )
        write_atomically(Path(report), as_html(found, evidence))
    return found


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
    menu = _menu(ready)
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
    menu, table = _menu(ready), _table(sensitivity)
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


def repair(
    quantized: PathLike,
    reference: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    evaluation: PathLike | Dataset | None = None,
    output: PathLike | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Result:
    """Another tool's QDQ model with its rounding, steps, zero points and biases learned anew.

    Nodes, their placement, names and types stay as they are; only values of constants change.

    Args:
        quantized: the QDQ file.
        reference: the float model that it was made from.
        data: as for `quantize`.
        recipe: how to learn; what it says of bits and target does not count.
        evaluation: as for `quantize`.
        output: where to write; None: STEM.repaired.onnx beside the quantized model.
        force: replace an existing output.
        progress: told of every step.

    Raises:
        ModelError: a model cannot be read or run, is no QDQ model, or not that of the other.
        DataError: the data does not fit the model.
        OutputError: the output cannot be written.
    """
    recipe = recipe or Recipe()
    learning_device(recipe.device)
    clock = Clock()
    source = Path(quantized)
    destination = Path(output) if output else source.with_name(f"{source.stem}.repaired.onnx")
    reading = Reading(recipe.preprocess, destination.absolute().parent, progress)
    with clock.stage("load"):
        float_model = load(Path(reference))
        proto, files = read(source)
        for place in places(destination, sum(path.stat().st_size for path in files)):
            claim(place, force=force, sources=(*files, *float_model.files))
        broken = taken_apart(proto, float_model, str(source))
        samples, cut, made = samples_of(data, float_model, recipe, reading)
        labelled, more = labelled_of(evaluation, float_model, reading)
        check_origin(broken, float_model, samples, str(source), recipe)
    points, blocks = broken.points, partition(broken.model)
    with clock.stage("forecast"):
        movable = 0 if samples is data else samples.nbytes
        ahead = forecast(broken.model, blocks, points, samples, recipe, movable=movable)
        progress("forecast", 1, 1, ahead.told())
    storage = Storage(max(ahead.room, 0), destination.absolute().parent)
    with clock.stage("calibrate"):
        samples = samples if samples is data else storage.kept(samples)
        start = recalibrated(broken, samples, recipe, progress)
    here = any_file(saturates=not saturation_free())
    task = Task(broken.model, blocks, points, samples, recipe, here, storage)
    with clock.stage("reconstruct"):
        walked = walk(task, start, progress)
    with clock.stage("emit"):
        mended = repaired(broken, walked.plan)
        outputs = written(mended, destination, threads=recipe.threads)
    with clock.stage("validate"):
        validation = validate_files(
            destination, float_model, samples=samples, labelled=labelled,
            metric=metric_for(labelled, None, None),
            limits=Limits.of(recipe, float_model.source_bytes), size_bytes=_bytes(outputs),
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    return _result(
        float_model, outputs, mended,
        blocks=walked.blocks, validation=validation, recipe=recipe, clock=clock,
        notes=(*cut, *more, *broken.notes), data=DataFacts(samples.origin, len(samples), made),
    )  # fmt: skip


def _beside(model: PathLike, kind: str, work_dir: PathLike | None) -> Path:
    source = Path(model)
    return Path(work_dir) if work_dir else source.with_name(f"{source.stem}.{kind}.work")


def _mixed(recipe: Recipe | None) -> Recipe:
    """The recipe with mixed precision on."""
    recipe = recipe or Recipe()
    return dataclasses.replace(recipe, search=recipe.search or "exact")


def _table(path: PathLike | None) -> Sensitivity | None:
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


@dataclass(frozen=True)
class _Best:
    """The decisions that are to be written, and how they came about."""

    model: Model
    start: QuantPlan  # all weights rounded to nearest
    plan: QuantPlan
    blocks: tuple[BlockFacts, ...]
    search: SearchFacts | None = None
    notes: tuple[str, ...] = ()
    choice: tuple[Space, Found, Sequence[Limit]] | None = None  # what there was, and was chosen


def _decided(
    ready: Prepared,
    clock: Clock,
    progress: Progress,
    state: State,
    *,
    scoring: Scoring,
    table: Sensitivity | None,
) -> _Best:
    """All decisions: at uniform bits, at the best for the budgets, or at the fewest that pass."""
    if not ready.recipe.mixed:
        return _learned(ready, ready.uniform(), clock, progress, state)
    menu = _menu(ready)
    asked = feasible(menu, ready.recipe.budget)
    with clock.stage("sensitivity"):
        space = explored(menu, progress, state=state, table=table)
    trials: list[TrialFacts] = []

    def passes(found: Found) -> bool:
        best = _learned(ready, space.menu.all_bits(found.bits), clock, progress, state)
        with clock.stage("search"):
            gate = _measured(ready, best, scoring(), progress)[2]
        trials.append(TrialFacts(found.costs["size"], found.loss, bool(gate.met), gate.reason))
        return bool(gate.met)

    if asked:
        with clock.stage("search"):
            found = chosen(space, asked)
    else:
        found, _ = smallest(space, passes, progress)
    best = _learned(ready, space.menu.all_bits(found.bits), clock, progress, state)
    search = dataclasses.replace(_search(space, found, asked), trials=tuple(trials))
    choice = space, found, asked
    return dataclasses.replace(best, search=search, notes=space.table.notes, choice=choice)


def _alternatives(best: _Best, progress: Progress) -> Shown | None:
    """The front that the model was chosen from, the model on it; None: nothing was chosen."""
    if best.choice is None:
        return None
    space, found, asked = best.choice
    cost = asked[0].cost if asked else space.menu.size
    others = front(space.problem, cost, asked[1:], _SHOWN, progress)
    points = [
        FrontPoint(f.costs[cost.key], f.loss, _told_bits(f), chosen=f is found)
        for f in (*(other for other in others if other.bits != found.bits), found)
    ]
    return Shown(cost.unit, tuple(sorted(points, key=lambda point: point.cost)))


def _told_bits(found: Found) -> str:
    """Such as `2 bits: 3 layers, 4 bits: 6`."""
    counts = Counter(bits.weight for bits in found.bits.values())
    told = sorted((width, count) for width, count in counts.items() if width is not None)
    return ", ".join(f"{width} bits: {count} layers" for width, count in told)


def _learned(
    ready: Prepared, bits: Allocation, clock: Clock, progress: Progress, state: State
) -> _Best:
    """The model's decisions at these bits; blocks that the state knows at them are not learned."""
    task, plan = ready.at(bits)
    with clock.stage("reconstruct"):
        walked = walk(task, plan, progress, state)
    return _Best(task.model, plan, walked.plan, walked.blocks)


def _measured(
    ready: Prepared, best: _Best, metric: Scorer | None, progress: Progress
) -> tuple[Accuracy | None, Fidelity | None, Gate]:
    """Accuracy, fidelity and gate of the decisions, as they would be written for here."""
    proto = emitted(best.model, best.plan, ready.task.target)
    return measure(
        proto, ready.original, samples=ready.task.data, labelled=ready.labelled, metric=metric,
        max_drop=ready.recipe.max_drop, threads=ready.recipe.threads, progress=progress,
    )  # fmt: skip


def _menu(ready: Prepared) -> Menu:
    return menu_of(ready.task, ready.calibration, ready.target, ready.data_sha256)


def _verified(
    ready: Prepared, space: Space, found: Found, progress: Progress, state: State
) -> Verified:
    """The point, really quantized."""
    best = _learned(ready, space.menu.all_bits(found.bits), Clock(), progress, state)
    size = _emitted_bytes(emitted(best.model, best.plan, ready.target))
    accuracy, nearness, _ = _measured(ready, best, metric_for(ready.labelled, None, None), progress)
    return Verified(size, accuracy, nearness)


def _search(space: Space, found: Found, asked: Sequence[Limit]) -> SearchFacts:
    told = [BudgetFacts(x.cost.key, x.cost.unit, x.most, found.costs[x.cost.key]) for x in asked]
    if all(x.cost.key != "size" for x in asked):
        told.append(BudgetFacts("size", "bytes", None, found.costs["size"]))
    table = space.table
    return SearchFacts(
        found.method, table.measure, table.samples, found.loss, predicted_db(table, found.loss),
        found.gap, found.seconds, tuple(told),
    )  # fmt: skip


def _check_size(proto: onnx.ModelProto, search: SearchFacts | None) -> None:
    """Refuses a file that is larger than its budget: `FileSize` says that there is none."""
    size = _emitted_bytes(proto) if search else 0
    for budget in search.budgets if search else ():
        if budget.key == "size" and budget.limit is not None and size > budget.limit:
            raise EmissionError(
                f"the file would have {size} bytes, and {budget.limit:.0f} are allowed; "
                "give a little more, and report it"
            )


def _claim_report(path: PathLike | None, *, force: bool) -> None:
    if path is not None:
        claim(Path(path), force=force)


def _bytes(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _emitted_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(part) for file in contents(proto, "model.onnx").values() for part in file)


def _layers(ready: Prepared) -> dict[str, str]:
    """Layer → its block."""
    names = ready.task.points.layers
    return {n: block.name for block in ready.task.blocks for n in block.nodes if n in names}


def _told_target(proto: onnx.ModelProto, path: Path) -> str | None:
    """The target that the file says it was written for."""
    told = provenance(proto, str(path))
    return None if told is None else told.target


def _result(
    model: Model,
    files: Sequence[Path],
    proto: onnx.ModelProto,
    *,
    blocks: tuple[BlockFacts, ...],
    validation: Validation,
    recipe: Recipe,
    clock: Clock,
    notes: tuple[str, ...],
    data: DataFacts,
) -> Result:
    layers = layer_facts(model, proto)
    weights, activations = mean_bits(layers)
    return Result(
        tool_version=version("onnxbrecq"),
        model=source_facts(model),
        output=output_facts(files, proto),
        weights_mean_bits=weights,
        activations_mean_bits=activations,
        layers=layers,
        blocks=blocks,
        accuracy=validation.accuracy,
        fidelity=validation.fidelity,
        execution=validation.execution,
        parity=validation.parity,
        gate=validation.gate,
        total_seconds=clock.total(),
        stages=clock.stages,
        peak_bytes=peak(),
        environment={**environment(), "threads": str(recipe.threads or os.cpu_count())},
        notes=(*model.notes, *notes, *validation.notes),
        data=data,
    )
