"""How far the channels of each LayerNormalization are made alike, decided on calibration data.

What a channel's scale takes from the activation it adds to the weight's error. So of a few scales,
between none and as much as makes all channels reach equally far,

    s = max|x| ** 0.5,    s = max|x|,    s = (max|x| / max|w|) ** 0.5        per input channel

the one is taken with which the layers behind, quantized to nearest, err least; none, unless one is
better by more than chance.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.bits import Allocation
from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.emit.targets import target_for
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.passes.migration import Site, migrated, sites
from onnxbrecq.graph.points import Points
from onnxbrecq.graph.weights import Layer
from onnxbrecq.plan import QType
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session

_SAMPLES, _BATCH = 32, 8
_ROWS, _COLUMNS = 512, 64  # of what the layers read, of what they make
_GAIN = 0.95  # of the error: less is chance
_NARROW = 8  # bits of activations, up to which channels matter

Array = NDArray[np.float32]


def smoothed(
    model: Model, points: Points, data: Dataset, recipe: Recipe, bits: Allocation
) -> dict[str, Array]:
    """New values of constants, by name, with which the model computes the same.

    Of layers that stay float, whatever `bits` says of others beside them, nothing changes.
    """
    if recipe.activations is None or recipe.activations > _NARROW:
        return {}
    floats = {name for name, found in bits.items() if None in (found.weight, found.data)}
    found = [s for s in sites(model, points) if floats.isdisjoint(x.node for x in s.layers)]
    made: dict[str, Array] = {}
    for site, rows in zip(found, _rows(model, found, data, recipe), strict=True):
        scale = _scale(model, site, rows, recipe, bits) if np.isfinite(rows).all() else None
        if scale is not None:
            made.update(migrated(model, site, scale))
    return made


def _scale(model: Model, site: Site, rows: Array, recipe: Recipe, bits: Allocation) -> Array | None:
    """The scale [C] with which the layers behind err least on `rows` [R, C]; None: as they are."""
    weights = [_columns(model, layer) for layer in site.layers]
    reach = np.abs(rows).max(axis=0)
    read = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    if not reach.all() or not read.all():  # a channel that says nothing, or is not read
        return None
    best, error = None, _GAIN * _error(site, rows, weights, recipe, bits)
    for wish in (reach**0.5, reach, (reach / read) ** 0.5):
        scale = (wish / np.exp(np.log(wish).mean())).astype(np.float32)
        scaled = [weight * scale[:, None] for weight in weights]
        tried = _error(site, rows / scale, scaled, recipe, bits)
        if tried < error:
            best, error = scale, tried
    return best


def _error(
    site: Site, rows: Array, weights: Sequence[Array], recipe: Recipe, bits: Allocation
) -> float:
    """Of the layers' outputs about their means, relative to each one's energy, summed."""
    target = target_for(recipe.target, saturates=False)
    reads = max(bits[layer.node].data or _NARROW for layer in site.layers)
    data = affine.activation_quant(rows, reads, target.activation_grids[0])
    read = affine.dequantize(affine.quantize(rows, data), data)
    total = 0.0
    for layer, weight in zip(site.layers, weights, strict=True):
        width = bits[layer.node].weight or _NARROW
        qtype = QType(width, target.weight_grid(width, layer.op, integer_data=True))
        axis = 1 if layer.op in target.per_channel else None
        quant = affine.weight_quant(weight, qtype, axis, np.zeros(1, np.float32))
        assert quant.levels is not None
        wanted = rows @ weight
        missed = read @ affine.dequantize(quant.levels, quant) - wanted
        total += float(missed.var(axis=0).sum() / max(wanted.var(axis=0).sum(), 1e-30))
    return total


def _columns(model: Model, layer: Layer) -> Array:
    """Some columns of the layer's weight, [C, columns]."""
    weight = np.asarray(model.initializers[layer.weight], np.float32)
    weight = weight if layer.axis == 1 else weight.T
    picked = np.linspace(0, weight.shape[1] - 1, min(weight.shape[1], _COLUMNS)).astype(int)
    return weight[:, picked]


def _rows(model: Model, found: Sequence[Site], data: Dataset, recipe: Recipe) -> list[Array]:
    """Of each site, rows [R, C] of what its layers read on the first samples."""
    if not found:
        return []
    names = tuple(site.tensor for site in found)
    session = Session(submodel(model, list(model.nodes), model.inputs, names).proto,
                      threads=recipe.threads)  # fmt: skip
    batch = model.batch or _BATCH
    count = min(len(data), whole(_SAMPLES, model.batch))
    quota = -(-_ROWS * batch // count)
    generator = np.random.default_rng(recipe.seed)
    kept: Mapping[str, list[Array]] = {name: [] for name in names}
    for feed in data.batches(batch, count):
        for name, value in session.run(feed).items():
            rows = np.asarray(value, np.float32).reshape(-1, value.shape[-1])
            if len(rows) > quota:
                rows = rows[generator.integers(len(rows), size=quota)]
            kept[name].append(rows)
    return [np.concatenate(kept[name]) for name in names]
