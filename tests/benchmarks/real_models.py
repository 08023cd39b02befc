"""Quantizes real models and writes one table of what came out; run by hand.

    python tests/benchmarks/real_models.py --data DIR --models resnet20,mobilenet_v2 \
        --settings W8A8,W4A8 --output DIR

DIR (or the environment variable ONNXBRECQ_BENCH_DATA) holds

    models/*.onnx
    cifar10/calibration.npz, evaluation.npz      images uint8 [N, 32, 32, 3], labels
    imagenet/calibration/, imagenet/evaluation/  images
    imagenet/evaluation_labels.txt               lines of `file index`
    coco/images/                                 images

and what is missing is skipped, which is said. Every row is made in a process of its own, so that
its peak memory is its own, and kept in OUTPUT/results.json at once: an interrupted run goes on
where it stopped. OUTPUT/results.md is the same for reading.

Methods: `onnxbrecq`; `nearest`, the same without reconstruction; `onnxruntime`, its own
`quantize_static` (QDQ, per channel, MinMax) on the same samples. All are measured by
`onnxbrecq.validate`. The labels of calibration samples are never used.
"""

import argparse
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import rows
import subjects
from onnx import version_converter
from onnxruntime import quantization as ort_quantization
from rows import Row

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import load
from onnxbrecq.recipe import Recipe, Reconstruction

log = logging.getLogger("real_models")

_NEAREST = Reconstruction(start="nearest", iterations=0, step_search=False)


@dataclass(frozen=True)
class Job:
    """One row to make. `weights` and `activations` in bits; None: float activations."""

    model: str
    method: str
    setting: str
    effort: str
    calibration: int
    evaluation: int
    threads: int

    @property
    def bits(self) -> tuple[int, int | None]:
        """Bits of weights and activations; W4A32 and W4Afloat mean float activations."""
        found = re.fullmatch(r"W(\d)A(\d|32|float)", self.setting)
        if found is None:
            raise SystemExit(f"setting {self.setting!r}: want W<bits>A<bits>, such as W4A8")
        weights, activations = found.groups()
        return int(weights), int(activations) if activations in set("2348") else None

    def columns(self) -> Row:
        """What tells the row from all others."""
        names = ("model", "method", "setting", "effort", "calibration", "evaluation")
        return {name: getattr(self, name) for name in names}

    def recipe(self) -> Recipe:
        """The recipe of this row."""
        weights, activations = self.bits
        steps = _NEAREST if self.method == "nearest" else None
        return Recipe(
            weights=weights,
            activations=activations,
            effort=self.effort,  # type: ignore[arg-type]
            threads=self.threads,
            reconstruction=steps,
        )


# ---- one row --------------------------------------------------------------------------------


