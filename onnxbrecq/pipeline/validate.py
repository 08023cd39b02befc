"""`onnxbrecq validate`: a quantized file held against the float one."""

from pathlib import Path

import onnx

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.sources import Reading
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.load import load, read
from onnxbrecq.graph.provenance import provenance
from onnxbrecq.output import write_atomically
from onnxbrecq.pipeline.results import bytes_of, claim_report, result_of
from onnxbrecq.preparation import Clock, PathLike, labelled_of, samples_of
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.html import as_html
from onnxbrecq.report.result import DataFacts, Result
from onnxbrecq.validation.evidence import gather
from onnxbrecq.validation.gate import Limits
from onnxbrecq.validation.metrics import Function, metric_for
from onnxbrecq.validation.validate import validate as validate_files


def validate(
    quantized: PathLike,
    reference: PathLike,
    data: PathLike | Dataset | None = None,
    evaluation: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    metric: str | Function | None = None,
    detections: str | Function | None = None,
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
    claim_report(report, force=force)
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
            limits=Limits.of(recipe, float_model.source_bytes), size_bytes=bytes_of(files),
            target=recipe.target or _told_target(proto, destination),
            threads=recipe.threads, progress=progress,
        )  # fmt: skip
    found = result_of(
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


def _told_target(proto: onnx.ModelProto, path: Path) -> str | None:
    """The target that the file says it was written for."""
    told = provenance(proto, str(path))
    return None if told is None else told.target
