"""What a runtime makes of a quantized model: integer or float, node by node, and how fast."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from onnxbrecq.data.dataset import Dataset
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


def in_onnxruntime(
    quantized: Path, reference: Model, data: Dataset, threads: int | None
) -> Execution:
    """By onnxruntime's CPU provider.

    Raises:
        ModelError: a model does not load or run.
    """
    ran = profile(quantized, data.part(slice(reference.file_batch or 1)), threads=1)
    kernels = integer_kernels(_layers(reference), executed(quantized))
    latencies = _latencies(_in_onnxruntime, quantized, reference, data, threads)
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
    latencies = _latencies(_in_openvino, quantized, reference, data, threads)
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
    opened: Opened, quantized: Path, reference: Model, data: Dataset, threads: int | None
) -> tuple[Latency, ...]:
    """Against the float file as it came, at batch 1 and 8, with one and all threads."""
    one = reference.file_batch or 1
    many = (one,) if reference.file_batch else tuple(sorted({one, min(BATCH, len(data))}))
    source = reference.path if reference.path and reference.path.exists() else reference.proto
    found: list[Latency] = []
    for used in sorted({1, threads or os.cpu_count() or 1}):
        for batch in many:
            pair = paired_latency(
                opened(quantized, used),
                opened(source, used),
                data.part(slice(batch)),
                seconds=_SECONDS if found else 2 * _SECONDS,
            )
            found.append(Latency(used, batch, pair.ms_a, pair.ms_b, pair.ratio, pair.interval))
    return tuple(found)
