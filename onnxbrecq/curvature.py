"""How much errors of the blocks' outputs matter, swept through a whole model.

Values between blocks come from onnxruntime, gradients from torch (`onnxbrecq.recon.fisher`). What
torch does not take over at the end (post-processing of detections, say) is left out: what it reads
counts as the network's output. An island further in front ends the sweep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Dataset, Samples
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.parts import RUN_BATCH, Arrays, Part, Task
from onnxbrecq.progress import Progress
from onnxbrecq.recon.device import learning_device
from onnxbrecq.recon.fisher import FisherSweep, random_gradients, random_numbers
from onnxbrecq.runtime.cache import Stored
from onnxbrecq.runtime.session import Session


@dataclass(frozen=True)
class Directions:
    """Along which errors of single samples reach the network's output.

    Attributes:
        draws: of each, block output → gradient [N, ...] for unit Gaussians at the output.
        energy: of the network's output, a sample.
    """

    draws: Sequence[Mapping[str, Samples]]
    energy: float

    def reach(self, outputs: Sequence[str]) -> bool:
        """Whether errors of one of these tensors do."""
        return any(name in self.draws[0] for name in outputs)


def fisher_weights(
    task: Task, parts: Sequence[Part], samples: int, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Fisher weights of the blocks' outputs, of so many of the first samples."""
    device = learning_device(task.recipe.device)
    reached, outputs = _reached(task.model, parts)
    sweep = FisherSweep([part.torch for part in reached], task.recipe.seed, device)
    for values in _values(task, parts, task.data, samples, progress) if outputs else ():
        sweep.add(values, outputs)
    return sweep.weights()


def directions(
    task: Task, parts: Sequence[Part], data: Dataset, draws: int, progress: Progress
) -> Directions:
    """So many for each sample of the data."""
    device = learning_device(task.recipe.device)
    reached, outputs = _reached(task.model, parts)
    generator = random_numbers(task.recipe.seed)
    kept: list[dict[str, Stored]] = [{} for _ in range(draws)]
    energy = 0.0
    for values in _values(task, parts, data, len(data), progress) if outputs else ():
        energy += sum(float(np.square(values[n], dtype=np.float64).sum()) for n in outputs)
        for draw in kept:
            found = random_gradients([p.torch for p in reached], values, outputs, generator, device)
            for name, gradient in found.items():
                if name not in draw:
                    shape = gradient.shape[1:]
                    draw[name] = task.storage.new(len(data), shape, gradient.dtype)
                task.storage.append(draw[name], gradient)
    return Directions(kept, energy / len(data))


def _values(
    task: Task, parts: Sequence[Part], data: Dataset, samples: int, progress: Progress
) -> Iterator[Arrays]:
    """Batch by batch the float network's tensors between blocks, graph inputs included."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.block.outputs))
    probe = submodel(task.model, list(task.model.nodes), task.model.inputs, names)
    session = Session(probe.proto, threads=task.recipe.threads)
    batch = task.model.batch or RUN_BATCH
    total, done = min(len(data), samples), 0
    for feed in data.batches(batch, total):
        made: dict[str, NDArray[Any]] = {**feed, **session.run(feed)}
        yield made
        done = min(done + batch, total)
        progress("curvature", done, total)


def _reached(model: Model, parts: Sequence[Part]) -> tuple[Sequence[Part], tuple[str, ...]]:
    """The parts in front of the islands at the end, and what counts as the network's output.

    Its first output alone, if that holds class scores.
    """
    count = max((i + 1 for i, part in enumerate(parts) if part.torch is not None), default=0)
    if count == len(parts) and len(model.shapes.get(model.outputs[0], ())) == 2:
        return parts, model.outputs[:1]
    made = dict.fromkeys(name for part in parts[:count] for name in part.block.outputs)
    read = {name for part in parts[count:] for name in part.block.inputs} | set(model.outputs)
    outputs = (n for n in made if n in read and model.dtypes.get(n) == onnx.TensorProto.FLOAT)
    return parts[:count], tuple(outputs)
