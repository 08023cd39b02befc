"""The order of the stages: the only module that knows it."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import onnx

from onnxbrecq.blockwise import walk
from onnxbrecq.calibrate import calibrate, without_range
from onnxbrecq.data import sources
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emitted, written
from onnxbrecq.emit.targets import Target, permit, run_here, target_for
from onnxbrecq.forecast import forecast
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import load, read
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.passes.migration import with_constants
from onnxbrecq.graph.points import find_points
from onnxbrecq.graph.provenance import provenance
from onnxbrecq.graph.write import places
from onnxbrecq.output import claim
from onnxbrecq.parts import Task
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.device import learning_device
from onnxbrecq.report.facts import layer_facts, mean_bits, output_facts, source_facts
from onnxbrecq.report.result import BlockFacts, Result
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.doctor import environment, saturation_free
from onnxbrecq.runtime.memory import peak
from onnxbrecq.smoothing import smoothed
from onnxbrecq.state import digest, opened
from onnxbrecq.validation.validate import Validation
from onnxbrecq.validation.validate import validate as validate_files

PathLike = str | os.PathLike[str]


@dataclass
class _Clock:
    """Seconds of each stage, in order."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - begin

    def total(self) -> float:
        return time.perf_counter() - self.started


def quantize(
    model: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    evaluation: PathLike | Dataset | None = None,
    output: PathLike | None = None,
    plan: PathLike | None = None,
    work_dir: PathLike | None = None,
    resume: bool = True,
    force: bool = False,
    progress: Progress = silent,
) -> Result:
    """Quantizes the ONNX model at `model`, writes it, validates what was written.

    Args:
        model: a float ONNX file.
        data: unlabelled calibration samples; None: STEM.calib.npz beside the model.
        recipe: what to do; None: the defaults.
        evaluation: labelled samples; None: STEM.eval.npz beside the model, else none.
        output: where to write; None: STEM.quant.onnx beside the model.
        plan: where the decisions are kept beside it, for `emit_plan`; None: nowhere.
        work_dir: where finished blocks are kept until the output is written, so that a run that
            was cut off goes on where it was; None: OUTPUT.work beside the output.
        resume: go on with what is there; False: start afresh.
        force: replace an existing output.
        progress: told of every step.

    Raises:
        RecipeError: the target does not take what the recipe asks for; before any work.
        ModelError: the model cannot be read or run.
        DataError: the data does not fit the model.
        EmissionError: a decision cannot be written.
        OutputError: the output cannot be written.
    """
    target, here, notes = _target(recipe or Recipe())
    recipe = dataclasses.replace(recipe or Recipe(), target=target.name)
    learning_device(recipe.device)  # said before any work, if it is not there
    clock = _Clock()
    source = Path(model)
    destination = Path(output) if output else source.with_name(f"{source.stem}.quant.onnx")
    folder = Path(work_dir) if work_dir else destination.with_name(f"{destination.name}.work")
    with clock.stage("load"):
        float_model = load(source)
        kept = () if plan is None else (Path(plan),)
        for place in (*places(destination, float_model.source_bytes), *kept):
            claim(place, force=force, sources=float_model.files)
        samples, cut = _samples(data, float_model, recipe)
        original = float_model = fork(float_model, recipe.activations)
    points, blocks = find_points(float_model), partition(float_model)
    with clock.stage("forecast"):
        movable = 0 if samples is data else samples.nbytes
        ahead = forecast(float_model, blocks, points, samples, recipe, movable=movable)
        progress("forecast", 1, 1, ahead.told())
    storage = Storage(max(ahead.room, 0), folder.parent)
    with clock.stage("load"):
        samples = samples if samples is data else storage.kept(samples)
        labelled, more = _labelled(evaluation, float_model, recipe)
        if labelled is not None and labelled is not evaluation:
            labelled = storage.kept(labelled)
    with clock.stage("calibrate"):
        alike = smoothed(float_model, points, samples, recipe)
        float_model = with_constants(float_model, alike)
        factors = {name: value for name, value in alike.items() if value.ndim == 1}
        del alike  # weights are decided as levels
        decisions = calibrate(float_model, points, samples, recipe, progress=progress)
        decisions = dataclasses.replace(decisions, data_sha256=digest(samples.inputs))
        decisions = decisions.updated({}, factors)
    notes = (*notes, *cut, *more, *_left_float(without_range(points, decisions, recipe)))
    task = Task(float_model, blocks, points, samples, recipe, here, storage)
    with opened(folder, _key(task, decisions.data_sha256), resume=resume) as state:
        with clock.stage("reconstruct"):
            walked = walk(task, decisions, progress, state)
        with clock.stage("emit"):
            proto = emitted(original, walked.plan, target)
            beside = {path: walked.plan.as_bytes() for path in kept}
            files = written(proto, destination, threads=recipe.threads, beside=beside)
        state.discard()
    with clock.stage("validate"):
        validation = validate_files(
            destination, original, samples=samples, labelled=labelled,
            max_drop=recipe.max_drop, min_integer=recipe.min_integer,
            target=recipe.target, threads=recipe.threads, progress=progress,
        )  # fmt: skip
    return _result(
        original, files, proto,
        blocks=walked.blocks, validation=validation, recipe=recipe, clock=clock, notes=notes,
    )  # fmt: skip


