"""How far the tensors within a quantized model are from the float model's, by name.

    error = sum (q - ref)^2 / sum ref^2          over all finite elements

A tensor keeps its name when it is quantized, so both graphs hold what is compared.
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
    sessions = (
        showing(reference.proto, common, threads),
        showing(quantized, common, threads),
    )
    error: dict[str, float] = defaultdict(float)
    energy: dict[str, float] = defaultdict(float)
    unlike: set[str] = set()
    batch = reference.file_batch or BATCH
    for wanted, found in paired_runs(*sessions, data, batch, progress=progress, stage=stage):
        for name in common:
            value, other = wanted[name], found[name]
            if value.dtype.kind != "f" or value.shape != other.shape:
                unlike.add(name)
                continue
            known = np.isfinite(value)
            exact = np.where(known, value, 0).astype(np.float64)
            near = np.where(known, other, 0).astype(np.float64)
            error[name] += float(np.square(near - exact).sum())
            energy[name] += float(np.square(exact).sum())
    return {name: error[name] / max(energy[name], _LEAST) for name in common if name not in unlike}
