"""What the walk through the blocks will take, said before it starts: memory, disk and time.

The sizes of tensors and the pace of each block are measured on a few samples. While block i
is learned, there are alive, for all samples, in the float and in the quantized network, the
tensors that it and later blocks read, and its outputs.

    held = samples * 2 * max_i [ bytes(alive_i) + bytes(outputs_i) ]
    work = max [ calibration: batch * bytes(all), learning: batch * max_i bytes(block_i) ]

the latter with the copies that the runtimes make. With the samples that were read, what is alive
beyond `room` = limit - what the process holds for other ends - work goes to files.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxbrecq.bits import Bits
from onnxbrecq.calibrate import together
from onnxbrecq.data.dataset import Dataset, Feed
from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.extract import extract, submodel
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.memory import available, resident
from onnxbrecq.runtime.session import Outputs, Session
from onnxbrecq.search.table import combinations

_BATCH = 8  # samples at a time, where nothing is learned
_PROBED = 2  # samples on which the pace of a block is measured,
_TIMES = 5  # so often: the shortest counts, as other processes only ever slow it down
# Measured on MobileNetV2 (onnxruntime 1.32, torch 2.13):
_SEEN = 3  # copies of all tensors while they are calibrated: in front of fusions, and handed out
_LEARNED = 6  # copies of a block's tensors: for both networks, before quantizers, for gradients
_RUNS = 4  # of a block on all samples: its target, its outputs, and trials on some
_ROUNDING = 4  # of a block on all samples: second-order rounding, in torch
_STEP = 6  # of a block on a sample: an optimiser step in torch


@dataclass(frozen=True)
class Forecast:
    """What the walk will take.

    Attributes:
        held: bytes of samples and of activations between blocks, at the largest moment.
        room: bytes of them that may lie in memory; negative: the work alone takes more than that.
        seconds: how long it will take.
    """

    held: int
    room: int
    seconds: float

    def told(self) -> str:
        """The forecast in one line."""
        text = f"samples and activations take up to {_size(self.held)}"
        if self.held > self.room:
            text += f", {_size(self.held - max(self.room, 0))} of it on disk"
        if self.room < 0:
            text += f"; the work itself takes {_size(-self.room)} more memory than allowed"
        return f"{text}; about {_duration(self.seconds)}"


def forecast(
    model: Model,
    blocks: Sequence[Block],
    points: Points,
    data: Dataset,
    recipe: Recipe,
    *,
    movable: int = 0,
) -> Forecast:
    """What the walk will take; `movable` bytes of the data may go to disk as well.

    Raises:
        ModelError: the float network does not run.
    """
    feed = data.part(slice(model.batch or _PROBED))
    seen = _seen(model, blocks, points, feed, recipe)
    count = len(next(iter(feed.values())))
    sizes = {name: -(-value.nbytes // count) for name, value in seen.items()}
    most = recipe.max_memory
    limit = resident() + available() // 2 if most is None else most
    work = _work(model, blocks, sizes, recipe)
    layers = {layer.name: layer.macs for layer in weight_layers(model)}
    macs = {block.name: sum(layers.get(node, 0) for node in block.nodes) for block in blocks}
    return Forecast(
        held=_held(blocks, sizes) * len(data) + movable,
        room=limit - (resident() - movable) - work,
        seconds=sum(
            _pace(model, block, {**feed, **seen}, recipe)
            * (
                _RUNS * len(data)
                + _learned(block, points, seen, recipe, samples=len(data), macs=macs[block.name])
                + _searched(block, points, recipe)
            )
            for block in blocks
            if block.inputs  # what depends on no input is not learned
        ),
    )


def _seen(
    model: Model, blocks: Sequence[Block], points: Points, feed: Feed, recipe: Recipe
) -> Outputs:
    """The values of the tensors between blocks and of those quantized."""
    names = dict.fromkeys(name for block in blocks for name in block.outputs)
    names.update(dict.fromkeys(n for n, p in points.points.items() if p.kind == "activation"))
    inner = tuple(name for name in names if name in model.producer)
    probe = submodel(model, list(model.nodes), model.inputs, inner or model.outputs)
    return Session(probe.proto, threads=recipe.threads).run(feed)


def _pace(model: Model, block: Block, values: Outputs, recipe: Recipe) -> float:
    """Seconds that the float block takes a sample."""
    session = Session(extract(model, block).proto, threads=recipe.threads)
    feed = {name: values[name] for name in block.inputs}
    seconds = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        session.run(feed)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / len(next(iter(feed.values())))


def _learned(
    block: Block, points: Points, seen: Outputs, recipe: Recipe, *, samples: int, macs: int
) -> float:
    """What learning the block takes, in passes of a sample through the float block."""
    layers = [points.layers[node] for node in block.nodes if node in points.layers]
    if not layers:
        return 0
    settings = recipe.settings()
    rounding = _ROUNDING * samples if settings.start == "second-order" else 0
    weights = min(recipe.offered) if recipe.mixed else recipe.weights
    inner = min(weights, recipe.activations or 8)
    coarse = any((recipe.first_last or inner if layer.edge else inner) < 8 for layer in layers)
    steps = settings.trials * settings.steps(coarse=coarse)
    places = max(points.places(block.nodes, seen[name].shape) for name in block.outputs)
    return rounding + _STEP * steps * settings.samples_a_step(places, macs)


def _searched(block: Block, points: Points, recipe: Recipe) -> float:
    """What measuring the block's sensitivities takes, in passes as well."""
    layers = [points.layers[node] for node in block.nodes if node in points.layers]
    free = [layer for layer in layers if not layer.edge or recipe.first_last is None]
    if not recipe.mixed or not free:
        return 0
    bits = tuple(Bits(w, a) for w in recipe.offered for a in recipe.offered_activations or (None,))
    runs = len(combinations({layer.node: bits for layer in free})) / 2  # on half of the samples
    return recipe.search_samples * (runs + _ROUNDING + _STEP)


def _held(blocks: Sequence[Block], sizes: Mapping[str, int]) -> int:
    """Bytes a sample of what is alive between blocks, graph inputs aside, at the largest moment."""
    most, made = 0, set[str]()
    for i, block in enumerate(blocks):
        alive = made & {name for later in blocks[i:] for name in later.inputs}
        most = max(most, 2 * (_sum(alive, sizes) + _sum(block.outputs, sizes)))
        made.update(block.outputs)
    return most


def _work(model: Model, blocks: Sequence[Block], sizes: Mapping[str, int], recipe: Recipe) -> int:
    """Bytes that one batch takes while it is worked on, at most."""
    block_of = {node: block.name for block in blocks for node in block.nodes}
    made = dict.fromkeys((block.name for block in blocks), 0)
    for node in model.nodes:
        made[block_of[node.name]] += _sum(node.output, sizes)
    settings = recipe.settings()
    batch = max(_BATCH, settings.batch_size if settings.iterations else 0)
    every = sum(made.values())
    seen = _SEEN * (model.batch or together(every)) * every
    learned = _LEARNED * (model.batch or batch) * max(made.values(), default=0)
    return max(seen, learned)


def _sum(names: Iterable[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes.get(name, 0) for name in names)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{math.ceil(size / 2**20)} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(math.ceil(seconds / 10) * 10, 10)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
