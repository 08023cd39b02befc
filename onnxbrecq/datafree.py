"""Calibration samples where there are none: made from the model alone.

Images start as dead leaves, other floats as noise (`onnxbrecq.data.invented`), and are distilled
(`onnxbrecq.recon.distill`); token ids are drawn from the vocabulary that the model looks up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.data import invented
from onnxbrecq.data.checks import input_type
from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.errors import DataError, ModelError
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract, submodel
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.bridge import BridgeError, TorchBlock, import_block
from onnxbrecq.recon.device import learning_device
from onnxbrecq.recon.distill import Source, channel_axis, distill
from onnxbrecq.recon.resources import threads_limited
from onnxbrecq.report.result import MadeData
from onnxbrecq.runtime.session import Session

ORIGIN = "made from the model"

_SAMPLES = (64, 256)  # at least, at most
_STEPS = (5, 20)  # of distillation, likewise;
_MACS = 2e11  # forward, for all of them: one or two minutes on two cores
_BATCH = 32  # samples whose statistics are matched together
_PROBED = 8  # samples on which the scale is chosen
_SIDE, _LENGTH = 224, 32  # of images and of sequences, where the model takes any
_TOKENS = 256  # sequences
# Deviation of inputs: bytes / 255, in [-1, 1], normalised; bytes as they are.
_SCALES = (0.25, 0.5, 1.0, 60.0)
_USUAL = 0.5  # between those in use, where nothing tells them apart
# A first layer answers to data with a deviation between these multiples of its bias, where
# BatchNormalization was folded into it: 0.3 to 1.5 measured on eight networks. Below, the data are
# too small; above, there was none, and the biases tell nothing.
_ANSWER = (0.05, 5.0)
_NARROW = 0.1  # of a tensor's mean deviation: channels below tell nothing of a scale
_DECIDED = 0.2  # mean probability of the likeliest class, from which on a network has decided

Array = NDArray[Any]


@dataclass(frozen=True)
class Made:
    """The samples, and how they came about."""

    data: Dataset
    facts: MadeData


def made_data(model: Model, recipe: Recipe, progress: Progress = silent) -> Made:
    """Calibration samples made from `model` alone.

    Raises:
        DataError: an input is text, or the model does not run on what was made.
    """
    names = {name: input_type(model, name) for name in model.inputs}
    for name, dtype in names.items():
        if dtype.kind not in "biuf":
            raise DataError(
                f"no calibration data, and none can be made: the model's input {name!r} is "
                f"{dtype}; pass data with -d (--data)"
            )
    floats = [name for name, dtype in names.items() if dtype.kind == "f"]
    macs = max(sum(layer.macs for layer in weight_layers(model)), 1)
    count, steps = _effort(macs) if floats else (_TOKENS, 0)
    count = whole(count, model.file_batch)
    start = {name: _start(model, name, count, recipe.seed + i) for i, name in enumerate(names)}
    try:
        scale = _scale(model, start, floats, recipe) if floats else 1.0
    except ModelError as error:
        raise DataError(
            "no calibration data, and what was made of the inputs' shapes does not fit the model "
            f"({error}); pass data with -d (--data)"
        ) from error
    for name in floats:
        start[name] = (start[name] * scale).astype(np.float32)
    if not floats:
        return Made(Dataset(start, None, ORIGIN), MadeData("sampled", count, 0, 0, None, None))
    return _distilled(model, start, steps, recipe, progress)


def _distilled(
    model: Model, start: Mapping[str, Array], steps: int, recipe: Recipe, progress: Progress
) -> Made:
    source = Source(_imported(model), model.norms, _scores(model))
    told = bool(model.norms) or source.scores is not None
    steps = steps if told and source.blocks[0] is not None else 0
    with threads_limited(recipe.threads):
        found = distill(
            source, start, steps=steps, batch=model.batch or _BATCH,
            device=learning_device(recipe.device), progress=progress,
        )  # fmt: skip
    types = {name: input_type(model, name) for name in start}
    inputs = {name: array.astype(types[name]) for name, array in found.samples.items()}
    losses = (found.loss_before, found.loss_after) if steps else (None, None)
    facts = MadeData(
        "distilled" if steps else "textures", len(next(iter(inputs.values()))), steps,
        len(model.norms), *losses,
    )  # fmt: skip
    return Made(Dataset(inputs, None, ORIGIN), facts)


def _effort(macs: int) -> tuple[int, int]:
    """Samples, and steps of each, for a network of so many multiply-accumulates."""
    (few, many), (short, long) = _SAMPLES, _STEPS
    count = int(np.clip(_MACS / (macs * long), few, many)) // _BATCH * _BATCH
    return count, int(np.clip(_MACS / (macs * count), short, long))


def _imported(model: Model) -> list[TorchBlock | None]:
    found: list[TorchBlock | None] = []
    for block in partition(model):
        try:
            found.append(import_block(extract(model, block)))
        except BridgeError:
            found.append(None)
    return found


def _scores(model: Model) -> str | None:
    """The first output, if it holds scores of classes."""
    name = model.outputs[0]
    shape = model.shapes.get(name, ())
    is_float = model.dtypes.get(name) == onnx.TensorProto.FLOAT
    return name if is_float and len(shape) == 2 and (shape[1] or 0) > 1 else None


def _start(model: Model, name: str, count: int, seed: int) -> Array:
    """Samples of one input before anything is learned; floats with mean 0 and deviation 1."""
    shape = _shape(model, name, count)
    dtype = input_type(model, name)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        return _integers(model, name, shape, seed).astype(dtype)
    if len(shape) != 4:
        return invented.noise(shape, seed)
    axis = channel_axis(shape)
    sides = [size for i, size in enumerate(shape) if i not in (0, axis)]
    images = invented.dead_leaves(count, sides[0], sides[1], shape[axis], seed)
    return images if axis == 1 else np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _shape(model: Model, name: str, count: int) -> tuple[int, ...]:
    """[count, ...]: as the model has it, with a size for what it leaves open."""
    known = model.shapes.get(name)
    if not known:
        raise DataError(
            f"no calibration data, and none can be made: the shape of the model's input {name!r} "
            "is not known; pass data with -d (--data)"
        )
    free = _SIDE if len(known) == 4 else _LENGTH
    axis = channel_axis(known)
    sizes = [size or (3 if len(known) == 4 and i == axis else free) for i, size in enumerate(known)]
    return (count, *sizes[1:])


def _integers(model: Model, name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Ids of the table that the input looks up; where it looks up none, ones: a mask, say.

    A table of two rows tells segments apart: all is of the first. Positions count up.
    """
    rows = _table(model, name)
    if rows is None:
        return np.ones(shape, np.int64)
    if "position" in name.lower():
        return np.broadcast_to(np.arange(shape[-1]) % rows, shape).copy()
    return np.zeros(shape, np.int64) if rows <= 2 else invented.tokens(shape, rows, seed)


