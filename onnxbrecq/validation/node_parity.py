"""Whether onnxruntime's integer kernels compute what exact arithmetic says, node by node.

The graph that a default session executes is run once more with every tensor visible; each node's
output is held against `onnxbrecq.validation.reference`, fed the very integers that the node read.
So differences do not add up: what is off by more than a step at a node is that node's doing
(8-bit products that saturate without VNNI, say), and not that of those before it.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import NodeParity, NodeSteps
from onnxbrecq.runtime.trace import optimized, trace
from onnxbrecq.validation.reference import Expected, Values, expected


class _Count:
    """Steps, summed up over elements."""

    def __init__(self) -> None:
        self.most = self.differing = self.total = 0
        self.computed = False

    def add(self, wanted: Expected, found: np.ndarray) -> None:
        steps = wanted.steps(found)
        self.most = max(self.most, int(steps.max(initial=0)))
        self.differing += int(np.count_nonzero(steps))
        self.total += steps.size
        self.computed |= not wanted.moved

    def joined(self, other: "_Count") -> None:
        self.most = max(self.most, other.most)
        self.differing += other.differing
        self.total += other.total

    def told(self, name: str | None, op: str) -> NodeSteps:
        return NodeSteps(name, op, self.most, self.fraction, self.total)

    @property
    def fraction(self) -> float:
        return self.differing / max(self.total, 1)


def node_parity(
    quantized: Path | onnx.ModelProto,
    data: Dataset,
    batch_size: int,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> NodeParity:
    """The differences on all of `data`; every tensor of a batch is held at once.

    Args:
        quantized: the model.
        data: a few samples.
        batch_size: samples a run.
        threads: of the session.
        progress: told of each batch.

    Raises:
        ModelError: the model does not load or run with all its tensors visible.
    """
    executed = optimized(quantized, threads)
    session = trace(executed, threads)
    graph = executed.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    counts: dict[int, _Count] = defaultdict(_Count)
    done = 0
    for feed in data.batches(batch_size):
        _compare(graph, {**constants, **feed, **session.run(feed)}, counts)
        done = min(done + batch_size, len(data))
        progress("reference", done, len(data))
    return _told(graph, counts, len(data))


def _compare(graph: onnx.GraphProto, values: Values, counts: dict[int, _Count]) -> None:
    for i, node in enumerate(graph.node):
        wanted = expected(node, values)
        if wanted is not None:
            counts[i].add(wanted, values[node.output[0]])


def _told(graph: onnx.GraphProto, counts: dict[int, _Count], samples: int) -> NodeParity:
    whole, operators = _Count(), defaultdict[str, _Count](_Count)
    for i, count in counts.items():
        operators[graph.node[i].op_type].joined(count)
        whole.most = max(whole.most, count.most)
        if count.computed:
            whole.joined(count)
    return NodeParity(
        samples=samples,
        nodes=len(counts),
        max_steps=whole.most,
        mismatched_fraction=whole.fraction,
        operators=tuple(operators[op].told(None, op) for op in sorted(operators)),
        beyond_one_step=tuple(
            count.told(graph.node[i].name, graph.node[i].op_type)
            for i, count in sorted(counts.items())
            if count.most > 1
        ),
        float_operators=dict(
            sorted(Counter(n.op_type for i, n in enumerate(graph.node) if i not in counts).items())
        ),
    )
