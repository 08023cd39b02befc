"""The order of the stages: the only module that knows it."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import onnx

from onnxbrecq.adoption import check_origin, recalibrated, repaired, taken_apart
from onnxbrecq.blockwise import walk
from onnxbrecq.calibrate import calibrate, without_range
from onnxbrecq.data import sources
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.sources import Reading
from onnxbrecq.datafree import ORIGIN, made_data
from onnxbrecq.emission import emitted, written
from onnxbrecq.emit.targets import Target, any_file, permit, run_here, target_for
from onnxbrecq.forecast import forecast
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import load, read
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.graph.write import places
from onnxbrecq.output import claim
from onnxbrecq.parts import Task
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.device import learning_device
from onnxbrecq.report.facts import layer_facts, mean_bits, output_facts, source_facts
from onnxbrecq.report.result import BlockFacts, DataFacts, MadeData, Result
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.doctor import environment, saturation_free
from onnxbrecq.runtime.memory import peak
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
        data: unlabelled calibration samples; None: STEM.calib.npz beside the model, else samples
            made from the model itself.
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
        reading = Reading(recipe.preprocess, folder.absolute().parent, progress)
        samples, cut, made = _samples(data, float_model, recipe, reading)
        float_model = fork(float_model, recipe.activations)
    points, blocks = find_points(float_model), partition(float_model)
    with clock.stage("forecast"):
        movable = 0 if samples is data else samples.nbytes
        ahead = forecast(float_model, blocks, points, samples, recipe, movable=movable)
        progress("forecast", 1, 1, ahead.told())
    storage = Storage(max(ahead.room, 0), folder.parent)
    with clock.stage("load"):
        samples = samples if samples is data else storage.kept(samples)
        labelled, more = _labelled(evaluation, float_model, reading)
        if labelled is not None and labelled is not evaluation:
            labelled = storage.kept(labelled)
    with clock.stage("calibrate"):
        decisions = calibrate(float_model, points, samples, recipe, progress=progress)
        decisions = dataclasses.replace(decisions, data_sha256=digest(samples.inputs))
    notes = (*notes, *cut, *more, *_left_float(without_range(points, decisions, recipe)))
    task = Task(float_model, blocks, points, samples, recipe, here, storage)
    with opened(folder, _key(task, decisions.data_sha256), resume=resume) as state:
        with clock.stage("reconstruct"):
            walked = walk(task, decisions, progress, state)
        with clock.stage("emit"):
            proto = emitted(float_model, walked.plan, target)
            beside = {path: walked.plan.as_bytes() for path in kept}
            files = written(proto, destination, threads=recipe.threads, beside=beside)
        state.discard()
    with clock.stage("validate"):
        validation = validate_files(
            destination, float_model, samples=samples, labelled=labelled,
            max_drop=recipe.max_drop, min_integer=recipe.min_integer,
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    return _result(
        float_model, files, proto,
        blocks=walked.blocks, validation=validation, recipe=recipe, clock=clock, notes=notes,
        data=DataFacts(samples.origin, len(samples), made),
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
        reading = Reading(recipe.preprocess, progress=progress)
        labelled, notes = _labelled(evaluation, float_model, reading)
        samples, made = labelled, None
        if samples is None:
            samples, notes, made = _samples(data, float_model, recipe, reading)
    with clock.stage("validate"):
        validation = validate_files(
            destination, float_model, samples=samples, labelled=labelled,
            max_drop=recipe.max_drop, min_integer=recipe.min_integer,
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    return _result(
        float_model, files, proto,
        blocks=(), validation=validation, recipe=recipe, clock=clock, notes=notes,
        data=DataFacts(samples.origin, len(samples), made),
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
    clock = _Clock()
    source = Path(quantized)
    destination = Path(output) if output else source.with_name(f"{source.stem}.repaired.onnx")
    reading = Reading(recipe.preprocess, destination.absolute().parent, progress)
    with clock.stage("load"):
        float_model = load(Path(reference))
        proto, files = read(source)
        for place in places(destination, sum(path.stat().st_size for path in files)):
            claim(place, force=force, sources=(*files, *float_model.files))
        broken = taken_apart(proto, float_model, str(source))
        samples, cut, made = _samples(data, float_model, recipe, reading)
        labelled, more = _labelled(evaluation, float_model, reading)
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
            max_drop=recipe.max_drop, min_integer=recipe.min_integer,
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    return _result(
        float_model, outputs, mended,
        blocks=walked.blocks, validation=validation, recipe=recipe, clock=clock,
        notes=(*cut, *more, *broken.notes), data=DataFacts(samples.origin, len(samples), made),
    )  # fmt: skip


_Read = tuple[Dataset, tuple[str, ...]]  # samples, and what a user should know of them


class _Samples(NamedTuple):
    """Calibration samples, what a user should know of them; how they were made, if they were."""

    data: Dataset
    notes: tuple[str, ...]
    made: MadeData | None = None


def _samples(
    data: PathLike | Dataset | None, model: Model, recipe: Recipe, reading: Reading
) -> _Samples:
    """What the user gave, or what lies beside the model; else samples made from the model."""
    if isinstance(data, Dataset):
        return _Samples(*_whole(data, model))
    found = sources.calibration(None if data is None else str(data), model, reading)
    if found is not None:
        return _Samples(*_whole(found, model))
    reading.progress("data", 1, 1, f"NO CALIBRATION DATA: it is {ORIGIN} itself")
    made = made_data(model, recipe, reading.progress)
    told = (
        f"NO CALIBRATION DATA: {made.facts.samples} samples were {ORIGIN} itself "
        f"({made.facts.how}); a few hundred real ones, with -d (--data), are better, and what is "
        "measured on made ones says little of real ones"
    )
    return _Samples(made.data, (told,), made.facts)


def _labelled(
    data: PathLike | Dataset | None, model: Model, reading: Reading
) -> _Read | tuple[None, tuple[str, ...]]:
    if isinstance(data, Dataset):
        return _whole(data, model)
    found = sources.evaluation(None if data is None else str(data), model, reading)
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
