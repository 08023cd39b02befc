"""What every run starts with: the model, its samples, and its activations, seen once."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.bits import Allocation, uniform_bits
from onnxbrecq.calibrate import Calibration, sampled, without_range
from onnxbrecq.data import sources
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.sources import Reading
from onnxbrecq.datafree import ORIGIN, made_data
from onnxbrecq.emit.targets import Target, permit, run_here, target_for
from onnxbrecq.errors import ModelError
from onnxbrecq.forecast import forecast
from onnxbrecq.graph.blocks import Block, partition
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.passes.migration import with_constants
from onnxbrecq.graph.points import find_points
from onnxbrecq.graph.write import places
from onnxbrecq.output import claim
from onnxbrecq.parts import Task
from onnxbrecq.plan import QuantPlan
from onnxbrecq.progress import Progress
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.device import learning_device
from onnxbrecq.report.result import MadeData
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.doctor import environment, saturation_free
from onnxbrecq.smoothing import smoothed
from onnxbrecq.state import digest

PathLike = str | os.PathLike[str]
_FEW = 4  # any bits below 8


@dataclass
class Clock:
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


@dataclass(frozen=True)
class Prepared:
    """What a run works on.

    Attributes:
        original: the model as it was loaded.
        task: the model with finer levels for what is added up (`onnxbrecq.graph.fork`), where
            layers may read fewer than 8 bits.
        target: the runtime that the model is for; that of the task stands for it here.
        alike: constants of the task's model that differ from the original's (`smoothing`).
        calibration: of the task's activations.
        data_sha256: digest of the samples.
        labelled: evaluation samples, or None.
        made: how the calibration samples were made; None: they were given.
        notes: lines for the reader.
    """

    original: Model
    task: Task
    target: Target
    alike: Mapping[str, NDArray[np.float32]]
    calibration: Calibration
    data_sha256: str
    labelled: Dataset | None
    made: MadeData | None
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """What is asked for, the target included."""
        return self.task.recipe

    def key(self) -> dict[str, object]:
        """What a block's decisions depend on, beside its bits."""
        return state_key(self.task, self.data_sha256)

    def at(self, bits: Allocation) -> tuple[Task, QuantPlan]:
        """The task and the round-to-nearest plan at these bits."""
        task, calibration = self.task, self.calibration
        if self.recipe.mixed and self.recipe.offered_activations:
            few = [name for name, b in bits.items() if b.data is not None and b.data < 8]
            model = with_constants(fork(self.original, _FEW, few), self.alike)
            points = find_points(model)
            task = dataclasses.replace(task, model=model, blocks=partition(model), points=points)
            calibration = calibration.of(model, points)
        factors = {name: value for name, value in self.alike.items() if value.ndim == 1}
        plan = calibration.plan(bits).updated({}, factors)  # weights are decided as levels
        return task, dataclasses.replace(plan, data_sha256=self.data_sha256)

    def uniform(self) -> Allocation:
        """The bits of every layer as the recipe says them."""
        return uniform_bits(self.task.points, self.recipe)


def prepared(
    source: Path,
    recipe: Recipe,
    *,
    data: PathLike | Dataset | None,
    evaluation: PathLike | Dataset | None,
    folder: Path,
    clock: Clock,
    progress: Progress,
    written: Sequence[Path] = (),
    force: bool = False,
) -> Prepared:
    """The model with its samples, its activations seen; `folder` is where more than fits is kept.

    The first file to be `written` is the model; all are claimed before any work.

    Raises:
        RecipeError: the target does not take what the recipe asks for.
        ModelError: the model cannot be read or run.
        DataError: the data does not fit the model.
        OutputError: a file could not be written.
    """
    target, here, notes = target_of(recipe)
    recipe = dataclasses.replace(recipe, target=target.name)
    learning_device(recipe.device)  # said before any work, if it is not there
    with clock.stage("load"):
        original = load(source)
        files = [*places(written[0], original.source_bytes), *written[1:]] if written else []
        for place in files:
            claim(place, force=force, sources=original.files)
        reading = Reading(recipe.preprocess, folder.absolute().parent, progress)
        samples, told, made = samples_of(data, original, recipe, reading)
        model = _forked(original, recipe)
    points, blocks = find_points(model), partition(model)
    _refuse_constants(blocks)
    uniform = uniform_bits(points, recipe)
    with clock.stage("forecast"):
        movable = 0 if samples is data else samples.nbytes
        ahead = forecast(model, blocks, points, samples, recipe, movable=movable)
        progress("forecast", 1, 1, ahead.told())
    storage = Storage(max(ahead.room, 0), folder.parent)
    with clock.stage("load"):
        samples = samples if samples is data else storage.kept(samples)
        labelled, more = labelled_of(evaluation, model, reading)
        if labelled is not None and labelled is not evaluation:
            labelled = storage.kept(labelled)
    with clock.stage("calibrate"):
        alike = smoothed(model, points, samples, recipe, uniform)
        model = with_constants(model, alike)
        calibration = sampled(model, points, samples, recipe, progress=progress)
        left = _left_float(without_range(points, calibration.plan(uniform), recipe))
        digested = digest(samples.inputs)
    task = Task(model, blocks, points, samples, recipe, here, storage)
    return Prepared(
        original, task, target, alike, calibration, digested, labelled, made,
        (*notes, *told, *more, *left),
    )  # fmt: skip


