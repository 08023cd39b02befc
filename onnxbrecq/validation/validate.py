"""Everything that is measured on a quantized model beside its float reference."""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxbrecq.data.dataset import Dataset
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
    NodeParity,
    Parity,
)
from onnxbrecq.runtime import openvino
from onnxbrecq.runtime.openvino import OpenVino
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.accuracy import top1_accuracy
from onnxbrecq.validation.divergence import divergence
from onnxbrecq.validation.execution import BATCH, float_source, in_onnxruntime, in_openvino
from onnxbrecq.validation.fidelity import Comparison, compare, fidelity
from onnxbrecq.validation.gate import Limits, judge
from onnxbrecq.validation.metrics import Metric
from onnxbrecq.validation.node_parity import node_parity
from onnxbrecq.validation.parity import parity

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
    target: str | None = None,
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
        target: the runtime it is for; with "openvino" it is measured there as well.
        threads: of the runtimes; latency is measured with one and with as many.
        progress: told of each batch.

    Raises:
        ModelError: a model does not load or run, or their outputs have different names.
        DataError: there are no samples, or the labels do not fit.
    """
    optimized = Session(quantized, threads=threads)
    floating = Session(reference.proto, threads=threads)
    check_interface(quantized, optimized, floating)
    data = samples if labelled is None else labelled
    batch = reference.file_batch or BATCH
    seen = None if metric is None else metric.add
    comparison = compare(floating, optimized, data, batch, seen=seen, progress=progress)
    accuracy = metric.accuracy() if metric is not None else top1(labelled, comparison)
    nearness = fidelity(comparison)
    unoptimized = Session(quantized, optimize=False, threads=threads)
    plain = parity(quantized, unoptimized, optimized, data, batch, progress=progress)
    source, as_it_came = float_source(reference)
    execution = in_onnxruntime(quantized, reference, source, data, threads)
    some = _few(reference, data)
    nodes, parting, untraced = _traced(quantized, reference, some, threads, progress)
    others, missing = (
        _beside(quantized, reference, data, some, threads) if target == "openvino" else ((), ())
    )
    return Validation(
        accuracy=accuracy,
        fidelity=nearness,
        execution=(execution, *others),
        parity=replace(plain, nodes=nodes, divergence=parting),
        gate=(limits or Limits()).judge(
            accuracy, nearness, (execution, *others), size_bytes or quantized.stat().st_size
        ),
        notes=(
            *_notes(comparison, labelled, metric),
            *as_it_came,
            *untraced,
            *missing,
            *_slow(execution),
        ),
    )


def measure(
    quantized: onnx.ModelProto,
    reference: Model,
    *,
    samples: Dataset,
    labelled: Dataset | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> tuple[Accuracy | None, Fidelity | None, Gate]:
    """Accuracy, fidelity and their gate alone, of a model in memory; otherwise as `validate`."""
    data = samples if labelled is None else labelled
    floating, made = (Session(model, threads=threads) for model in (reference.proto, quantized))
    seen, batch = None if metric is None else metric.add, reference.file_batch or BATCH
    comparison = compare(floating, made, data, batch, seen=seen, progress=progress)
    accuracy = metric.accuracy() if metric is not None else top1(labelled, comparison)
    nearness = fidelity(comparison)
    return accuracy, nearness, judge(max_drop, accuracy, nearness)


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


def _few(reference: Model, data: Dataset) -> Dataset | None:
    """Samples that go through integer arithmetic in some seconds; None: not even one would."""
    work = max(1, sum(layer.macs for layer in weight_layers(reference)))
    batch = reference.file_batch or 1
    count = min(_REFERENCE_SAMPLES, _REFERENCE_MACS // work) // batch * batch
    return data.head(count) if count else None


def _traced(
    quantized: Path, reference: Model, some: Dataset | None, threads: int | None, progress: Progress
) -> tuple[NodeParity | None, Divergence | None, tuple[str, ...]]:
    """Parity node by node and where sessions part; or None and why not."""
    if some is None:
        return None, None, ("not compared node by node: it would take too long",)
    batch = reference.file_batch or 1
    try:
        return (
            node_parity(quantized, some, batch, threads=threads, progress=progress),
            divergence(quantized, some, batch, threads=threads, progress=progress),
            (),
        )
    except ModelError as error:
        return None, None, (f"not compared node by node: {error}",)


def _beside(
    quantized: Path, reference: Model, data: Dataset, some: Dataset | None, threads: int | None
) -> tuple[tuple[Execution, ...], tuple[str, ...]]:
    """OpenVINO, and how far it is from onnxruntime; nothing and why, where it is not installed."""
    if not openvino.installed():
        return (), (
            "OpenVINO is not installed here: what it makes of the model is not known; "
            "pip install 'onnxbrecq[openvino]', then onnxbrecq validate",
        )

    def opened(model: onnx.ModelProto | Path) -> OpenVino:
        return OpenVino(model, threads=threads)

    found = in_openvino(quantized, reference, data, threads)
    optimized, batch = Session(quantized, threads=threads), reference.file_batch or BATCH
    apart = parity(quantized, optimized, opened(quantized), data, batch)
    if some is not None:
        one = reference.file_batch or 1
        parting = divergence(quantized, some, one, other=opened, threads=threads)
        apart = replace(apart, divergence=parting)
    return (replace(found, parity=apart),), ()


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
