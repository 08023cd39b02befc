"""`onnxbrecq quantize`: from a float file to a quantized one, written and validated."""

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path

import onnx

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emitted
from onnxbrecq.errors import EmissionError, RecipeError
from onnxbrecq.graph.blocks import partition
from onnxbrecq.output import write_atomically
from onnxbrecq.pipeline.decisions import Best, decided, saved_table
from onnxbrecq.pipeline.proof import proved
from onnxbrecq.pipeline.results import claim_report, emitted_bytes, result_of
from onnxbrecq.preparation import Clock, PathLike, prepared
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.evidence import Front as Shown
from onnxbrecq.report.evidence import FrontPoint
from onnxbrecq.report.html import as_html
from onnxbrecq.report.result import DataFacts, Result, SearchFacts
from onnxbrecq.search.allocate import Found
from onnxbrecq.search.front import front
from onnxbrecq.state import opened
from onnxbrecq.validation.evidence import gather
from onnxbrecq.validation.gate import Limits
from onnxbrecq.validation.metrics import Function, metric_for

_SHOWN = 17  # points of a front in a report


def quantize(
    model: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    evaluation: PathLike | Dataset | None = None,
    metric: str | Function | None = None,
    detections: str | Function | None = None,
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
        work_dir: where finished blocks are kept until the output is validated and written, so
            that a run that was cut off goes on where it was; None: OUTPUT.work beside the output.
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
    claim_report(report, force=force)
    kept = () if plan is None else (Path(plan),)
    ready = prepared(
        source, recipe, data=data, evaluation=evaluation, folder=folder, clock=clock,
        progress=progress, written=(destination, *kept), force=force,
    )  # fmt: skip
    scoring = partial(metric_for, ready.labelled, metric, detections)
    scoring()  # what it lacks is said before any work
    with opened(folder, ready.key(), resume=resume) as state:
        best = decided(
            ready, clock, progress, state, scoring=scoring, table=saved_table(sensitivity)
        )
        with clock.stage("emit"):
            proto = emitted(best.model, best.plan, ready.target)
            _check_size(proto, best.search)
        validation, files = proved(
            proto, destination, ready.original, state, clock,
            beside={path: best.plan.as_bytes() for path in kept},
            samples=ready.task.data, labelled=ready.labelled, metric=scoring(),
            limits=Limits.of(ready.recipe, ready.original.source_bytes),
            target=ready.recipe.target, threads=ready.recipe.threads, progress=progress,
        )  # fmt: skip
        state.discard()
    result = result_of(
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


def _alternatives(best: Best, progress: Progress) -> Shown | None:
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


def _check_size(proto: onnx.ModelProto, search: SearchFacts | None) -> None:
    """Refuses a file that is larger than its budget: `FileSize` says that there is none."""
    size = emitted_bytes(proto) if search else 0
    for budget in search.budgets if search else ():
        if budget.key == "size" and budget.limit is not None and size > budget.limit:
            raise EmissionError(
                f"the file would have {size} bytes, and {budget.limit:.0f} are allowed; "
                "give a little more, and report it"
            )
