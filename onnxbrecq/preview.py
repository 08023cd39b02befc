"""What data look like beside what a model seems to take, before anything is quantized.

Ranges are read from samples. The scale that the model takes is told by its own normalisations: run
on the data, the output of a BatchNormalization should have the mean and the deviation that the file
gives it (`onnxbrecq.graph.norms`), and data of another scale are further away. Where they were
folded, the first layer tells a little: its answer to the data is of the size of its biases. The
order of channels is told by the outputs: a classifier is surer of images in the order it knows.
Measured on seven networks, six of them gave wrong orders away (2.8 to 6.5 standard errors on 64
images).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data import sources
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.sources import Reading
from onnxbrecq.errors import DataError
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session

_SAMPLES = 64  # that are looked at
_BATCH = 8
_COLOURS = 3
_BYTES = (200.0, 255.0)  # the largest value of pixels that nobody has scaled
# Measured on eight networks and their own data, the first layer's answer is 0.3 to 5 times its
# biases where BatchNormalization was folded into it.
_LOUD, _FAINT = 30.0, 0.02
_FEWEST, _SURELY = 16, 3.0  # images, and standard errors, that make a difference sure
_CLEARLY = 0.9  # of the distance to the norms as the data are: another way is likely to be meant

Array = NDArray[Any]
Change = Callable[[Array], Array]


@dataclass(frozen=True)
class Channel:
    """Range, mean and standard deviation of one channel of an input, or of all of it."""

    low: float
    high: float
    mean: float
    std: float


@dataclass(frozen=True)
class InputPreview:
    """One input's data.

    Attributes:
        name: of the input.
        shape: [N, ...].
        dtype: numpy's name of the type.
        axis: of the channels, or None: there are none.
        channels: of each channel, or of all values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None
    channels: tuple[Channel, ...]


