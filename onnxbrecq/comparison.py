"""Two quantized models of one float model, layer by layer: bits, and where each of them errs."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx

from onnxbrecq.data import sources
from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.data.sources import Reading
from onnxbrecq.errors import DataError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import load, read
from onnxbrecq.graph.model import Model
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.comparison import Comparison, Side, TensorFacts
from onnxbrecq.report.facts import layer_facts, mean_bits, output_facts, source_facts
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.fidelity import compare as compare_outputs
from onnxbrecq.validation.fidelity import fidelity
from onnxbrecq.validation.tensors import tensor_errors
from onnxbrecq.validation.validate import check_interface, top1

PathLike = str | os.PathLike[str]

_SAMPLES = 32
_BATCH = 8
_ABSORBED = ("Relu", "Clip")


def compare(
    a: PathLike,
    b: PathLike,
    reference: PathLike,
    data: PathLike | Dataset | None = None,
    recipe: Recipe | None = None,
    *,
    samples: int = _SAMPLES,
    progress: Progress = silent,
) -> Comparison:
    """Both models beside the float model that they were made from.

    Args:
        a: a quantized file, whoever wrote it.
        b: another.
        reference: the float model.
        data: samples, with labels if accuracy is wanted; None: STEM.eval.npz or STEM.calib.npz
            beside the reference.
        recipe: preprocessing and threads.
        samples: on how many of them tensors within the models are compared; outputs are on all.
        progress: told of each batch.

    Raises:
        ModelError: a model cannot be read or run, or is no model of this reference.
        DataError: there are no samples, or they do not fit.
    """
    recipe = recipe or Recipe()
    model = load(Path(reference))
    found = _data(data, model, recipe)
    some = found.head(whole(min(samples, len(found)), model.file_batch))
    sides, errors = [], []
    for path in (Path(a), Path(b)):
        proto, files = read(path)
        sides.append(
            _side(
                proto,
                files,
                model=model,
                data=found,
                threads=recipe.threads,
                progress=progress,
            )
        )
        names = list(model.producer)
        errors.append(
            tensor_errors(
                model, proto, names, some,
                threads=recipe.threads, progress=progress, stage=path.name,
            )
        )  # fmt: skip
    tensors = _tensors(model, *errors)
    return Comparison(
        tool_version=version("onnxbrecq"),
        reference=source_facts(model),
        a=sides[0],
        b=sides[1],
        tensors=tensors,
        outputs=_outputs(model, {tensor.name: tensor for tensor in tensors}),
        samples=len(some),
    )


def _data(data: PathLike | Dataset | None, model: Model, recipe: Recipe) -> Dataset:
    """The samples, with labels where there are any, in whole batches."""
    if isinstance(data, Dataset):
        return data.whole(model.file_batch)
    reading = Reading(recipe.preprocess)
    found = sources.evaluation(None if data is None else str(data), model, reading)
    if found is None:
        found = sources.calibration(None, model, reading)
    if found is None:
        raise DataError("no samples to compare on, and none beside the model; give -d (--data)")
    return found.whole(model.file_batch)


def _side(
    proto: onnx.ModelProto,
    files: Sequence[Path],
    *,
    model: Model,
    data: Dataset,
    threads: int | None,
    progress: Progress,
) -> Side:
    path = files[0]
    layers = layer_facts(model, proto)
    weights, activations = mean_bits(layers)
    quantized, floating = (Session(m, threads=threads) for m in (path, model.proto))
    check_interface(path, quantized, floating)
    batch = model.file_batch or _BATCH
    found = compare_outputs(floating, quantized, data, batch, progress=progress)
    return Side(
        output_facts(files, proto), weights, activations, layers, fidelity(found), top1(data, found)
    )


def _tensors(
    model: Model, a: Mapping[str, float], b: Mapping[str, float]
) -> tuple[TensorFacts, ...]:
    """Every tensor that one of the two has, in the order of the float graph."""
    return tuple(
        TensorFacts(name, node.name, node.op_type, a.get(name), b.get(name))
        for node in model.nodes
        for name in node.output
        if name in a or name in b
    )


def _outputs(model: Model, tensors: Mapping[str, TensorFacts]) -> dict[str, str]:
    """Layer → the tensor that stands for its output: behind a Relu or Clip, where only that is in
    both graphs, as a quantizer may have taken the place of the two.
    """
    found = {}
    for layer in weight_layers(model):
        name = next(node.output[0] for node in model.nodes if node.name == layer.name)
        while not _in_both(tensors.get(name)):
            readers = model.consumers.get(name, ())
            if len(readers) != 1 or readers[0].op_type not in _ABSORBED:
                break
            name = readers[0].output[0]
        if name in tensors:
            found[layer.name] = name
    return found


def _in_both(tensor: TensorFacts | None) -> bool:
    return tensor is not None and tensor.a is not None and tensor.b is not None
