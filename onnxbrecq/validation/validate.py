"""Everything that is measured on a quantized model beside its float reference."""

from dataclasses import dataclass, replace
from pathlib import Path

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import Accuracy, Execution, Fidelity, Gate, NodeParity, Parity
from onnxbrecq.runtime.kernels import executed
from onnxbrecq.runtime.latency import paired_latency
from onnxbrecq.runtime.session import PROVIDER, Session
from onnxbrecq.validation.accuracy import top1_accuracy
from onnxbrecq.validation.coverage import coverage
from onnxbrecq.validation.fidelity import Comparison, compare, fidelity
from onnxbrecq.validation.gate import joined, judge, judge_execution
from onnxbrecq.validation.node_parity import node_parity
from onnxbrecq.validation.parity import parity

_BATCH = 8  # as fast as more, in less memory
_REFERENCE_SAMPLES = 8  # that go through integer arithmetic,
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
    max_drop: float | None = None,
    min_integer: float | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Validation:
    """Accuracy, fidelity, parity, integer coverage, latency and the gate of a quantized model.

    Args:
        quantized: its file.
        reference: the float model it was made from.
        samples: calibration data; measured on only where `labelled` is None.
        labelled: evaluation data; accuracy needs its labels.
        max_drop: the gate, in points; None: no gate.
        min_integer: the gate, as a share of the multiply-accumulates in integer kernels.
        threads: of onnxruntime; latency is always measured with one.
        progress: told of each batch.

    Raises:
        ModelError: a model does not load or run, or their outputs have different names.
        DataError: there are no samples, or the labels do not fit.
    """
    optimized = Session(quantized, threads=threads)
    floating = Session(reference.proto, threads=threads)
    _check_interface(quantized, optimized, floating)
    data = samples if labelled is None else labelled
    batch = reference.file_batch or _BATCH
    comparison = compare(floating, optimized, data, batch, progress=progress)
    accuracy = _accuracy(data, comparison) if labelled is not None else None
    nearness = fidelity(comparison)
    plain = parity(quantized, optimized, data, batch, threads=threads, progress=progress)
    execution = _execution(quantized, reference, data)
    nodes, untraced = _nodes(quantized, reference, data, threads, progress)
    return Validation(
        accuracy=accuracy,
        fidelity=nearness,
        execution=(execution,),
        parity=replace(plain, nodes=nodes),
        gate=joined(judge(max_drop, accuracy, nearness), judge_execution(min_integer, execution)),
        notes=(*_notes(comparison, labelled), *untraced),
    )


def _check_interface(path: Path, quantized: Session, floating: Session) -> None:
    for kind, found, wanted in (
        ("inputs", quantized.inputs, floating.inputs),
        ("outputs", quantized.outputs, floating.outputs),
    ):
        if set(found) != set(wanted):
            raise ModelError(
                f"{path}: its {kind} are {list(found)}, the reference's {list(wanted)}; "
                "give the float model that it was made from"
            )


def _accuracy(data: Dataset, comparison: Comparison) -> Accuracy | None:
    """Top-1 accuracy, or None without labels or class scores."""
    found = comparison.predictions
    if data.labels is None or found is None:
        return None
    return top1_accuracy(data.labels, found.reference, found.quantized, found.classes)


def _execution(quantized: Path, reference: Model, data: Dataset) -> Execution:
    """What the CPU provider makes of the model; latency against the float file as it came."""
    covered = coverage(reference, executed(quantized))
    source = reference.path if reference.path and reference.path.exists() else reference.proto
    latency = paired_latency(
        Session(quantized, threads=1),
        Session(source, threads=1),
        data.part(slice(reference.file_batch or 1)),
    )
    return Execution(
        provider=PROVIDER,
        loads=True,  # one that does not load ended in a ModelError before
        integer_macs_fraction=covered.integer_macs_fraction,
        float_nodes=covered.float_nodes,
        latency_ms=latency.ms_a,
        float_latency_ms=latency.ms_b,
        speedup=latency.ratio,
    )


def _nodes(
    quantized: Path, reference: Model, data: Dataset, threads: int | None, progress: Progress
) -> tuple[NodeParity | None, tuple[str, ...]]:
    """Parity node by node on a few samples, or None and why not."""
    work = max(1, sum(layer.macs for layer in weight_layers(reference)))
    batch = reference.file_batch or 1
    count = min(_REFERENCE_SAMPLES, _REFERENCE_MACS // work) // batch * batch
    if count == 0:
        return None, ("not compared node by node with integer arithmetic: it would take too long",)
    try:
        return node_parity(
            quantized, data.head(count), batch, threads=threads, progress=progress
        ), ()
    except ModelError as error:
        return None, (f"not compared node by node with integer arithmetic: {error}",)


def _notes(comparison: Comparison, labelled: Dataset | None) -> tuple[str, ...]:
    notes = [
        f"output {name!r} has another shape in the quantized model for some samples: not compared"
        for name in comparison.uncompared
    ]
    has_labels = labelled is not None and labelled.labels is not None
    if has_labels and comparison.predictions is None:
        notes.append("the first output does not hold class scores [N, C]: labels were not used")
    return tuple(notes)