@dataclass(frozen=True)
class Preview:
    """The data of a model, and what is probably wrong with them."""

    origin: str
    samples: int
    inputs: tuple[InputPreview, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The object `data` in the JSON of `inspect --data`."""
        return asdict(self)


def preview(
    model: str | PathLike[str],
    data: str | PathLike[str],
    recipe: Recipe | None = None,
    *,
    progress: Progress = silent,
) -> Preview:
    """What the samples of `data` look like beside what the model at `model` seems to take.

    Raises:
        ModelError: the model cannot be read.
        DataError: the data cannot be read, or do not fit.
    """
    recipe = recipe or Recipe()
    float_model = load(Path(model))
    reading = Reading(recipe.preprocess, progress=progress)
    found = sources.calibration(str(data), float_model, reading)
    if found is None:
        raise DataError(f"{data}: there are no samples")
    some = found.whole(float_model.file_batch)
    some = some.head(min(len(some), max(_SAMPLES // (float_model.batch or 1), 1)
                         * (float_model.batch or 1)))  # fmt: skip
    feed = {name: np.asarray(samples[:]) for name, samples in some.inputs.items()}
    inputs = tuple(_described(name, array, len(found)) for name, array in feed.items())
    warnings = [line for one in inputs for line in _of_range(one)]
    warnings += _of_model(float_model, feed, inputs, recipe)
    return Preview(found.origin, len(found), inputs, tuple(warnings))


def _described(name: str, array: Array, count: int) -> InputPreview:
    axis = _channel_axis(array)
    parts = [array] if axis is None else [array.take(i, axis) for i in range(array.shape[axis])]
    number = array.dtype.kind in "biuf" and array.size
    channels = tuple(_channel(part) for part in parts) if number else ()
    return InputPreview(name, (count, *array.shape[1:]), str(array.dtype), axis, channels)


def _channel(part: Array) -> Channel:
    values = part.astype(np.float64)
    return Channel(
        float(values.min()), float(values.max()), float(values.mean()), float(values.std())
    )


def _channel_axis(array: Array) -> int | None:
    """Where three colours, or one, stand in images [N, ...]."""
    if array.ndim != 4:
        return None
    return next((axis for axis in (1, 3) if array.shape[axis] in (1, _COLOURS)), None)


def _of_range(found: InputPreview) -> list[str]:
    """What a range alone tells."""
    warnings = []
    for i, channel in enumerate(found.channels):
        if channel.std == 0:
            which = f"channel {i} of input" if found.axis is not None else "input"
            warnings.append(f"{which} {found.name!r} is {channel.mean:g} everywhere")
    return warnings


def _of_model(
    model: Model, feed: Mapping[str, Array], inputs: tuple[InputPreview, ...], recipe: Recipe
) -> list[str]:
    """What the model tells of float images."""
    warnings = []
    for found in inputs:
        if found.axis is None or not found.dtype.startswith("float") or not found.channels:
            continue
        if model.norms:
            warnings += _by_norms(model, feed, found, recipe)
        else:
            warnings += _by_biases(model, feed[found.name], found, recipe)
        if len(found.channels) == _COLOURS:
            warnings += _by_outputs(model, feed, found, recipe)
    return warnings


def _by_norms(
    model: Model, feed: Mapping[str, Array], found: InputPreview, recipe: Recipe
) -> list[str]:
    """What brings the data clearly nearer to the statistics that the model's file tells of."""
    names = tuple(model.norms)[:_COLOURS]
    probe = submodel(model, list(model.nodes), model.inputs, names)
    session = Session(probe.proto, threads=recipe.threads)

    def distance(change: Change) -> float:
        changed = {**feed, found.name: change(feed[found.name]).astype(found.dtype)}
        data, size = Dataset(changed), model.batch or _BATCH
        parts = [session.run(batch) for batch in data.batches(size)]
        return _distance(model, {n: np.concatenate([part[n] for part in parts]) for n in names})

    now = distance(lambda x: x)
    tried = {what: distance(change) for what, change in _changes(found).items()}
    best = min(tried, key=lambda what: tried[what], default=None)
    if best is None or tried[best] >= _CLEARLY * now:
        return []
    times = now / max(tried[best], float(np.finfo(np.float32).tiny))
    return [
        f"input {found.name!r}: the model probably wants {best}: from what its normalisations "
        f"expect, the data as they are lie {times:.2g} times as far"
    ]


def _changes(found: InputPreview) -> dict[str, Change]:
    """Other ways to prepare the same images: what they are called → what makes them."""
    axis = found.axis
    assert axis is not None
    shape = [-1 if i == axis else 1 for i in range(len(found.shape))]
    changes: dict[str, Change] = {}
    low, high = (min(c.low for c in found.channels), max(c.high for c in found.channels))
    if low >= 0 and _BYTES[0] <= high <= _BYTES[1]:
        changes["values from 0 to 1 (scale = 1/255), not 0 to 255"] = lambda x: x / 255
        changes["values from -1 to 1, not 0 to 255"] = lambda x: x / 127.5 - 1
        mean, std = (np.reshape(v, shape) if len(found.channels) == _COLOURS else np.mean(v)
                     for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
        changes["values normalised by ImageNet's mean and std, not 0 to 255"] = lambda x: (
            (x / 255 - mean) / std
        )
    elif low >= 0 and high <= 1:
        changes["values from -1 to 1, not 0 to 1"] = lambda x: x * 2 - 1
        changes["values from 0 to 255, not 0 to 1"] = lambda x: x * 255
    elif -1 <= low < -0.5 and 0.5 < high <= 1:
        changes["values from 0 to 1, not -1 to 1"] = lambda x: (x + 1) / 2
        changes["values from 0 to 255, not -1 to 1"] = lambda x: (x + 1) * 127.5
    return changes


def _distance(model: Model, made: Mapping[str, Array]) -> float:
    """Mean divergence of channels from what the norms say, as Gaussians (KL, in nats)."""
    terms = []
    for name, values in made.items():
        norm = model.norms[name]
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        least = np.maximum(0.1 * norm.std.mean(), np.finfo(np.float32).tiny)
        sigma = np.maximum(norm.std, least)
        ratio = np.maximum(values.std(axes), 1e-3 * sigma) / sigma
        shift = (values.mean(axes) - norm.mean) / sigma
        terms.append(float((0.5 * (ratio**2 + shift**2 - 1) - np.log(ratio)).mean()))
    return float(np.mean(terms))


def _by_outputs(
    model: Model, feed: Mapping[str, Array], found: InputPreview, recipe: Recipe
) -> list[str]:
    """Whether a classifier is surer of the images with their channels in the other order."""
    scores = model.outputs[0]
    if len(model.shapes.get(scores, ())) != 2 or (model.shapes[scores][1] or 0) < 2:
        return []
    assert found.axis is not None
    session = Session(model.proto, threads=recipe.threads)
    images = feed[found.name]
    now, other = (
        _entropies(session, Dataset({**feed, found.name: x}), scores, model.batch or _BATCH)
        for x in (images, np.ascontiguousarray(np.flip(images, found.axis)))
    )
    gain = now - other
    error = float(gain.std()) / len(gain) ** 0.5
    if len(gain) < _FEWEST or gain.mean() <= _SURELY * error:
        return []
    return [
        f"input {found.name!r}: the model probably wants the other order of channels (BGR for RGB, "
        f"or RGB for BGR): its answers are surer so (entropy {other.mean():.2f} for "
        f"{now.mean():.2f} nats, {gain.mean() / max(error, 1e-12):.1f} standard errors)"
    ]


def _entropies(session: Session, data: Dataset, scores: str, size: int) -> NDArray[np.float64]:
    """Of the prediction for each sample, in nats."""
    parts = [session.run(feed)[scores].astype(np.float64) for feed in data.batches(size)]
    powers = np.concatenate(parts)
    powers = np.exp(powers - powers.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = -(shares * np.log(shares + 1e-12)).sum(axis=1)
    return found


def _by_biases(model: Model, images: Array, found: InputPreview, recipe: Recipe) -> list[str]:
    """Whether the first layer's answer is of another order than its biases."""
    layers = find_points(model).layers.values()
    layer = next((x for x in layers if x.data == found.name and x.op == "Conv"), None)
    if layer is None or layer.bias is None:
        return []
    node = next(node for node in model.nodes if node.name == layer.node)
    probe = submodel(model, [node], (layer.data,), (node.output[0],))
    made = Session(probe.proto, threads=recipe.threads).run({layer.data: images[:_BATCH]})
    spread = made[node.output[0]].std((0, 2, 3))
    bias = float(np.sqrt(np.square(model.initializers[layer.bias].astype(np.float64)).mean()))
    answer = float(np.sqrt(np.square(spread).mean())) / bias if bias > 0 else 1.0
    low, high = (min(c.low for c in found.channels), max(c.high for c in found.channels))
    raw = low >= 0 and _BYTES[0] <= high <= _BYTES[1]
    told = f"the first layer's answer to input {found.name!r} is {answer:.2g} times its biases"
    if raw and answer > _LOUD:
        return [f"{told}: the model probably wants values from -1 to 1 or so, not 0 to 255"]
    if not raw and answer < _FAINT:
        return [f"{told}: the model probably wants larger values, 0 to 255 say"]
    return []