def _refuse_constants(blocks: Sequence[Block]) -> None:
    """Refuses what is computed of constants alone and was not folded, where it is read."""
    made = {name: block for block in blocks if not block.inputs for name in block.outputs}
    for block in blocks:
        for name in block.inputs:
            if name in made:
                raise ModelError(
                    f"node {made[name].nodes[-1]!r} computes {name!r} of constants alone, but it "
                    f"is an output or too large to be folded, and {block.name!r} reads it: store "
                    "it as a constant, or make it an input"
                )


def _forked(model: Model, recipe: Recipe) -> Model:
    """The model with finer levels for what is added up, where layers may read fewer than 8 bits."""
    offered = recipe.offered_activations if recipe.mixed else ()
    read = [bits for bits in (recipe.activations, *offered) if bits is not None]
    layers = None if recipe.first_last is not None else list(find_points(model).layers)
    return fork(model, min(read, default=None), layers)


_Read = tuple[Dataset, tuple[str, ...]]  # samples, and what a user should know of them


class Samples(NamedTuple):
    """Calibration samples, what a user should know of them; how they were made, if they were."""

    data: Dataset
    notes: tuple[str, ...]
    made: MadeData | None = None


def samples_of(
    data: PathLike | Dataset | None, model: Model, recipe: Recipe, reading: Reading
) -> Samples:
    """What the user gave, or what lies beside the model; else samples made from the model."""
    if isinstance(data, Dataset):
        return Samples(*_whole(data, model))
    found = sources.calibration(None if data is None else str(data), model, reading)
    if found is not None:
        return Samples(*_whole(found, model))
    reading.progress("data", 1, 1, f"NO CALIBRATION DATA: it is {ORIGIN} itself")
    made = made_data(model, recipe, reading.progress)
    told = (
        f"NO CALIBRATION DATA: {made.facts.samples} samples were {ORIGIN} itself "
        f"({made.facts.how}); a few hundred real ones, with -d (--data), are better, and what is "
        "measured on made ones says little of real ones"
    )
    return Samples(made.data, (told,), made.facts)


def labelled_of(
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


def target_of(recipe: Recipe) -> tuple[Target, Target, tuple[str, ...]]:
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
        known += "8-bit weights have scales at which they do not (target ort-cpu-avx2); "
        return (f"{known}--target ort-cpu is slightly more accurate where VNNI exists",)
    if saturates and target.saturates is False:
        known += "accuracy is better where VNNI exists, "
        return (f"{known}and here with --target ort-cpu-avx2",)
    return ()


def _left_float(tensors: Sequence[str]) -> tuple[str, ...]:
    """What a user should know of tensors without a range: a line for all of them."""
    if not tensors:
        return ()
    named = ", ".join(repr(name) for name in tensors[:4]) + (", ..." if tensors[4:] else "")
    return (f"{named} stay float: infinite, or without any value, on the calibration data",)


def state_key(task: Task, data: str) -> dict[str, object]:
    """What a block's decisions depend on, beside its bits; `data` is the digest of the samples."""
    model = {"sha256": task.model.source_sha256, "blocks": [b.name for b in task.blocks]}
    seen = {**environment(), "onnxbrecq": version("onnxbrecq"), "cores": os.cpu_count()}
    recipe = dataclasses.replace(task.recipe.decisive(), budget=())
    return {
        "model": model,
        "data": data,
        "recipe": recipe.as_json(),
        "environment": seen,
    }
