"""How far the tensors within a quantized model are from the float model's, by name.

    error = sum (q - ref)^2 / sum ref^2          over all finite elements

A tensor keeps its name when it is quantized, so both graphs hold what is compared. Other tools give
the name to what goes into the quantizer, which may do the work of a Relu: then what comes out of it
counts, as that is what is read.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.model import Model
from onnxbrecq.progress import Progress, silent
from onnxbrecq.runtime.session import paired_runs
from onnxbrecq.runtime.trace import showing

BATCH = 4  # samples whose tensors are all held at once

_LEAST = float(np.finfo(np.float32).tiny)


def tensor_errors(
    reference: Model,
    quantized: onnx.ModelProto,
    names: Sequence[str],
    data: Dataset,
    *,
    threads: int | None = None,
    progress: Progress = silent,
    stage: str = "tensors",
) -> dict[str, float]:
    """Tensor name → its relative squared error; absent: not in both graphs, or of other shapes.

    Args:
        reference: the float model.
        quantized: the quantized graph.
        names: of the tensors.
        data: a few samples; all tensors of a batch are held at once.
        threads: of onnxruntime.
        progress: told of each batch.
        stage: the name it is told.

    Raises:
        ModelError: a model does not run with these tensors visible.
    """
    made = {name for node in quantized.graph.node for name in node.output}
    common = [name for name in names if name in made and name in reference.producer]
    read = _read(quantized, common, reference)
    sessions = (
        showing(reference.proto, common, threads),
        showing(quantized, sorted(set(read.values())), threads),
    )
    error: dict[str, float] = defaultdict(float)
    energy: dict[str, float] = defaultdict(float)
    unlike: set[str] = set()
    batch = reference.file_batch or BATCH
    for wanted, found in paired_runs(*sessions, data, batch, progress=progress, stage=stage):
        for name in common:
            value, other = wanted[name], found[read[name]]
            if value.dtype.kind != "f" or value.shape != other.shape:
                unlike.add(name)
                continue
            known = np.isfinite(value)
            exact = np.where(known, value, 0).astype(np.float64)
            near = np.where(known, other, 0).astype(np.float64)
            error[name] += float(np.square(near - exact).sum())
            energy[name] += float(np.square(exact).sum())
    return {name: error[name] / max(energy[name], _LEAST) for name in common if name not in unlike}


def _read(quantized: onnx.ModelProto, names: Sequence[str], reference: Model) -> dict[str, str]:
    """Tensor → the tensor that its readers see: itself, or what its quantizer gives."""
    behind: dict[str, str] = {}  # what a quantizer reads → what it writes
    for op in ("DequantizeLinear", "QuantizeLinear"):
        for node in quantized.graph.node:
            if node.op_type == op and node.input[0] not in behind:
                behind[node.input[0]] = node.output[0]
    found = {}
    for name in names:
        levels = behind.get(name)
        value = behind.get(levels) if levels is not None else None
        known = value is None or value in reference.producer
        found[name] = name if known or value is None else value
    return found
