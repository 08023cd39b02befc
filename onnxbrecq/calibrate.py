"""The first decision for every point, at given bits: the target's grid, the least squared error.

Activations are sampled from the float model in ONNX Runtime; weights are taken as they are. What
comes out is round-to-nearest quantization, which reconstruction then improves. A tensor without a
range stays float: one that is infinite somewhere (scores that a mask has closed: no level stands
for minus infinity), or that never held a value (boxes, where none were found).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.arising import first_nan, origin
from onnxbrecq.bits import Allocation, uniform_bits
from onnxbrecq.data.dataset import Dataset, Feed, whole
from onnxbrecq.emit import saturation
from onnxbrecq.emit.targets import PRODUCTS, target_for
from onnxbrecq.errors import DataError
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points
from onnxbrecq.graph.weights import Layer
from onnxbrecq.plan import QType, QuantPlan, TensorQuant
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.runtime.session import Session

TABLE_BITS = 8  # of a table that rows are looked up in, and of a layer that multiplies by it
SAMPLES = 256  # of which activation ranges are taken
_VALUES = 1 << 17  # values kept of each activation
_BATCH = 8  # samples seen at a time,
_BYTES = 2**27  # if their tensors are no more
_BIAS_ROOM = 2.0**27  # largest integer a bias may reach at calibration; int32 holds 2**31

Array = NDArray[np.float32]


class Calibration:
    """The first decision for every point at any bits: activations are sampled once."""

    def __init__(
        self, model: Model, points: Points, values: Mapping[str, Array], recipe: Recipe
    ) -> None:
        """Of `values`: samples of each activation that owns a quantizer."""
        self._model, self._points, self._recipe = model, points, recipe
        self._values = values
        saturates = not saturation_free()
        self._target = target_for(recipe.target, saturates=saturates)
        known = self._target.saturates
        self._saturates = saturates if known is None else known
        self._nodes = {node.name: node for node in model.nodes}
        tables = points.tables.values() if "Gather" in self._target.alone else ()
        self._tied = points.tied({table.weight for table in tables})
        self._known: dict[tuple[str, int, tuple[tuple[float, int], ...]], TensorQuant] = {}

    def of(self, model: Model, points: Points) -> "Calibration":
        """The same for a model whose activations are among those that were sampled."""
        return Calibration(model, points, self._values, self._recipe)

    def plan(self, bits: Allocation) -> QuantPlan:
        """The round-to-nearest plan; tensors without a range are not in it."""
        tensors: dict[str, TensorQuant] = {}
        heads = activation_bits(self._points, self._recipe, bits)
        for head, width in heads.items():
            if self._values[head].size and np.isfinite(self._values[head]).all():
                tensors[head] = self._activation(head, width)
        for name, point in self._points.points.items():
            if point.kind == "activation" and point.group in tensors:
                tensors[name] = tensors[point.group]
        for name, layer in self._points.layers.items():
            head = self._points.points[layer.weight].group
            if head in tensors:  # of layers that share a weight the first decides
                tensors[layer.weight] = tensors[head]
                continue
            alike = [bits[other].weight for other in self._points.points[layer.weight].layers]
            known = [width for width in alike if width is not None]
            if bits[name].weight is not None and (layer.integer or layer.op in self._target.alone):
                width = TABLE_BITS if layer.weight in self._tied else max(known)
                tensors[layer.weight] = self.weight(layer, width, tensors)
        if "Gather" in self._target.alone:
            tensors.update(_tables(self._model, self._points, tensors))
        return QuantPlan(
            tensors,
            source_sha256=self._model.source_sha256,
            recipe=self._recipe.decisive().as_json(),
        )

    def weight(self, layer: Layer, width: int, decided: Mapping[str, TensorQuant]) -> TensorQuant:
        """The weight of so many bits at its nearest levels, beside the decisions for its data.

        One that layers share is decided for the data of all.
        """
        alike = [self._points.layers[n] for n in self._points.points[layer.weight].layers]
        reads = [decided.get(other.data) if other.integer else None for other in alike]
        seen = [(0.0, 0) if d is None else (float(d.scale), d.qtype.levels) for d in reads]
        key = layer.weight, width, tuple(seen)
        if key not in self._known:
            floors = [
                self._least_scale(other, width, data)
                for other, data in zip(alike, reads, strict=True)
            ]
            integer = reads[alike.index(layer)] is not None
            self._known[key] = self._weight(layer, width, np.max(floors, axis=0), integer=integer)
        return self._known[key]

    def _weight(self, layer: Layer, width: int, least: Array, *, integer: bool) -> TensorQuant:
        target, size = self._target, self._recipe.block_size
        if size is not None and layer.op in PRODUCTS and layer.weight not in self._tied:
            qtype, weight = (
                QType(width, target.block_grid(width)),
                _float(self._model, layer.weight),
            )
            return affine.block_quant(weight, qtype, layer.axis, size)
        grid = target.weight_grid(width, layer.op, integer_data=integer)
        axis = layer.axis if layer.op in (*target.per_channel, *target.alone) else None
        return _weight_quant(self._model, layer, QType(width, grid), axis, least)

    def _least_scale(self, layer: Layer, width: int, data: TensorQuant | None) -> Array:
        """[C]: the weight scale below which something of a channel would overflow."""
        weight = self._model.initializers[layer.weight]
        least = np.zeros(weight.shape[layer.axis], np.float32)
        if data is None:
            return least
        if layer.bias is not None:  # int32
            bias = np.abs(np.asarray(self._model.initializers[layer.bias], np.float64)).reshape(-1)
            least = (bias / (_BIAS_ROOM * float(data.scale))).astype(np.float32)
        if self._saturates and width == 8:
            node = self._nodes[layer.node]
            least = np.maximum(least, saturation.least_scale(node, weight, data.qtype.levels - 1))
        return least

    def _activation(self, head: str, width: int) -> TensorQuant:
        key = head, width, ()
        if key not in self._known:
            point = self._points.points[head]
            self._known[key] = affine.activation_quant(
                self._values[head],
                width,
                self._target.activation_grids[0],
                ceiling=point.ceiling,
                nonnegative=point.nonnegative,
            )
        return self._known[key]


def sampled(
    model: Model,
    points: Points,
    data: Dataset,
    recipe: Recipe,
    *,
    progress: Progress = silent,
) -> Calibration:
    """The activations of the float model, seen on some samples.

    Raises:
        DataError: an activation of the float model is NaN; names the tensor.
    """
    heads = list(activation_bits(points, recipe, uniform_bits(points, recipe)))
    return Calibration(
        model, points, activation_values(model, heads, data, recipe, progress), recipe
    )


def calibrate(
    model: Model,
    points: Points,
    data: Dataset,
    recipe: Recipe,
    *,
    progress: Progress = silent,
) -> QuantPlan:
    """The round-to-nearest plan of `model` at uniform bits; tensors without a range are not in it.

    Raises:
        DataError: an activation of the float model is NaN; names tensor, sample and node.
    """
    found = sampled(model, points, data, recipe, progress=progress)
    return found.plan(uniform_bits(points, recipe))


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
    heads = activation_bits(points, recipe, uniform_bits(points, recipe))
    return tuple(head for head in heads if head not in plan.tensors)


def activation_bits(points: Points, recipe: Recipe, bits: Allocation) -> dict[str, int]:
    """Group head → bits: the most that a layer reads, 8 where other operators do.

    16 bits hold for all: runtimes want one type for all operands of an operator.
    """
    if recipe.activations is None:
        return {}
    heads = (name for name, point in points.points.items() if point.group == name)
    activations = [name for name in heads if points.points[name].kind == "activation"]
    if recipe.activations > 8:
        return dict.fromkeys(activations, recipe.activations)
    widths = {n: [bits[x].data for x in points.points[n].layers] for n in activations}
    return {n: max((w for w in found if w is not None), default=8) for n, found in widths.items()}


def _weight_quant(
    model: Model, layer: Layer, qtype: QType, axis: int | None, least: Array
) -> TensorQuant:
    """The weight at its nearest levels, with a scale for each channel or (`axis` None) one."""
    weight = _float(model, layer.weight)
    return affine.weight_quant(weight, qtype, axis, least.max() if axis is None else least)


def _float(model: Model, weight: str) -> Array:
    return np.asarray(model.initializers[weight], np.float32)


def activation_values(
    model: Model, names: list[str], data: Dataset, recipe: Recipe, progress: Progress
) -> Mapping[str, Array]:
    """Values of each activation over the first samples, its extremes always among them.

    Raises:
        DataError: one is NaN; names the tensor.
    """
    if not names:
        return {}
    inner = [name for name in names if name not in model.inputs]
    probe = submodel(model, list(model.nodes), model.inputs, tuple(inner or model.outputs))
    session = Session(probe.proto, threads=recipe.threads)
    generator = np.random.default_rng(recipe.seed)
    count = min(len(data), whole(SAMPLES, model.batch))
    batch = model.batch or together(
        sum(v.nbytes for v in session.run(data.part(slice(1))).values())
    )
    quota = max(1, _VALUES * batch // count)
    kept: dict[str, list[Array]] = {name: [] for name in names}
    done = 0
    for feed in data.batches(batch, count):
        for name, value in {**feed, **session.run(feed)}.items():
            if name in kept:
                values = np.asarray(value, np.float32)
                _check_numbers(model, name, values, feed, recipe, start=done)
                kept[name].append(_subset(values, quota, generator))
        done = min(done + batch, count)
        progress("calibrate", done, count)
    return {name: np.concatenate(values) for name, values in kept.items()}


def together(size: int) -> int:
    """How many samples of `size` bytes, all tensors counted, are seen at a time."""
    return min(max(_BYTES // max(size, 1), 1), _BATCH)


def _check_numbers(
    model: Model, name: str, values: Array, feed: Feed, recipe: Recipe, *, start: int
) -> None:
    """Refuses a tensor that holds NaN; `start` is the first sample of the feed."""
    row = first_nan(values) if values.ndim else None
    if row is None and not np.isnan(values).any():
        return
    raise DataError(
        f"tensor {name!r} of the float model is NaN on sample {start + (row or 0)} of the "
        f"calibration data: {origin(model, feed, threads=recipe.threads)}; check the "
        "preprocessing, or repair the model"
    )


def _subset(value: Array, quota: int, generator: np.random.Generator) -> Array:
    flat = value.reshape(-1)
    if not flat.size:
        return flat
    low, high = flat.min(), flat.max()
    if flat.size > quota:
        flat = flat[generator.integers(flat.size, size=quota)]
    return np.concatenate([flat, [low, high]]).astype(np.float32)
