"""The first decision for every point: bits, the target's grid, the range of least squared error.

Activations are sampled from the float model in ONNX Runtime; weights are taken as they are. What
comes out is round-to-nearest quantization, which reconstruction then improves. A tensor without a
range stays float: one that is infinite somewhere (scores that a mask has closed: no level stands
for minus infinity), or that never held a value (boxes, where none were found).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.emit.targets import PRODUCTS, target_for
from onnxbrecq.errors import DataError
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Layer, Points
from onnxbrecq.plan import QType, QuantPlan, TensorQuant
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session

TABLE_BITS = 8
SAMPLES = 256  # of which activation ranges are taken
_VALUES = 1 << 17  # values kept of each activation
_BATCH = 8
_BIAS_ROOM = 2.0**27  # largest integer a bias may reach at calibration; int32 holds 2**31

Array = NDArray[np.float32]


def calibrate(
    model: Model,
    points: Points,
    data: Dataset,
    recipe: Recipe,
    *,
    progress: Progress = silent,
) -> QuantPlan:
    """The round-to-nearest plan of `model`; tensors without a range are not in it.

    Raises:
        DataError: an activation of the float model is NaN; names the tensor.
    """
    target = target_for(recipe.target, saturates=False)  # for onnxruntime, saturating or not
    tensors: dict[str, TensorQuant] = {}
    if recipe.activations is not None:
        bits = activation_bits(points, recipe)
        values = _sample(model, list(bits), data, recipe, progress)
        for head, width in bits.items():
            point = points.points[head]
            if not values[head].size or not np.isfinite(values[head]).all():
                continue
            tensors[head] = affine.activation_quant(
                values[head],
                width,
                target.activation_grids[0],
                ceiling=point.ceiling,
                nonnegative=point.nonnegative,
            )
        for name, point in points.points.items():
            if point.kind == "activation" and point.group in tensors:
                tensors[name] = tensors[point.group]
    tables = {t.weight for t in points.tables.values()} if "Gather" in target.alone else set()
    tied = points.tied(tables)
    for layer in points.layers.values():
        width = recipe.first_last if layer.edge else recipe.weights
        if layer.weight in tied:
            width = TABLE_BITS
        elif recipe.block_size is not None and layer.op in PRODUCTS:
            qtype = QType(width, target.block_grid(width))
            tensors[layer.weight] = affine.block_quant(
                _float(model, layer.weight), qtype, layer.axis, recipe.block_size
            )
            continue
        if not layer.integer and layer.op not in target.alone:
            continue
        read = tensors.get(layer.data) if layer.integer else None
        grid = target.weight_grid(width, layer.op, integer_data=read is not None)
        per_channel = (*target.per_channel, *target.alone)
        axis = layer.axis if layer.op in per_channel else None
        tensors[layer.weight] = _weight_quant(model, layer, QType(width, grid), axis, read)
    if tables:
        tensors.update(_tables(model, points, tensors))
    return QuantPlan(tensors, source_sha256=model.source_sha256, recipe=recipe.decisive().as_json())


def _tables(
    model: Model, points: Points, decided: Mapping[str, TensorQuant]
) -> dict[str, TensorQuant]:
    """The decisions on tables: that of the layer that each is tied to, or a scale for each row."""
    found = {}
    for table in points.tables.values():
        if table.tied is None:
            qtype, floor = QType(TABLE_BITS, "signed"), np.zeros(1, np.float32)
            found[table.weight] = affine.weight_quant(_float(model, table.weight), qtype, 0, floor)
        else:
            quant = decided[table.tied.weight]
            found[table.weight] = quant if quant.axis == 0 else affine.turned(quant)
    return found


def without_range(points: Points, plan: QuantPlan, recipe: Recipe) -> tuple[str, ...]:
    """The tensors that stay float because calibration found no range for them."""
    heads = () if recipe.activations is None else tuple(activation_bits(points, recipe))
    return tuple(head for head in heads if head not in plan.tensors)


def activation_bits(points: Points, recipe: Recipe) -> dict[str, int]:
    """Group head → bits: as asked where a layer reads it, 8 where other operators do.

    16 bits hold for all: runtimes want one type for all operands of an operator.
    """
    assert recipe.activations is not None
    if recipe.activations > 8:
        heads = (name for name, point in points.points.items() if point.group == name)
        return {n: recipe.activations for n in heads if points.points[n].kind == "activation"}
    found = {}
    for name, point in points.points.items():
        if point.kind == "activation" and point.group == name:
            edges = [points.layers[layer].edge for layer in point.layers]
            widths = [recipe.first_last if edge else recipe.activations for edge in edges]
            found[name] = max(widths, default=8)
    return found


def _weight_quant(
    model: Model, layer: Layer, qtype: QType, axis: int | None, data: TensorQuant | None
) -> TensorQuant:
    """The weight at its nearest levels, with a scale for each channel or (`axis` None) one."""
    weight = _float(model, layer.weight)
    least = _least_scale(model, layer, weight, data)
    return affine.weight_quant(weight, qtype, axis, least.max() if axis is None else least)


def _float(model: Model, weight: str) -> Array:
    return np.asarray(model.initializers[weight], np.float32)


def _least_scale(model: Model, layer: Layer, weight: Array, data: TensorQuant | None) -> Array:
    """[C]: the weight scale below which the int32 bias of a channel would overflow."""
    channels = weight.shape[layer.axis]
    if layer.bias is None or data is None:
        return np.zeros(channels, np.float32)
    bias = np.abs(np.asarray(model.initializers[layer.bias], np.float64)).reshape(-1)
    return (bias / (_BIAS_ROOM * float(data.scale))).astype(np.float32)


def _sample(
    model: Model, names: list[str], data: Dataset, recipe: Recipe, progress: Progress
) -> Mapping[str, Array]:
    """Values of each activation over the first samples, its extremes always among them."""
    if not names:
        return {}
    inner = [name for name in names if name not in model.inputs]
    probe = submodel(model, list(model.nodes), model.inputs, tuple(inner or model.outputs))
    session = Session(probe.proto, threads=recipe.threads)
    generator = np.random.default_rng(recipe.seed)
    count = min(len(data), whole(SAMPLES, model.batch))
    batch = model.batch or _BATCH
    quota = max(1, _VALUES * batch // count)
    kept: dict[str, list[Array]] = {name: [] for name in names}
    done = 0
    for feed in data.batches(batch, count):
        for name, value in {**feed, **session.run(feed)}.items():
            if name in kept:
                kept[name].append(_subset(name, np.asarray(value, np.float32), quota, generator))
        done = min(done + batch, count)
        progress("calibrate", done, count)
    return {name: np.concatenate(values) for name, values in kept.items()}


def _subset(name: str, value: Array, quota: int, generator: np.random.Generator) -> Array:
    flat = value.reshape(-1)
    if not flat.size:
        return flat
    low, high = flat.min(), flat.max()
    if np.isnan(low):
        raise DataError(
            f"tensor {name!r} of the float model is NaN on the calibration data; check the "
            "preprocessing"
        )
    if flat.size > quota:
        flat = flat[generator.integers(flat.size, size=quota)]
    return np.concatenate([flat, [low, high]]).astype(np.float32)
