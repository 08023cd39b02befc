"""Where onnxruntime's default session and another one part, node after node.

Both run with every tensor visible. A node of the executed graph is found in the graph as written by
its name; what it makes there is the tensor behind the QuantizeLinear that onnxruntime fused into
it, channels first. Other than in `onnxbrecq.validation.node_parity` each session goes on with its
own values, so that rounding ties add up, as they do in use.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import Divergence, NodeSteps
from onnxbrecq.runtime.kernels import written_name
from onnxbrecq.runtime.session import Runner, Session
from onnxbrecq.runtime.trace import optimized, trace, visible
from onnxbrecq.validation.parity import shares, tally

Integers = NDArray[np.generic]


def divergence(
    quantized: Path,
    data: Dataset,
    batch_size: int,
    *,
    other: Callable[[onnx.ModelProto], Runner] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Divergence:
    """The differences on all of `data`; every tensor of a batch is held at once.

    Args:
        quantized: the model's file.
        data: a few samples.
        batch_size: samples a run.
        other: opens the graph as written, the tensors in question among its outputs; None: in
            onnxruntime without optimisations.
        threads: of the sessions.
        progress: told of each batch.

    Raises:
        ModelError: the model does not load or run with all its tensors visible.
    """
    written, executed = onnx.load(quantized), optimized(quantized, threads)
    twins = _twins(written.graph, executed.graph)
    shown = visible(written, twins.values())
    plain = Session(shown, optimize=False, threads=threads) if other is None else other(shown)
    fast = trace(executed, threads)
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    done = 0
    for feed in data.batches(batch_size):
        expected, actual = plain.run(feed), fast.run(feed)
        for i, tensor in twins.items():
            steps = _steps(expected[tensor], actual[executed.graph.node[i].output[0]])
            if steps is not None:
                counts[i].update(steps)
        done = min(done + batch_size, len(data))
        progress("divergence", done, len(data))
    nodes = [_told(executed.graph.node[i], counts[i]) for i in sorted(counts)]
    return Divergence(
        samples=len(data),
        nodes=len(nodes),
        first=next((node for node in nodes if node.max_steps), None),
        last=nodes[-1] if nodes else None,
        steps=shares(counts[max(counts)]) if counts else {},
    )


def _twins(written: onnx.GraphProto, executed: onnx.GraphProto) -> dict[int, str]:
    """Position of an executed node → the tensor of the written graph that is its first output."""
    readers = defaultdict[str, list[onnx.NodeProto]](list)
    for node in written.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {node.name: node.output[0] for node in written.node if node.name}
    found = {}
    for i, node in enumerate(executed.node):
        tensor = outputs.get(written_name(node.name, outputs))
        while tensor is not None and [reader.op_type for reader in readers[tensor]] in (
            ["Relu"], ["Clip"], ["QuantizeLinear"],
        ):  # fmt: skip
            follower = readers[tensor][0]
            tensor = follower.output[0]
            if follower.op_type == "QuantizeLinear":
                break
        if tensor is not None:
            found[i] = tensor
    return found


def _steps(expected: Integers, actual: Integers) -> Counter[int] | None:
    """Difference → number of elements; None where the two are no integers of one shape."""
    if expected.dtype != actual.dtype or expected.dtype.kind not in "iu":
        return None
    # Of two layouts that fit, the one meant is nearer by far.
    layouts = [actual, np.moveaxis(actual, -1, 1)] if actual.ndim > 2 else [actual]
    wide = expected.astype(np.int64)
    fits = [
        np.abs(np.subtract(wide, layout)) for layout in layouts if layout.shape == expected.shape
    ]
    if not fits:
        return None
    return tally(min(fits, key=np.count_nonzero))


def _told(node: onnx.NodeProto, counts: Counter[int]) -> NodeSteps:
    total = counts.total()
    return NodeSteps(
        node.name, node.op_type, max(counts, default=0), 1 - counts[0] / max(total, 1), total
    )
