"""How much each element of the blocks' outputs matters, swept through a whole model.

Values between blocks come from onnxruntime, gradients from torch (`onnxbrecq.recon.fisher`). What
torch does not take over at the end (post-processing of detections, say) is left out: what it reads
counts as the network's output. An island further in front ends the sweep.
"""

from collections.abc import Sequence

import onnx

from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.parts import RUN_BATCH, Part, Task
from onnxbrecq.progress import Progress
from onnxbrecq.recon.device import learning_device
from onnxbrecq.recon.fisher import FisherSweep, Likelihood
from onnxbrecq.runtime.session import Session


def swept(
    task: Task,
    parts: Sequence[Part],
    samples: int,
    progress: Progress,
    likelihood: Likelihood = "classes",
) -> FisherSweep:
    """The gradients at the blocks' outputs, for so many of the first samples."""
    count = max((i + 1 for i, part in enumerate(parts) if part.torch is not None), default=0)
    outputs = _outputs(task.model, parts, count)
    names = tuple(dict.fromkeys(name for part in parts for name in part.block.outputs))
    probe = submodel(task.model, list(task.model.nodes), task.model.inputs, names)
    session = Session(probe.proto, threads=task.recipe.threads)
    device = learning_device(task.recipe.device)
    sweep = FisherSweep(
        [part.torch for part in parts[:count]], task.recipe.seed, device, likelihood
    )
    batch = task.model.batch or RUN_BATCH
    total, done = min(len(task.data), samples), 0
    for feed in task.data.batches(batch, total) if outputs else ():
        sweep.add({**feed, **session.run(feed)}, outputs)
        done = min(done + batch, total)
        progress("curvature", done, total)
    return sweep


def _outputs(model: Model, parts: Sequence[Part], count: int) -> tuple[str, ...]:
    """What counts as the network's output: of the first `count` parts, where islands follow them.

    Its first output alone, if that holds class scores.
    """
    if count == len(parts) and len(model.shapes.get(model.outputs[0], ())) == 2:
        return model.outputs[:1]
    made = dict.fromkeys(name for part in parts[:count] for name in part.block.outputs)
    read = {name for part in parts[count:] for name in part.block.inputs} | set(model.outputs)
    return tuple(n for n in made if n in read and model.dtypes.get(n) == onnx.TensorProto.FLOAT)