def make_row(job: Job, root: Path) -> Row:
    """The finished row of `job`."""
    path = subjects.source(job.model, root)
    calibration, evaluation = subjects.samples(
        job.model, root, calibration=job.calibration, evaluation=job.evaluation
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "quantized.onnx"
        start = time.perf_counter()
        if job.method == "onnxruntime":
            quantize_static(job, path, calibration, output)
            seconds = time.perf_counter() - start
            result = onnxbrecq.validate(output, path, calibration, evaluation, job.recipe())
        else:
            result = onnxbrecq.quantize(
                path, calibration, job.recipe(), evaluation=evaluation, output=output
            )
            seconds = result.total_seconds - result.stages.get("validate", 0.0)
    return {**measured(result.as_json()), "seconds": seconds}


def quantize_static(job: Job, source: Path, calibration: Dataset, output: Path) -> None:
    """Writes what onnxruntime's own quantizer makes of the canonical graph of `source`."""
    model = load(source)
    kinds = {8: ort_quantization.QuantType.QInt8, 4: ort_quantization.QuantType.QInt4}
    with tempfile.TemporaryDirectory() as folder:
        canonical = Path(folder) / "canonical.onnx"
        proto = model.proto
        opset = {8: 13, 4: 21}[job.bits[0]]  # scales per channel came with 13, INT4 with 21
        if model.opset < opset:
            proto = version_converter.convert_version(proto, opset)
            for node in proto.graph.node:  # conversion drops names and adds constants
                if node.output[0] in model.producer:
                    node.name = model.producer[node.output[0]].name
        onnx.save(proto, canonical)
        ort_quantization.quantize_static(
            canonical,
            output,
            Reader(calibration, 16 if model.batched else 1),
            quant_format=ort_quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ort_quantization.QuantType.QUInt8,
            weight_type=kinds[job.bits[0]],
        )


class Reader:
    """Calibration feeds, as quantize_static wants them."""

    def __init__(self, data: Dataset, size: int) -> None:
        self.feeds: Iterator[object] = iter(data.batches(size))

    def get_next(self) -> object:
        """The next feed; None at the end."""
        return next(self.feeds, None)


def measured(result: Row) -> Row:
    """The columns of the table, from a result's JSON."""
    accuracy = result["accuracy"] or {}
    fidelity = result["fidelity"] or {}
    execution = result["execution"][0]
    return {
        "float": accuracy.get("float"),
        "quantized": accuracy.get("quantized"),
        "drop": accuracy.get("drop"),
        "interval_95": accuracy.get("interval_95"),
        "agreement": fidelity.get("agreement"),
        "sqnr_db": fidelity.get("sqnr_db"),
        "size_ratio": result["size"]["ratio"],
        "integer_macs": execution["integer_macs_fraction"],
        "float_nodes": execution["float_nodes"],
        "latency_ms": execution["latency_ms"],
        "latency_ratio": 1 / execution["speedup"],
        "peak_mb": result["memory"]["peak_bytes"] / 1e6,
        "environment": result["environment"],
    }


# ---- the table ------------------------------------------------------------------------------

COLUMNS = {
    "model": "{}",
    "setting": "{}",
    "method": "{}",
    "float": "{:.1f}",
    "quantized": "{:.1f}",
    "drop": "{:+.1f}",
    "agreement": "{:.1f}",
    "sqnr_db": "{:.1f}",
    "size_ratio": "{:.3f}",
    "integer_macs": "{:.3f}",
    "latency_ratio": "{:.2f}",
    "seconds": "{:.0f}",
    "peak_mb": "{:.0f}",
}


def missing(job: Job, root: Path) -> str | None:
    """Why a row cannot be made, or None."""
    if job.method == "onnxruntime" and (job.bits[0] not in (4, 8) or job.bits[1] != 8):
        return "quantize_static knows 8-bit activations and 4 or 8-bit weights only"
    return subjects.absent(job.model, root)


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Quantizes real models; writes one table.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA"))
    parser.add_argument("--models", default=",".join(subjects.SUBJECTS))
    parser.add_argument("--settings", default="W8A8,W4A8")
    parser.add_argument("--methods", default="onnxbrecq,onnxruntime")
    parser.add_argument("--baseline", choices=["nearest"], help="adds rows of this method")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--calibration", type=int, default=1024, help="samples, at most")
    parser.add_argument("--evaluation", type=int, default=650, help="samples")
    arguments = rows.arguments(parser)
    if arguments.data is None:
        log.info("no data: give --data DIR or set ONNXBRECQ_BENCH_DATA; nothing was done")
        return
    methods = arguments.methods.split(",") + ([arguments.baseline] if arguments.baseline else [])
    names = arguments.models.split(",")
    unknown = sorted(set(names) - set(subjects.SUBJECTS))
    if unknown:
        parser.error(f"unknown models {unknown}; known: {sorted(subjects.SUBJECTS)}")
    jobs = [
        Job(name, method, setting, arguments.effort, arguments.calibration, arguments.evaluation,
            arguments.threads)
        for name in names for setting in arguments.settings.split(",") for method in methods
    ]  # fmt: skip
    for job in jobs:
        job.recipe()  # a wrong setting ends the run here, not after the first row
    root = Path(arguments.data)
    rows.run(
        jobs, partial(make_row, root=root), partial(missing, root=root),
        partial(rows.table, COLUMNS), arguments.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
