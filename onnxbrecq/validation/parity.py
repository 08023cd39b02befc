"""Whether two runtimes compute the same from a quantized model: onnxruntime with and without its
optimisations, say.

Optimised integer kernels and nodes run as written differ by one step where rounding ties, and
these differences add up over depth. They are counted at the outputs that a DequantizeLinear
produces, in steps of its quantizer; where there is none, only the top-1 class can be compared.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import Parity
from onnxbrecq.runtime.session import Runner, paired_runs
from onnxbrecq.validation.fidelity import agreement, joined, top1_predictions

SAMPLES = 128

Array = NDArray[np.generic]


def parity(
    quantized: Path,
    a: Runner,
    b: Runner,
    data: Dataset,
    batch_size: int,
    *,
    progress: Progress = silent,
) -> Parity:
    """The differences on the first samples of `data`, at most `SAMPLES`.

    Args:
        quantized: the model's file.
        a: what runs it.
        b: what else runs it.
        data: samples.
        batch_size: samples a run.
        progress: told of each batch.

    Raises:
        DataError: there are no samples.
        ModelError: a run fails.
    """
    scales = output_scales(onnx.load(quantized))
    some = data.head(whole(SAMPLES, batch_size))
    runs = paired_runs(a, b, some, batch_size, progress=progress, stage="parity")
    counts, predictions, first = Counter[int](), [], a.outputs[0]
    for expected, actual in runs:
        for name, scale in scales.items():
            counts += _steps(expected[name], actual[name], scale)
        predictions.append(top1_predictions(expected[first], actual[first]))
    return Parity(
        max_steps=max(counts) if counts else None,
        mismatched_fraction=1 - counts[0] / counts.total() if counts else None,
        agreement=agreement(joined(predictions)),
        steps=shares(counts) if counts else None,
    )


def tally(steps: NDArray[np.int64]) -> Counter[int]:
    """Difference in steps → number of elements."""
    values, numbers = np.unique(steps, return_counts=True)
    return Counter(dict(zip(values.tolist(), numbers.tolist(), strict=True)))


def shares(counts: Counter[int]) -> dict[str, float]:
    """Steps → share of the elements, from the nearest to the farthest."""
    return {str(steps): counts[steps] / counts.total() for steps in sorted(counts)}


def output_scales(model: onnx.ModelProto) -> dict[str, Array]:
    """Graph output → the scale of the DequantizeLinear that produces it; others are absent.

    A scale per channel is shaped to broadcast against the output.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    found = {}
    for value in graph.output:
        node = producers.get(value.name)
        if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]])
            found[value.name] = _broadcast(scale, node, len(value.type.tensor_type.shape.dim))
    return found


def _broadcast(scale: Array, node: onnx.NodeProto, rank: int) -> Array:
    if scale.size == 1:
        return scale.reshape(())
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    return scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _steps(expected: Array, actual: Array, scale: Array) -> Counter[int]:
    """Difference in steps → number of elements."""
    steps = np.rint(np.abs(np.subtract(actual, expected)) / scale).astype(np.int64)
    return Counter(
        dict(zip(*(x.tolist() for x in np.unique(steps, return_counts=True)), strict=True))
    )
