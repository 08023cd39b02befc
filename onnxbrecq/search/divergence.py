"""How far the network's output moves when one layer is quantized: what sensitivities stand for.

    KL(p || q) = sum_c p_c (log p_c - log q_c)      p, q: softmax of the float and quantized scores

in nats, mean over samples; of outputs that are no class scores the mean squared error.
"""

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.emit.emit import emit
from onnxbrecq.parts import RUN_BATCH, Task
from onnxbrecq.plan import QuantPlan
from onnxbrecq.runtime.session import Session

Array = NDArray[np.float64]


class OutputCheck:
    """Runs the whole network as plans deploy it, and holds its first output against the float one.

    Attributes:
        measure: `kl`, or `mse` where the output is no class scores.
        base: the divergence of the plan that it was made with.
    """

    def __init__(self, task: Task, plan: QuantPlan) -> None:
        """With the float outputs of the task's samples."""
        self._task = task
        self._float = self._run(Session(task.model.proto, threads=task.recipe.threads))
        scores = self._float.ndim == 2 and self._float.shape[1] > 1
        self.measure = "kl" if scores else "mse"
        self.base = self.divergence(plan)

    def divergence(self, plan: QuantPlan) -> float:
        """Of the network as the plan deploys it; infinite where its outputs have other shapes."""
        proto = emit(self._task.model, plan, self._task.target)
        made = self._run(Session(proto, threads=self._task.recipe.threads))
        if made.shape != self._float.shape:
            return float("inf")
        if self.measure == "kl":
            return kl_divergence(self._float, made)
        return float(np.square(made - self._float).mean())

    def _run(self, session: Session) -> Array:
        """The first output of all samples; of outputs without a row for each, all values."""
        batch = self._task.model.batch or RUN_BATCH
        made = [
            np.asarray(session.run(feed)[session.outputs[0]], np.float64)
            for feed in self._task.data.batches(batch)
        ]
        same = len({value.shape[1:] for value in made}) == 1
        return np.concatenate(made if same else [value.reshape(-1) for value in made])


def kl_divergence(reference: Array, scores: Array) -> float:
    """Mean KL divergence of softmax(scores) from softmax(reference), both [N, C], in nats."""
    p, q = _log_softmax(reference), _log_softmax(scores)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