def validate(
    quantized: PathLike,
    reference: PathLike,
    data: PathLike | Dataset | None = None,
    evaluation: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    progress: Progress = silent,
) -> Result:
    """Compares a quantized model with the float model it came from.

    Arguments and errors are those of `quantize`; calibration samples are used only where there
    are no labelled ones.
    """
    recipe = recipe or Recipe()
    clock = _Clock()
    destination = Path(quantized)
    with clock.stage("load"):
        float_model = load(Path(reference))
        proto, files = read(destination)
        labelled, notes = _labelled(evaluation, float_model, recipe)
        samples = labelled
        if samples is None:
            samples, notes = _samples(data, float_model, recipe)
    with clock.stage("validate"):
        validation = validate_files(
            destination, float_model, samples=samples, labelled=labelled,
            max_drop=recipe.max_drop, min_integer=recipe.min_integer,
            target=recipe.target or _told_target(proto, destination),
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    return _result(
        float_model, files, proto,
        blocks=(), validation=validation, recipe=recipe, clock=clock, notes=notes,
    )  # fmt: skip


_Read = tuple[Dataset, tuple[str, ...]]  # samples, and what a user should know of them


def _samples(data: PathLike | Dataset | None, model: Model, recipe: Recipe) -> _Read:
    if isinstance(data, Dataset):
        return _whole(data, model)
    found = sources.calibration(None if data is None else str(data), model, recipe.preprocess)
    return _whole(found, model)


def _labelled(
    data: PathLike | Dataset | None, model: Model, recipe: Recipe
) -> _Read | tuple[None, tuple[str, ...]]:
    if isinstance(data, Dataset):
        return _whole(data, model)
    found = sources.evaluation(None if data is None else str(data), model, recipe.preprocess)
    return (None, ()) if found is None else _whole(found, model)


def _whole(data: Dataset, model: Model) -> _Read:
    """The data in whole batches, as a model takes it, and a line on what was left out."""
    kept = data.whole(model.file_batch)
    left = len(data) - len(kept)
    if not left:
        return kept, ()
    note = f"the last {left} samples are left out: the model takes {model.file_batch} at a time"
    return kept, (f"{data.origin}: {note}" if data.origin else note,)


def _target(recipe: Recipe) -> tuple[Target, Target, tuple[str, ...]]:
    """The runtime the model is for, what stands for it here, and what its reader should know."""
    saturates = not saturation_free()
    target = target_for(recipe.target, saturates=saturates)
    permit(target, recipe)
    here = run_here(target, saturates=saturates)
    return target, here, (*_of_processor(recipe, target, saturates=saturates),
                          *_of_target(recipe, target, here))  # fmt: skip


def _told_target(proto: onnx.ModelProto, path: Path) -> str | None:
    """The target that the file says it was written for."""
    told = provenance(proto, str(path))
    return None if told is None else told.target


def _of_target(recipe: Recipe, target: Target, here: Target) -> tuple[str, ...]:
    """What a user should know of a target that is not onnxruntime's own."""
    notes = []
    if target is not here:
        notes.append(
            f"measured with onnxruntime's CPU provider: the runtime of target {target.name} may "
            "differ by rounding, and in speed"
        )
    if target.storage == "int8" and recipe.weights < 8:
        notes.append(
            f"target {target.name} stores weights of {recipe.weights} bits in bytes: with "
            "--weights 8 the file is no larger"
        )
    return tuple(notes)


def _of_processor(recipe: Recipe, target: Target, *, saturates: bool) -> tuple[str, ...]:
    """What a user should know of this processor."""
    known = "8-bit products saturate on this processor (no VNNI): "
    if saturates and recipe.target is None:
        known += "8-bit weights are stored unsigned (target ort-cpu-avx2); "
        return (f"{known}--target ort-cpu is faster where VNNI exists",)
    if saturates and not target.unsigned:
        known += "accuracy is better where VNNI exists, "
        return (f"{known}and here with --target ort-cpu-avx2",)
    return ()


def _left_float(tensors: Sequence[str]) -> tuple[str, ...]:
    """What a user should know of tensors without a range: a line for all of them."""
    if not tensors:
        return ()
    named = ", ".join(repr(name) for name in tensors[:4]) + (", ..." if tensors[4:] else "")
    return (f"{named} stay float: infinite, or without any value, on the calibration data",)


def _key(task: Task, data: str) -> dict[str, object]:
    """What a block's decisions depend on; `data` is the digest of the samples."""
    model = {"sha256": task.model.source_sha256, "blocks": [b.name for b in task.blocks]}
    seen = {**environment(), "onnxbrecq": version("onnxbrecq"), "cores": os.cpu_count()}
    return {
        "model": model,
        "data": data,
        "recipe": task.recipe.decisive().as_json(),
        "environment": seen,
    }


def _result(
    model: Model,
    files: Sequence[Path],
    proto: onnx.ModelProto,
    *,
    blocks: tuple[BlockFacts, ...],
    validation: Validation,
    recipe: Recipe,
    clock: _Clock,
    notes: tuple[str, ...],
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
    )
