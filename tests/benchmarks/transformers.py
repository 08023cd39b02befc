"""What each measure for transformers is worth, and what fusions are; run by hand.

    python tests/benchmarks/transformers.py --data DIR --models vit,fixtures/vit.onnx \
        --settings W8A8,W4A8,W4A4 --output DIR

Each row quantizes a model with all measures but one:

    migration     channels of a LayerNormalization made alike (onnxbrecq.smoothing)
    float-sums    what is made and read in float keeps its values (onnxbrecq.graph.reads)
    softmax-range probabilities have the range of least error; without, 0 to 1

`fused` is the latency of the file as it runs by default, over that without the fusions that
onnxruntime has for transformers, run in turn on one sample. Models are named as in
`subjects.py`, --data as in `real_models.py`.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
import real_models
import rows
import subjects
from rows import Row

import onnxbrecq
from onnxbrecq.bits import Allocation
from onnxbrecq.calibrate import Calibration
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.plan import QuantPlan
from onnxbrecq.runtime.latency import paired_latency
from onnxbrecq.runtime.session import session_options

ALL = "all"
FUSIONS = (
    "AttentionFusion", "BiasGeluFusion", "EmbedLayerNormFusion", "FastGeluFusion", "GeluFusionL1",
    "GeluFusionL2", "LayerNormFusionL1", "LayerNormFusionL2", "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
)  # fmt: skip


class _FullRange(Calibration):
    """First decisions, with probabilities from 0 to 1."""

    def plan(self, bits: Allocation) -> QuantPlan:
        plan = super().plan(bits)
        made = {node.output[0] for node in self._model.nodes if node.op_type == "Softmax"}
        whole = {
            name: dataclasses.replace(
                quant, scale=np.asarray(1 / (quant.qtype.levels - 1), np.float32)
            )
            for name, quant in plan.tensors.items()
            if name in made
        }
        return plan.updated(whole)


# Measure → what stands in its place in a row without it.
WITHOUT: dict[str, tuple[str, Callable[..., Any]]] = {
    "migration": ("onnxbrecq.preparation.smoothed", lambda *_: {}),
    "float-sums": ("onnxbrecq.graph.load.part_reads", lambda model: model),
    "softmax-range": ("onnxbrecq.calibrate.Calibration", _FullRange),
}


@dataclass(frozen=True)
class Job(real_models.Job):
    """A row of `real_models.py` without a measure."""

    without: str

    def columns(self) -> Row:
        """What tells the row from all others."""
        return {**super().columns(), "without": self.without}


def make_row(job: Job, root: Path) -> Row:
    """The finished row of `job`."""
    path = subjects.source(job.model, root)
    seen, held = subjects.samples(
        job.model, root, calibration=job.calibration, evaluation=job.evaluation
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if job.without != ALL:
            name, other = WITHOUT[job.without]
            stack.enter_context(patch(name, other))
        output, start = Path(folder) / "quantized.onnx", time.perf_counter()
        result = onnxbrecq.quantize(path, seen, job.recipe(), evaluation=held, output=output)
        made = {**real_models.measured(result.as_json()), "seconds": time.perf_counter() - start}
        return {**made, "fused": fused(output, seen, job.threads)}


def fused(path: Path, data: Dataset, threads: int) -> float:
    """Latency with onnxruntime's fusions over that without."""
    feed = {name: np.asarray(values[:1]) for name, values in data.inputs.items()}
    runners = [_Runner(path, threads, off) for off in ((), FUSIONS)]
    # Of two equal sessions the first may seem slower: each is first once.
    without, fusions = (paired_latency(*pair, feed).ratio for pair in (runners, runners[::-1]))
    return float(np.sqrt(fusions / without))


class _Runner:
    """A session without some optimisers."""

    def __init__(self, path: Path, threads: int, off: tuple[str, ...]) -> None:
        options = session_options(threads)
        self._session = ort.InferenceSession(
            str(path), options, ["CPUExecutionProvider"], disabled_optimizers=list(off)
        )

    def run(self, feed: Any) -> Any:
        """The outputs for one feed."""
        return self._session.run(None, feed)


COLUMNS = {
    "model": "{}", "setting": "{}", "without": "{}", "effort": "{}", "float": "{:.1f}",
    "quantized": "{:.1f}", "agreement": "{:.1f}", "sqnr_db": "{:.2f}", "size_ratio": "{:.3f}",
    "integer_macs": "{:.3f}", "latency_ratio": "{:.2f}", "fused": "{:.2f}", "seconds": "{:.0f}",
}  # fmt: skip


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Measures for transformers, one off at a time.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA", "."))
    parser.add_argument("--models", default="vit")
    parser.add_argument("--settings", default="W8A8,W4A8,W4A4")
    parser.add_argument("--without", default=",".join((ALL, *WITHOUT)))
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--calibration", type=int, default=512, help="samples, at most")
    parser.add_argument("--evaluation", type=int, default=1000, help="samples, at most")
    arguments = rows.arguments(parser)
    names = arguments.without.split(",")
    unknown = sorted(set(names) - {ALL, *WITHOUT})
    if unknown:
        parser.error(f"unknown measures {unknown}; known: {', '.join((ALL, *WITHOUT))}")
    jobs = [
        Job(model, "onnxbrecq", setting, arguments.effort, arguments.calibration,
            arguments.evaluation, arguments.threads, without)
        for model in arguments.models.split(",") for setting in arguments.settings.split(",")
        for without in names
    ]  # fmt: skip
    for job in jobs:
        job.recipe()  # a wrong setting ends the run here, not after the first row
    rows.run(
        jobs, partial(make_row, root=Path(arguments.data)),
        partial(real_models.missing, root=Path(arguments.data)), partial(rows.table, COLUMNS),
        arguments.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
