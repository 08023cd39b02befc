"""How exactly onnxruntime's integer kernels compute, node by node; run by hand.

    python tests/benchmarks/integer_parity.py --data DIR --models resnet20,mobilenet_v2 \
        --settings W8A8,W4A8 --output DIR

Models and data are those of `real_models.py`. Weights are rounded to nearest, which is all that
kernels can tell of a plan. Every node of the executed graph is fed what it really reads, and held
against exact arithmetic; `exact` is the share of equal elements among the nodes that compute, in
percent, `worst` the node with most differing elements.
"""

import argparse
import os
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import rows
import subjects
from rows import Row

from onnxbrecq.calibrate import calibrate
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import target_for
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import load
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.doctor import environment, saturation_free
from onnxbrecq.validation.node_parity import node_parity

_COLUMNS = {"model": "{}", "setting": "{}", "target": "{}", "samples": "{}", "nodes": "{}",
            "float": "{}", "max_steps": "{}", "exact": "{:.4f}", "beyond": "{}",
            "worst": "{}"}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One row to make."""

    model: str
    setting: str
    target: str
    samples: int
    threads: int

    def columns(self) -> Row:
        """What tells the row from all others."""
        return {name: getattr(self, name) for name in ("model", "setting", "target", "samples")}


def make(job: Job, root: Path) -> Row:
    """The row: quantized to nearest, run, compared."""
    bits = re.fullmatch(r"W(\d)A(\d)", job.setting)
    if bits is None:
        raise SystemExit(f"setting {job.setting!r}: want W<bits>A<bits>, such as W4A8")
    weights, activations = map(int, bits.groups())
    recipe = Recipe(weights=weights, activations=activations, threads=job.threads)
    model = load(subjects.source(job.model, root))
    seen, judged = subjects.samples(job.model, root, calibration=64, evaluation=job.samples)
    model = fork(model, activations)
    plan = calibrate(model, find_points(model), seen.whole(model.file_batch), recipe)
    proto = emit(model, plan, target_for(job.target, saturates=False))
    data = (judged or seen).head(job.samples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        found = node_parity(path, data, model.file_batch or 1, threads=job.threads)
    worst = max(found.operators, key=lambda operator: operator.mismatched_fraction)
    return {
        "nodes": found.nodes,
        "float": sum(found.float_operators.values()),
        "max_steps": found.max_steps,
        "exact": 100 * (1 - found.mismatched_fraction),
        "beyond": len(found.beyond_one_step),
        "worst": f"{worst.op} {100 * (1 - worst.mismatched_fraction):.4f}",
        "environment": environment(),
    }


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA", "."))
    parser.add_argument("--models", default=",".join((*subjects.FIXTURES, *subjects.SUBJECTS)))
    parser.add_argument("--settings", default="W8A8,W4A8")
    parser.add_argument("--target", default=target_for(None, saturates=not saturation_free()).name)
    parser.add_argument("--samples", type=int, default=4)
    given = rows.arguments(parser)
    jobs = [
        Job(model, setting, given.target, given.samples, given.threads)
        for model in given.models.split(",")
        for setting in given.settings.split(",")
    ]
    root = Path(given.data)
    rows.run(
        jobs,
        partial(make, root=root),
        lambda job: subjects.absent(job.model, root),
        partial(rows.table, _COLUMNS),
        given.output,
    )


if __name__ == "__main__":
    main()
