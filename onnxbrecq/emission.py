"""From decisions to files: what is written can be opened, and a saved plan is all it takes.

Neither torch nor data are needed here: a plan is learned once, and emitted for any target that its
bits and grids allow.
"""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import onnx

from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import Target, target_by_name, target_for
from onnxbrecq.errors import EmissionError, PlanError
from onnxbrecq.graph.check import objection
from onnxbrecq.graph.fork import fork, forked
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.graph.provenance import Provenance, edit_provenance
from onnxbrecq.graph.write import contents, places
from onnxbrecq.output import claim, write_together
from onnxbrecq.plan import QuantPlan
from onnxbrecq.report.facts import layer_facts, mean_bits, output_facts, source_facts
from onnxbrecq.report.result import Emission
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.runtime.session import Session

PathLike = str | os.PathLike[str]

_FEW = 4  # any bits below those of all other activations


def emit_plan(
    model: PathLike,
    plan: PathLike,
    target: str | None = None,
    *,
    output: PathLike | None = None,
    force: bool = False,
) -> Emission:
    """Writes the quantized model that a saved plan makes of the float model it was made for.

    Args:
        model: the float ONNX file.
        plan: what `quantize` saved.
        target: the runtime; None: the one that the plan was made for.
        output: where to write; None: STEM.quant.onnx beside the model.
        force: replace an existing output.

    Raises:
        RecipeError: there is no such target.
        ModelError: the model cannot be read.
        PlanError: the plan cannot be read, or is another model's.
        EmissionError: the target does not take one of its decisions.
        OutputError: the output cannot be written.
    """
    source, saved = Path(model), Path(plan)
    decisions = QuantPlan.load(saved)
    wanted = target or decisions.recipe.get("target")
    runtime = (
        target_by_name(str(wanted)) if wanted else target_for(None, saturates=not saturation_free())
    )
    destination = Path(output) if output else source.with_name(f"{source.stem}.quant.onnx")
    original = load(source)
    _check_origin(saved, decisions, original)
    for place in places(destination, original.source_bytes):
        claim(place, force=force, sources=(*original.files, saved))
    float_model = fork(original, _FEW, forked(original, decisions.tensors))
    _check_fit(saved, decisions, float_model)
    proto = emitted(float_model, decisions, runtime)
    files = written(proto, destination)
    layers = layer_facts(original, proto)
    weights, activations = mean_bits(layers)
    return Emission(
        tool_version=version("onnxbrecq"),
        model=source_facts(original),
        output=output_facts(files, proto),
        target=runtime.name,
        weights_mean_bits=weights,
        activations_mean_bits=activations,
        layers=layers,
        notes=original.notes,
    )


def emitted(model: Model, plan: QuantPlan, target: Target) -> onnx.ModelProto:
    """The quantized model as it is to be written: it tells where it comes from.

    Raises:
        EmissionError: as `emit`.
    """
    proto = emit(model, plan, target)
    points = find_points(model)
    layers, tables = points.layers.values(), points.tables.values()
    told = Provenance(
        version=version("onnxbrecq"),
        target=target.name,
        source_sha256=plan.source_sha256,
        data_sha256=plan.data_sha256,
        recipe=plan.recipe,
        bits={
            **{table.node: (_bits(plan, table.weight), None) for table in tables},
            **{
                layer.node: (_bits(plan, layer.weight), _bits(plan, layer.data)) for layer in layers
            },
        },
        blocks={
            layer.node: size
            for layer in layers
            if layer.weight in plan.tensors and (size := plan.tensors[layer.weight].block_size)
        },
    )
    edit_provenance(proto, told)
    return proto


def _bits(plan: QuantPlan, tensor: str) -> int | None:
    quant = plan.tensors.get(tensor)
    return None if quant is None else quant.qtype.bits


def written(
    proto: onnx.ModelProto,
    destination: Path,
    *,
    threads: int | None = None,
) -> list[Path]:
    """The files of a model that opens, once they are there: all or none.

    Raises:
        EmissionError: onnx's checker complains of the model.
        ModelError: onnxruntime cannot open it.
        OutputError: a file cannot be written.
    """
    said = objection(proto)
    if said is not None:
        raise EmissionError(f"the emitted model is not valid ONNX: {said}")
    Session(proto, threads=threads)
    return published(proto, destination)


def published(
    proto: onnx.ModelProto, destination: Path, beside: Mapping[Path, bytes] | None = None
) -> list[Path]:
    """The files of the model, once they are there: all or none, and those `beside` with them.

    Raises:
        OutputError: a file cannot be written.
    """
    parts = contents(proto, destination.name)
    files = {destination.with_name(name): part for name, part in parts.items()}
    others = {path: [content] for path, content in (beside or {}).items()}
    write_together({**others, **files})
    return sorted(files)


def _check_origin(path: Path, plan: QuantPlan, model: Model) -> None:
    if plan.source_sha256 != model.source_sha256:
        raise PlanError(
            f"{path}: made for a model with sha256 {plan.source_sha256[:12] or 'unknown'}, but "
            f"{model.path} has {model.source_sha256[:12]}; give the model that it was made from"
        )


def _check_fit(path: Path, plan: QuantPlan, model: Model) -> None:
    """Refuses decisions on what the model does not have."""
    shapes = {name: model.shapes.get(name) for name in model.initializers}
    for name, quant in plan.tensors.items():
        fits = (
            name in model.producer or name in model.inputs
            if quant.levels is None
            else shapes.get(name) == quant.levels.shape
        )
        if not fits:
            raise PlanError(f"{path}: the model has no tensor {name!r} that fits its decision")
    for name, bias in plan.biases.items():
        if shapes.get(name) != bias.shape:
            raise PlanError(f"{path}: the model has no bias {name!r} of shape {bias.shape}")
