"""What a runtime makes of a quantized model: integer or float, node by node, and how fast."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.report.result import ExecutedKernel, Execution, Latency
from onnxbrecq.runtime import openvino
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.latency import paired_latency
from onnxbrecq.runtime.openvino import OpenVino, integer_layers
from onnxbrecq.runtime.profile import profile
from onnxbrecq.runtime.session import PROVIDER, Runner, Session
from onnxbrecq.validation.coverage import coverage

BATCH = 8  # as fast as more, in less memory

_SECONDS = 2.0  # of a latency; of that which scripts read, twice as long
_RUNS = 5  # of which the times of nodes are taken

Opened = Callable[[onnx.ModelProto | Path, int], Runner]  # a model, with so many threads


def float_source(reference: Model) -> tuple[onnx.ModelProto | Path, tuple[str, ...]]:
    """The float model as latency is measured against it, and a line if that is not its file."""
    if reference.path is None or not reference.path.exists():
        return reference.proto, ()
    try:
        Session(reference.path)
    except ModelError as error:  # `load` forgives more than onnxruntime does
        return reference.proto, (f"latency is against the canonical float model: {error}",)
    return reference.path, ()


def in_onnxruntime(
    quantized: Path,
    reference: Model,
    source: onnx.ModelProto | Path,
    data: Dataset,
    threads: int | None,
) -> Execution:
    """By onnxruntime's CPU provider; latency is against `source`, the float model.

    Raises:
        ModelError: a model does not load or run.
    """
    ran = profile(quantized, data.part(slice(reference.file_batch or 1)), threads=1)
    kernels = integer_kernels(_layers(reference), executed(quantized))
    one = reference.file_batch
    latencies = _latencies(_in_onnxruntime, quantized, source, data, batch=one, threads=threads)
    nodes = [(node.name, node.op, node.provider, node.arithmetic, node.ms) for node in ran]
    return _execution(PROVIDER, reference, kernels, latencies, nodes)


def in_openvino(quantized: Path, reference: Model, data: Dataset, threads: int | None) -> Execution:
    """By OpenVINO's CPU plugin, which must be installed.

    Raises:
        ModelError: a model does not load or run.
    """
    timed = OpenVino(quantized, threads=1, timed=True)
    for _ in range(_RUNS):
        timed.run(data.part(slice(reference.file_batch or 1)))
    ran = timed.executed()
    kernels = integer_layers(_layers(reference), ran)
    one, source = reference.file_batch, reference.proto
    latencies = _latencies(_in_openvino, quantized, source, data, batch=one, threads=threads)
    nodes = [(node.name, node.op, openvino.PROVIDER, node.arithmetic, node.ms) for node in ran]
    return _execution(openvino.PROVIDER, reference, kernels, latencies, nodes)


def _in_onnxruntime(model: onnx.ModelProto | Path, threads: int) -> Runner:
    return Session(model, threads=threads)


def _in_openvino(model: onnx.ModelProto | Path, threads: int) -> Runner:
    return OpenVino(model, threads=threads)


def _layers(reference: Model) -> list[str]:
    return [layer.name for layer in weight_layers(reference)]


def _execution(
    provider: str,
    reference: Model,
    kernels: Mapping[str, object],
    latencies: tuple[Latency, ...],
    nodes: Sequence[tuple[str, str, str, str, float]],
) -> Execution:
    covered = coverage(reference, kernels)
    total = sum(node[-1] for node in nodes)
    return Execution(
        provider=provider,
        loads=True,  # one that does not load ended in a ModelError before
        integer_macs_fraction=covered.integer_macs_fraction,
        float_nodes=covered.float_nodes,
        latency_ms=latencies[0].latency_ms,
        float_latency_ms=latencies[0].float_latency_ms,
        speedup=latencies[0].speedup,
        latencies=latencies,
        nodes=tuple(
            ExecutedKernel(*node, share=node[-1] / total if total else 0.0) for node in nodes
        ),
    )


def _latencies(
    opened: Opened,
    quantized: Path,
    source: onnx.ModelProto | Path,
    data: Dataset,
    *,
    batch: int | None,
    threads: int | None,
) -> tuple[Latency, ...]:
    """Against the float model, at `batch` or, if any will do, 1 and 8, with one and all threads."""
    many = (batch,) if batch else tuple(sorted({1, min(BATCH, len(data))}))
    found: list[Latency] = []
    for used in sorted({1, threads or os.cpu_count() or 1}):
        for size in many:
            pair = paired_latency(
                opened(quantized, used),
                opened(source, used),
                data.part(slice(size)),
                seconds=_SECONDS if found else 2 * _SECONDS,
            )
            found.append(Latency(used, size, pair.ms_a, pair.ms_b, pair.ratio, pair.interval))
    return tuple(found)
