"""What the walk through the blocks will take, said before it starts: memory, disk and time.

The sizes of tensors and the pace of the float network are measured on a few samples. While block i
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

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.memory import available, resident
from onnxbrecq.runtime.session import Session

_BATCH = 8  # samples at a time, where nothing is learned
_PROBED = 2  # samples on which the float network's pace is measured,
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
    sizes, pace = _probed(model, blocks, points, data, recipe)
    most = recipe.max_memory
    limit = resident() + available() // 2 if most is None else most
    work = _work(model, blocks, sizes, recipe)
    return Forecast(
        held=_held(blocks, sizes) * len(data) + movable,
        room=limit - (resident() - movable) - work,
        seconds=pace * _passes(len(data), recipe),
    )


def _probed(
    model: Model, blocks: Sequence[Block], points: Points, data: Dataset, recipe: Recipe
) -> tuple[Mapping[str, int], float]:
    """Bytes a sample of the tensors between blocks and of those quantized; seconds a sample."""
    names = dict.fromkeys(name for block in blocks for name in block.outputs)
    names.update(dict.fromkeys(n for n, p in points.points.items() if p.kind == "activation"))
    inner = tuple(name for name in names if name in model.producer)
    probe = submodel(model, list(model.nodes), model.inputs, inner or model.outputs)
    session = Session(probe.proto, threads=recipe.threads)
    together = model.batch or 1
    made = session.run(data.part(slice(together)))
    sizes = {name: -(-value.nbytes // together) for name, value in made.items()}
    feed = data.part(slice(model.batch or _PROBED))
    seconds = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        session.run(feed)
        seconds.append(time.perf_counter() - started)
    return sizes, min(seconds) / len(next(iter(feed.values())))


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
    seen = _SEEN * _BATCH * sum(made.values())
    learned = _LEARNED * batch * max(made.values(), default=0)
    if model.batch is None:
        return max(seen, learned)
    return max(seen // _BATCH, learned // batch) * model.batch


def _passes(samples: int, recipe: Recipe) -> float:
    """How often a sample passes through the network, in passes of the float network."""
    settings = recipe.settings()
    rounding = _ROUNDING if settings.start == "second-order" else 0
    steps = settings.iterations * settings.trials
    return (_RUNS + rounding) * samples + _STEP * steps * settings.batch_size


def _sum(names: Iterable[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes.get(name, 0) for name in names)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{math.ceil(size / 2**20)} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(math.ceil(seconds / 10) * 10, 10)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
