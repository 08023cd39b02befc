"""What the report shows beyond figures: where errors grow, and what lies on which grid."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.data.thumbnails import thumbnails
from onnxbrecq.emit.read import DataGrid, data_grids, weight_scales
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.layers import WeightLayer, weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.evidence import Distribution, Evidence, Growth, Histogram, LayerNoise
from onnxbrecq.runtime.trace import constants, showing
from onnxbrecq.validation.tensors import BATCH, tensor_errors

_SAMPLES = 32
_VALUES = 1 << 14  # of a tensor that are kept, of each batch
_BINS = 96
_WORST = 6
_PICTURES = 24

Array = NDArray[np.float32]


def gather(
    model: Model,
    blocks: Sequence[Block],
    quantized: onnx.ModelProto,
    nearest: onnx.ModelProto | None,
    data: Dataset,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Everything that the report shows of a quantized model, on a few samples.

    Args:
        model: the float model.
        blocks: its partition.
        quantized: the model that was written.
        nearest: the same with all weights rounded to nearest; None where it is not known.
        data: calibration samples.
        threads: of onnxruntime.
        progress: told of each batch.

    Where a model does not run with the tensors within it visible, `note` says so in their place.
    """
    try:
        return _gathered(
            model, blocks, quantized, nearest, data, threads=threads, progress=progress
        )
    except ModelError as error:
        note = f"errors within the network were not measured: {error}"
        return Evidence(data.origin, 0, (), (), (), thumbnails(data, _PICTURES), note=note)


def _gathered(
    model: Model,
    blocks: Sequence[Block],
    quantized: onnx.ModelProto,
    nearest: onnx.ModelProto | None,
    data: Dataset,
    *,
    threads: int | None,
    progress: Progress,
) -> Evidence:
    some = data.head(whole(min(_SAMPLES, len(data)), model.file_batch))
    names = [name for block in blocks for name in block.outputs]
    after = tensor_errors(model, quantized, names, some, threads=threads, progress=progress)
    before: Mapping[str, float] = {}
    if nearest is not None:
        before = tensor_errors(model, nearest, names, some, threads=threads, progress=progress)
    seen = _Layers(model, quantized, _values(model, quantized, some, threads))
    noise = tuple(seen.noise(layer) for layer in seen.layers)
    ranked = sorted(zip(noise, seen.layers, strict=True), key=lambda pair: -pair[0].total)
    return Evidence(
        origin=data.origin,
        samples=len(some),
        growth=tuple(
            Growth(block.name, _worst(before, block.outputs), _worst(after, block.outputs))
            for block in blocks
        ),
        noise=noise,
        worst=tuple(seen.distribution(layer) for found, layer in ranked[:_WORST] if found.total),
        thumbnails=thumbnails(data, _PICTURES),
    )


class _Layers:
    """The weight layers: their weights, float and as rounded, and some of what they read."""

    def __init__(
        self, model: Model, quantized: onnx.ModelProto, values: Mapping[str, Array]
    ) -> None:
        self.layers = weight_layers(model)
        names = {layer.name for layer in self.layers}
        nodes = {node.name: node for node in quantized.graph.node}
        self._stored = {
            layer.name: nodes[layer.name].input[1]
            for layer in self.layers
            if layer.name in nodes and len(nodes[layer.name].input) > 1
        }
        self._model, self._quantized = model, quantized
        self._scales = weight_scales(quantized, names)
        self._grids = data_grids(quantized, names)
        self._values = values

    def noise(self, layer: WeightLayer) -> LayerNoise:
        """What the grids of a layer add."""
        pair = self._pair(layer)
        values, grid = self._values.get(layer.name), self._grids.get(layer.name)
        return LayerNoise(
            layer.name,
            None if pair is None else _relative(*pair),
            None if values is None or grid is None else _relative(values, _on(grid, values)),
        )

    def distribution(self, layer: WeightLayer) -> Distribution:
        """The values of a layer, and its grids."""
        values, grid = self._values.get(layer.name), self._grids.get(layer.name)
        low = high = step = clipped = None
        if grid is not None and values is not None:
            low, high = ((end - grid.zero) * grid.scale for end in (grid.low, grid.high))
            half, step = grid.scale / 2, grid.scale
            clipped = float(np.mean((values < low - half) | (values > high + half)))
        weights, levels = self._in_steps(layer)
        return Distribution(
            layer.name, weights, levels, None if values is None else _histogram(values),
            low, high, step, clipped,
        )  # fmt: skip

    def _pair(self, layer: WeightLayer) -> tuple[Array, Array] | None:
        """The weight in float and as rounded, read now; None where it is not quantized."""
        stored = self._stored.get(layer.name)
        if stored is None or layer.name not in self._scales:
            return None
        weight = self._model.initializers[layer.weight]
        rounded = constants(self._quantized, [stored]).get(stored)
        if rounded is None or rounded.shape != weight.shape:
            return None
        return weight.astype(np.float32), rounded.astype(np.float32)

    def _in_steps(
        self, layer: WeightLayer
    ) -> tuple[Histogram | None, tuple[tuple[int, float], ...]]:
        """The weights in units of their scale, and the integers that they became."""
        pair = self._pair(layer)
        if pair is None:
            return None, ()
        scale = self._scales[layer.name]
        integers, counts = np.unique(np.rint(pair[1] / scale).astype(int), return_counts=True)
        shares = (counts / counts.sum()).tolist()
        return _histogram(pair[0] / scale), tuple(zip(integers.tolist(), shares, strict=True))


def _values(
    model: Model, quantized: onnx.ModelProto, data: Dataset, threads: int | None
) -> dict[str, Array]:
    """Layer → some of the values that it reads in the float model."""
    read = {node.name: node.input[0] for node in model.nodes if node.input}
    wanted = {layer.name: read[layer.name] for layer in weight_layers(model)}
    inner = {tensor for tensor in wanted.values() if tensor in model.producer}
    session = showing(model.proto, sorted(inner), threads)
    kept: dict[str, list[Array]] = defaultdict(list)
    for feed in data.batches(model.file_batch or BATCH):
        found: dict[str, Any] = {**feed, **session.run(feed)}
        for tensor in {*wanted.values()} & found.keys():
            flat = np.asarray(found[tensor]).reshape(-1)
            if flat.dtype.kind == "f":
                sampled = flat[:: max(1, flat.size // _VALUES)].astype(np.float32)
                kept[tensor].append(sampled[np.isfinite(sampled)])
    joined = {tensor: np.concatenate(parts) for tensor, parts in kept.items()}
    return {layer: joined[t] for layer, t in wanted.items() if t in joined and joined[t].size}


def _on(grid: DataGrid, values: Array) -> Array:
    """The values as the grid has them."""
    levels = np.clip(np.rint(values / grid.scale) + grid.zero, grid.low, grid.high)
    near: Array = ((levels - grid.zero) * grid.scale).astype(np.float32)
    return near


def _relative(exact: Array, near: Array) -> float:
    """Squared error relative to the energy."""
    error = np.square(exact - near, dtype=np.float64).sum()
    energy = np.square(exact, dtype=np.float64).sum()
    return float(error / max(energy, float(np.finfo(np.float32).tiny)))


def _histogram(values: Array) -> Histogram:
    shares, edges = np.histogram(values.reshape(-1), bins=_BINS)
    return Histogram(tuple(edges.tolist()), tuple((shares / values.size).tolist()))


def _worst(errors: Mapping[str, float], names: Collection[str]) -> float | None:
    return max((errors[name] for name in names if name in errors), default=None)
