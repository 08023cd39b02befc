"""What a run ends with, whatever it did: the result of the files that it wrote or read."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import onnx

from onnxbrecq.graph.model import Model
from onnxbrecq.graph.write import contents
from onnxbrecq.output import claim
from onnxbrecq.preparation import Clock, PathLike
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.facts import layer_facts, mean_bits, output_facts, source_facts
from onnxbrecq.report.result import BlockFacts, DataFacts, Result
from onnxbrecq.runtime.doctor import environment
from onnxbrecq.runtime.memory import peak
from onnxbrecq.validation.validate import Validation


def claim_report(path: PathLike | None, *, force: bool) -> None:
    if path is not None:
        claim(Path(path), force=force)


def result_of(
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


def bytes_of(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def emitted_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(part) for file in contents(proto, "model.onnx").values() for part in file)
