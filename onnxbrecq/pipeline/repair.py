"""`onnxbrecq repair`: another tool's file, learned anew by the same walk."""

from pathlib import Path

from onnxbrecq.adoption import check_origin, recalibrated, repaired, taken_apart
from onnxbrecq.blockwise import walk
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.sources import Reading
from onnxbrecq.emit.targets import any_file
from onnxbrecq.forecast import forecast
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.load import fingerprint, load, read
from onnxbrecq.graph.write import places
from onnxbrecq.output import claim
from onnxbrecq.parts import Task
from onnxbrecq.pipeline.proof import proved
from onnxbrecq.pipeline.results import result_of
from onnxbrecq.preparation import Clock, PathLike, labelled_of, samples_of, state_key
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.device import learning_device
from onnxbrecq.report.result import DataFacts, Result
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.state import digest, opened
from onnxbrecq.validation.gate import Limits
from onnxbrecq.validation.metrics import metric_for


def repair(
    quantized: PathLike,
    reference: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    evaluation: PathLike | Dataset | None = None,
    output: PathLike | None = None,
    work_dir: PathLike | None = None,
    resume: bool = True,
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
        work_dir: as for `quantize`; None: OUTPUT.work beside the output.
        resume: go on with what is there; False: start afresh.
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
    folder = Path(work_dir) if work_dir else destination.with_name(f"{destination.name}.work")
    reading = Reading(recipe.preprocess, folder.absolute().parent, progress)
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
    storage = Storage(max(ahead.room, 0), folder.absolute().parent)
    with clock.stage("calibrate"):
        samples = samples if samples is data else storage.kept(samples)
        start = recalibrated(broken, samples, recipe, progress)
        digested = digest(samples.inputs)
    here = any_file(saturates=not saturation_free())
    task = Task(broken.model, blocks, points, samples, recipe, here, storage)
    origins = {"reference": float_model.source_sha256, "quantized": fingerprint(files)[1]}
    with opened(folder, {**state_key(task, digested), **origins}, resume=resume) as state:
        with clock.stage("reconstruct"):
            walked = walk(task, start, progress, state)
        with clock.stage("emit"):
            mended = repaired(broken, walked.plan)
        validation, outputs = proved(
            mended, destination, float_model, state, clock,
            samples=samples, labelled=labelled, metric=metric_for(labelled, None, None),
            limits=Limits.of(recipe, float_model.source_bytes),
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
        state.discard()
    return result_of(
        float_model, outputs, mended,
        blocks=walked.blocks, validation=validation, recipe=recipe, clock=clock,
        notes=(*cut, *more, *broken.notes), data=DataFacts(samples.origin, len(samples), made),
    )  # fmt: skip
