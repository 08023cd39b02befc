"""What was made gets its place once it has been validated."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from onnxbrecq.emission import published, written
from onnxbrecq.errors import OnnxbrecqError
from onnxbrecq.graph.model import Model
from onnxbrecq.pipeline.results import bytes_of
from onnxbrecq.preparation import Clock
from onnxbrecq.state import State
from onnxbrecq.validation.validate import Validation, validate


def proved(
    proto: onnx.ModelProto,
    destination: Path,
    reference: Model,
    state: State,
    clock: Clock,
    *,
    threads: int | None,
    beside: Mapping[Path, bytes] | None = None,
    **how: Any,
) -> tuple[Validation, list[Path]]:
    """The validation of a model, and its files at `destination`, which are there only then.

    Args:
        proto: the model.
        destination: where it is written.
        reference: the float model.
        state: where it is kept until then.
        clock: of the stages.
        threads: of the runtimes.
        beside: further files, written with it.
        how: what else `validate` is told.

    Raises:
        OnnxbrecqError: as `written` and `validate`; then nothing is there.
    """
    with state.draft(destination.name) as draft, _called(draft, destination):
        with clock.stage("emit"):
            files = written(proto, draft, threads=threads)
        with clock.stage("validate"):
            validation = validate(
                draft, reference, size_bytes=bytes_of(files), threads=threads, **how
            )
    notes = tuple(note.replace(str(draft), str(destination)) for note in validation.notes)
    return dataclasses.replace(validation, notes=notes), published(proto, destination, beside)


@contextmanager
def _called(draft: Path, destination: Path) -> Iterator[None]:
    """Within the context errors tell of the destination, which is what the user knows of."""
    try:
        yield
    except OnnxbrecqError as error:
        error.args = tuple(str(a).replace(str(draft), str(destination)) for a in error.args)
        raise
