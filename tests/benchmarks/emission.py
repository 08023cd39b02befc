"""What emission makes of real models: does it load, on which kernels, how fast, how small.

    python tests/benchmarks/emission.py --data DIR --models resnet20,squeezenet --output DIR

Models and data are those of `real_models.py`. Each model is quantized with effort `fast` on a few
samples: neither kernels nor sizes depend on how well it was learned. With `--target openvino`, and
the package openvino installed, it is run there as well. Columns:

    integer_macs    share of the weight layers' multiply-accumulates in integer kernels
    to_float        latency, in terms of the float file's; batch 1, one thread, runs in turn
    to_static       in terms of what onnxruntime's `quantize_static` makes of the model at W8A8
    float_95, static_95     where these two lie with 95 % confidence
    agreement       top-1, of an optimised session with an unoptimised one, in percent
    openvino        top-1, of OpenVINO with an optimised session of onnxruntime
    parts_at        the node from which on OpenVINO differs, and by how many steps there
    to_bound        file size, in terms of the bound below; at most 1 is wanted

    bound = 1.03 (sum of bits * weights / 8 + 4 * (biases and scales) + graph without constants)

The weights of an embedding have 8 bits; what else is constant and no weight (positions, gammas)
belongs to the graph, at the size that it has in the float model.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import real_models
import rows
import subjects
from rows import Row

import onnxbrecq
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import TARGETS
from onnxbrecq.report.result import Execution, LayerFacts
from onnxbrecq.runtime.doctor import environment
from onnxbrecq.runtime.latency import PairedLatency, paired_latency
from onnxbrecq.runtime.session import Session

_COLUMNS = {"model": "{}", "setting": "{}", "loads": "{}", "integer_macs": "{:.3f}",
            "to_float": "{:.2f}", "float_95": "{}", "to_static": "{:.2f}", "static_95": "{}",
            "agreement": "{:.1f}", "openvino": "{:.1f}", "parts_at": "{}",
            "bytes": "{}", "to_bound": "{:.3f}"}  # fmt: skip
_CLASSIFIERS = tuple(name for name in subjects.SUBJECTS if name != "nanodet")
_SLACK = 1.03


@dataclass(frozen=True)
class Job:
    """One row to make."""

    model: str
    setting: str
    target: str | None
    samples: int
    seconds: float
    threads: int

    def columns(self) -> Row:
        """What tells the row from all others."""
        return {name: getattr(self, name) for name in ("model", "setting", "target", "samples")}

    def quantized(self, method: str, setting: str) -> real_models.Job:
        """The same model by a method of `real_models.py`."""
        return real_models.Job(
            self.model, method, setting, "fast", self.samples, self.samples, self.threads
        )


def make(job: Job, root: Path) -> Row:
    """The row: quantized twice, opened, measured."""
    source = subjects.source(job.model, root)
    model = load(source)
    seen, _ = subjects.samples(job.model, root, calibration=job.samples, evaluation=1)
    seen = seen.whole(model.file_batch)
    feed = seen.part(slice(model.file_batch or 1))
    with tempfile.TemporaryDirectory() as folder:
        ours, static = Path(folder) / "ours.onnx", Path(folder) / "static.onnx"
        recipe = replace(job.quantized("onnxbrecq", job.setting).recipe(), target=job.target)
        result = onnxbrecq.quantize(source, seen, recipe, output=ours)
        real_models.quantize_static(job.quantized("onnxruntime", "W8A8"), source, seen, static)
        try:
            session = Session(ours, threads=1)
        except ModelError as error:
            return {"loads": f"no: {error}"}
        to_float, to_static = (
            paired_latency(
                Session(other, threads=1), session, feed, rounds=1000, seconds=job.seconds
            )
            for other in (source, static)
        )
        size = ours.stat().st_size
        bound = _bound(onnx.load(ours), model, result.layers)
    return {
        "loads": "yes",
        "integer_macs": result.execution[0].integer_macs_fraction,
        "to_float": to_float.ratio,
        "float_95": _interval(to_float),
        "to_static": to_static.ratio,
        "static_95": _interval(to_static),
        "agreement": result.parity.agreement,
        **_elsewhere(result.execution),
        "bytes": size,
        "to_bound": size / bound,
        "environment": environment(),
    }


def _elsewhere(execution: Sequence[Execution]) -> Row:
    """How far another runtime is from onnxruntime, where it was tried."""
    found = next((ran.parity for ran in execution if ran.parity is not None), None)
    if found is None:
        return {}
    first = found.divergence.first if found.divergence is not None else None
    where = None if first is None else f"{first.name}: {first.max_steps}"
    return {"openvino": found.agreement, "parts_at": where}


def _bound(proto: onnx.ModelProto, model: Model, layers: Sequence[LayerFacts]) -> float:
    """The size that the file made of `model` should not exceed, in bytes."""
    points = find_points(model)
    named = {name for layer in points.layers.values() for name in (layer.weight, layer.bias)}
    tables = {table.weight for table in points.tables.values()} - named
    others = sum(
        np.asarray(values).nbytes
        for name, values in model.initializers.items()
        if name not in named | tables
    )
    others += sum(model.elements(name) for name in tables)
    # Layers whose weights are equal share one, which is there once.
    stored = {
        points.points[points.layers[layer.name].weight].group: layer
        for layer in layers
        if layer.name in points.layers
    }
    weights = sum((layer.weight_bits or 32) * layer.parameters / 8 for layer in stored.values())
    scales = {
        node.input[1]
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    # Biases are the INT32 tensors of one dimension.
    words = sum(
        _elements(tensor)
        for tensor in proto.graph.initializer
        if tensor.name in scales
        or (tensor.data_type == onnx.TensorProto.INT32 and len(tensor.dims) == 1)
    )
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    return _SLACK * (weights + 4 * words + others + bare.ByteSize())


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _interval(latency: PairedLatency) -> str | None:
    if latency.interval is None:
        return None
    low, high = latency.interval
    return f"{low:.2f}–{high:.2f}"


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA", "."))
    parser.add_argument("--models", default=",".join(_CLASSIFIERS))
    parser.add_argument("--settings", default="W8A8,W4A8,W2A8,W4A4,W2A4")
    parser.add_argument("--target", choices=TARGETS, help="default: as `quantize` chooses it")
    parser.add_argument("--samples", type=int, default=128, help="for `agreement`, at most 128")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each latency")
    given = rows.arguments(parser)
    jobs = [
        Job(model, setting, given.target, given.samples, given.seconds, given.threads)
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
