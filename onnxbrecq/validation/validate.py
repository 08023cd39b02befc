"""Everything that is measured on a quantized model beside its float reference."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from onnxbrecq.data.dataset import Dataset, Feed
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import (
    Accuracy,
    Divergence,
    ExecutedKernel,
    Execution,
    Fidelity,
    Gate,
    Latency,
    NodeParity,
    Parity,
)
from onnxbrecq.runtime.kernels import executed
from onnxbrecq.runtime.latency import paired_latency
from onnxbrecq.runtime.profile import profile
from onnxbrecq.runtime.session import PROVIDER, Session
from onnxbrecq.validation.accuracy import top1_accuracy
from onnxbrecq.validation.coverage import coverage
from onnxbrecq.validation.divergence import divergence
from onnxbrecq.validation.fidelity import Comparison, compare, fidelity
from onnxbrecq.validation.gate import Limits
from onnxbrecq.validation.metrics import Metric
from onnxbrecq.validation.node_parity import node_parity
from onnxbrecq.validation.parity import parity

_BATCH = 8  # as fast as more, in less memory
_REFERENCE_SAMPLES = 8  # that go through integer arithmetic,
_COSTLY = 3  # nodes named where a model is slower than float
_REFERENCE_MACS = 10**10  # at some 10**9 multiply-accumulates a second


@dataclass(frozen=True)
class Validation:
    """What was found out. `notes` are lines for the reader: what could not be measured, and why."""

    accuracy: Accuracy | None
    fidelity: Fidelity | None
    execution: tuple[Execution, ...]
    parity: Parity
    gate: Gate
    notes: tuple[str, ...] = ()


def validate(
    quantized: Path,
    reference: Model,
    *,
    samples: Dataset,
    labelled: Dataset | None = None,
    metric: Metric | None = None,
    limits: Limits | None = None,
    size_bytes: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Validation:
    """Accuracy, fidelity, parity, integer coverage, latency and the gate of a quantized model.

    Args:
        quantized: its file.
        reference: the float model it was made from.
        samples: calibration data; measured on only where `labelled` is None.
        labelled: evaluation data; accuracy needs its labels.
        metric: of accuracy on `labelled`; None: top-1, where there are labels.
        limits: the gate; None: no gate.
        size_bytes: of the quantized model, external data included; None: those of the file.
        threads: of onnxruntime; latency is measured with one and with as many.
        progress: told of each batch.

    Raises:
        ModelError: a model does not load or run, or their outputs have different names.
        DataError: there are no samples, or the labels do not fit.
    """
    optimized = Session(quantized, threads=threads)
    floating = Session(reference.proto, threads=threads)
    check_interface(quantized, optimized, floating)
    data = samples if labelled is None else labelled
    batch = reference.file_batch or _BATCH
    seen = None if metric is None else metric.add
    comparison = compare(floating, optimized, data, batch, seen=seen, progress=progress)
    accuracy = metric.accuracy() if metric is not None else top1(labelled, comparison)
    nearness = fidelity(comparison)
    plain = parity(quantized, optimized, data, batch, threads=threads, progress=progress)
    execution = _execution(quantized, reference, data, threads or os.cpu_count() or 1)
    nodes, parting, untraced = _traced(quantized, reference, data, threads, progress)
    return Validation(
        accuracy=accuracy,
        fidelity=nearness,
        execution=(execution,),
        parity=replace(plain, nodes=nodes, divergence=parting),
        gate=(limits or Limits()).judge(
            accuracy, nearness, execution, size_bytes or quantized.stat().st_size
        ),
        notes=(*_notes(comparison, labelled, metric), *untraced, *_slow(execution)),
    )


def check_interface(path: Path, quantized: Session, floating: Session) -> None:
    """Refuses a model that does not take and give what the float model does.

    Raises:
        ModelError: names what differs.
    """
    for kind, found, wanted in (
        ("inputs", quantized.inputs, floating.inputs),
        ("outputs", quantized.outputs, floating.outputs),
    ):
        if set(found) != set(wanted):
            raise ModelError(
                f"{path}: its {kind} are {list(found)}, the reference's {list(wanted)}; "
                "give the float model that it was made from"
            )


def top1(data: Dataset | None, comparison: Comparison) -> Accuracy | None:
    """Top-1 accuracy, or None without labels or class scores."""
    found = comparison.predictions
    if data is None or data.labels is None or found is None:
        return None
    return top1_accuracy(data.labels, found.reference, found.quantized, found.classes)


def _execution(quantized: Path, reference: Model, data: Dataset, threads: int) -> Execution:
    """What the CPU provider makes of the model; latency against the float file as it came."""
    covered = coverage(reference, executed(quantized))
    one = reference.file_batch or 1
    many = (one,) if reference.file_batch else tuple(sorted({one, min(_BATCH, len(data))}))
    latencies = tuple(
        _latency(quantized, reference, data.part(slice(batch)), batch, used)
        for used in sorted({1, threads})
        for batch in many
    )
    return Execution(
        provider=PROVIDER,
        loads=True,  # one that does not load ended in a ModelError before
        integer_macs_fraction=covered.integer_macs_fraction,
        float_nodes=covered.float_nodes,
        latency_ms=latencies[0].latency_ms,
        float_latency_ms=latencies[0].float_latency_ms,
        speedup=latencies[0].speedup,
        latencies=latencies,
        nodes=_profiled(quantized, data.part(slice(one))),
    )


def _profiled(quantized: Path, feed: Feed) -> tuple[ExecutedKernel, ...]:
    found = profile(quantized, feed, threads=1)
    total = sum(node.ms for node in found)
    return tuple(ExecutedKernel(*node, share=node.ms / total if total else 0.0) for node in found)


def _latency(quantized: Path, reference: Model, feed: Feed, batch: int, threads: int) -> Latency:
    """One row of `latencies`; that of one sample and one thread, which scripts read, longer."""
    source = reference.path if reference.path and reference.path.exists() else reference.proto
    found = paired_latency(
        Session(quantized, threads=threads),
        Session(source, threads=threads),
        feed,
        seconds=4.0 if batch == threads == 1 else 2.0,
    )
    return Latency(threads, batch, found.ms_a, found.ms_b, found.ratio, found.interval)


def _slow(execution: Execution) -> tuple[str, ...]:
    """A line where the model is slower than float, for sure, and which nodes cost most."""
    slower = [
        latency
        for latency in execution.latencies
        if latency.interval_95 is not None and latency.interval_95[1] < 1
    ]
    if not slower:
        return ()
    worst = min(slower, key=lambda latency: latency.speedup)
    costliest = sorted(execution.nodes, key=lambda node: -node.ms)[:_COSTLY]
    named = ", ".join(_named(node) for node in costliest)
    threads = f"{worst.threads} thread{'s' if worst.threads > 1 else ''}"
    return (
        f"slower than the float model: {worst.speedup:.2f}x as fast at batch {worst.batch} with "
        f"{threads}; most of the time of a sample goes to {named}",
    )


def _named(node: ExecutedKernel) -> str:
    return f"{node.name} ({node.op}, {node.arithmetic}, {100 * node.share:.0f} %)"


def _traced(
    quantized: Path, reference: Model, data: Dataset, threads: int | None, progress: Progress
) -> tuple[NodeParity | None, Divergence | None, tuple[str, ...]]:
    """Parity node by node and where sessions part, on a few samples; or None and why not."""
    work = max(1, sum(layer.macs for layer in weight_layers(reference)))
    batch = reference.file_batch or 1
    count = min(_REFERENCE_SAMPLES, _REFERENCE_MACS // work) // batch * batch
    if count == 0:
        return None, None, ("not compared node by node: it would take too long",)
    some = data.head(count)
    try:
        return (
            node_parity(quantized, some, batch, threads=threads, progress=progress),
            divergence(quantized, some, batch, threads=threads, progress=progress),
            (),
        )
    except ModelError as error:
        return None, None, (f"not compared node by node: {error}",)


def _notes(
    comparison: Comparison, labelled: Dataset | None, metric: Metric | None
) -> tuple[str, ...]:
    notes = [
        f"output {name!r} has another shape in the quantized model for some samples: not compared"
        for name in comparison.uncompared
    ]
    has_labels = labelled is not None and labelled.labels is not None
    if metric is None and has_labels and comparison.predictions is None:
        notes.append("the first output does not hold class scores [N, C]: labels were not used")
    return tuple(notes)
