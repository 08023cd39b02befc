"""Whether a quantized model computes the same with and without onnxruntime's optimisations.

Optimised integer kernels and nodes run as written differ by one step where rounding ties, and
these differences add up over depth. They are counted at the outputs that a DequantizeLinear
produces, in steps of its quantizer; where there is none, only the top-1 class can be compared.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import Parity
from onnxbrecq.runtime.session import Session, paired_runs
from onnxbrecq.validation.fidelity import agreement, joined, top1_predictions

SAMPLES = 128

Array = NDArray[np.generic]


def parity(
    quantized: Path,
    optimized: Session,
    data: Dataset,
    batch_size: int,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> Parity:
    """The differences on the first samples of `data`, at most `SAMPLES`.

    Args:
        quantized: the model's file.
        optimized: its default session.
        data: samples.
        batch_size: samples a run.
        threads: of the session without optimisations.
        progress: told of each batch.

    Raises:
        DataError: there are no samples.
        ModelError: the model does not load or run without optimisations.
    """
    plain = Session(quantized, optimize=False, threads=threads)
    scales = output_scales(onnx.load(quantized))
    some = data.head(whole(SAMPLES, batch_size))
    runs = paired_runs(plain, optimized, some, batch_size, progress=progress, stage="parity")
    counts, predictions, first = [], [], plain.outputs[0]
    for expected, actual in runs:
        counts += [_count(expected[name], actual[name], scale) for name, scale in scales.items()]
        predictions.append(top1_predictions(expected[first], actual[first]))
    most, differing, total = np.array(counts, np.int64).reshape(-1, 3).T  # [outputs * batches]
    return Parity(
        max_steps=int(most.max()) if counts else None,
        mismatched_fraction=float(differing.sum() / total.sum()) if counts else None,
        agreement=agreement(joined(predictions)),
    )


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


def _count(expected: Array, actual: Array, scale: Array) -> tuple[int, int, int]:
    """The largest difference in steps, the number of differing values, and of all values."""
    steps = np.rint(np.abs(np.subtract(actual, expected)) / scale)
    return int(steps.max(initial=0)), int(np.count_nonzero(steps)), steps.size