def _table(model: Model, name: str) -> int | None:
    """Rows of the constant that a Gather looks up by the input; Casts and Reshapes are passed."""
    for node in model.consumers.get(name, ()):
        if node.op_type == "Gather" and node.input[1] == name:
            table = model.shapes.get(node.input[0]) if node.input[0] in model.initializers else None
            if table:
                return table[0]
        if node.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze"):
            found = _table(model, node.output[0])
            if found is not None:
                return found
    return None


def _scale(
    model: Model, start: Mapping[str, Array], floats: Sequence[str], recipe: Recipe
) -> float:
    """The deviation of the inputs that the network seems to be made for."""
    if model.norms:
        names = tuple(model.norms)
        run = _runner(model, start, floats, names, recipe)
        return min(_SCALES, key=lambda scale: _mismatch(model, run(scale)))
    answer = _answer(model, start, recipe)
    least, most = _ANSWER
    if answer is not None and least <= answer * _USUAL <= most:
        return _USUAL
    if answer is not None and answer * _USUAL < least:
        return 10 * least / answer
    scores = _scores(model)
    if scores is None:
        return _USUAL
    run = _runner(model, start, floats, (scores,), recipe)
    return next((s for s in (_USUAL, _SCALES[-1]) if _decided(run(s)[scores])), _USUAL)


def _runner(
    model: Model,
    start: Mapping[str, Array],
    floats: Sequence[str],
    names: tuple[str, ...],
    recipe: Recipe,
) -> Callable[[float], Mapping[str, Array]]:
    """What gives the named tensors for a few samples at a scale."""
    probe = submodel(model, list(model.nodes), model.inputs, names)
    session = Session(probe.proto, threads=recipe.threads)
    some = {name: array[: model.batch or _PROBED] for name, array in start.items()}

    def run(scale: float) -> Mapping[str, Array]:
        feed = {n: (a * scale).astype(a.dtype) if n in floats else a for n, a in some.items()}
        return session.run({n: a.astype(input_type(model, n)) for n, a in feed.items()})

    return run


def _mismatch(model: Model, made: Mapping[str, Array]) -> float:
    """How far the tensors' statistics are from the norms: mean of the logarithm of s / sigma."""
    ratios = []
    for name, norm in model.norms.items():
        axes = tuple(axis for axis in range(made[name].ndim) if axis != 1)
        wide = norm.std > _NARROW * norm.std.mean()
        if wide.any():
            spread = np.maximum(made[name].std(axes)[wide], np.finfo(np.float32).tiny)
            ratios.append(abs(float(np.log(spread / norm.std[wide]).mean())))
    return float(np.mean(ratios)) if ratios else 0.0


def _answer(model: Model, start: Mapping[str, Array], recipe: Recipe) -> float | None:
    """Deviation of what the first layer makes of the inputs, over that of its biases."""
    layer = next((x for x in find_points(model).layers.values() if x.data in start), None)
    if layer is None or layer.bias is None:
        return None
    node = next(node for node in model.nodes if node.name == layer.node)
    probe = submodel(model, [node], (layer.data,), (node.output[0],))
    feed = {layer.data: start[layer.data][: model.batch or _PROBED].astype(np.float32)}
    made = Session(probe.proto, threads=recipe.threads).run(feed)[node.output[0]]
    axis = 1 if layer.op == "Conv" else made.ndim - 1
    spread = made.std(tuple(i for i in range(made.ndim) if i != axis))
    bias = np.asarray(model.initializers[layer.bias], np.float64)
    energy = float(np.square(bias).mean())
    return float(np.sqrt(np.square(spread).mean() / energy)) if energy > 0 else None


def _decided(scores: Array) -> bool:
    """Whether the network is sure of its answers."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return bool((powers.max(axis=-1) / powers.sum(axis=-1)).mean() > _DECIDED)
