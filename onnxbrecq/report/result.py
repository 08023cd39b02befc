"""The result of a run as data, and as the JSON of schema version 1.

The dataclasses mirror the JSON: `Result.as_json` adds only what is computed from them.
"""

import builtins
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileFacts:
    """A model file: path, hash, bytes with external data, default-domain opset."""

    path: str
    sha256: str
    size_bytes: int
    opset: int


@dataclass(frozen=True)
class LayerFacts:
    """One weight layer and the bits it got; None bits: float.

    `block_size` inputs share a scale of its weight; None: all that one output reads.
    """

    name: str
    op: str
    weight_bits: int | None
    activation_bits: int | None
    macs: int
    parameters: int
    block_size: int | None = None


@dataclass(frozen=True)
class BlockFacts:
    """One reconstructed block; losses relative to the energy of the block's output.

    They are None where the quantized block makes another number of outputs: of boxes, say.
    """

    name: str
    layers: tuple[str, ...]
    loss_before: float | None
    loss_after: float | None
    iterations: int
    seconds: float
    note: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """The metric on labelled data, in percent; drop = float - quantized, in points.

    `interval_95` bounds the drop: paired bootstrap over the samples. Of top-1, `lost` and `won`
    count the samples that only one of the two models has right, and `p_value` is McNemar's: how
    likely counts at least as uneven are where neither is better.
    """

    metric: str
    float: builtins.float
    quantized: builtins.float
    drop: builtins.float
    interval_95: tuple[builtins.float, builtins.float]
    samples: int
    lost: int | None = None
    won: int | None = None
    p_value: builtins.float | None = None


@dataclass(frozen=True)
class Fidelity:
    """Nearness to the float model: top-1 agreement in percent (None if outputs are not class
    scores) with its 95 % interval, and the outputs' signal to quantization noise ratio.
    """

    agreement: float | None
    sqnr_db: float
    samples: int
    agreement_interval_95: tuple[float, float] | None = None


@dataclass(frozen=True)
class ExecutedKernel:
    """A node of the executed graph in onnxruntime's profile.

    Attributes:
        name: as onnxruntime calls it.
        op: its kernel.
        provider: who ran it.
        arithmetic: what it computes with: integer, float, conversion (it quantizes or dequantizes)
            or other (shapes, indices).
        ms: median time of a run, at batch 1 with one thread.
        share: of the time of all nodes, from 0 to 1.
    """

    name: str
    op: str
    provider: str
    arithmetic: str
    ms: float
    share: float


@dataclass(frozen=True)
class Latency:
    """Median latency of a run against the float model's, run in turn with it.

    `interval_95` bounds the speedup, which is the median over the pairs of runs; None where there
    were too few.
    """

    threads: int
    batch: int
    latency_ms: float
    float_latency_ms: float
    speedup: float
    interval_95: tuple[float, float] | None


@dataclass(frozen=True)
class Execution:
    """What one execution provider made of the quantized model.

    `latency_ms` and those beside it are at batch 1 with one thread, the first of `latencies`.
    `parity` is against onnxruntime's CPU provider; None for that one itself.
    """

    provider: str
    loads: bool
    integer_macs_fraction: float
    float_nodes: tuple[str, ...]
    latency_ms: float | None
    float_latency_ms: float | None
    speedup: float | None
    latencies: tuple[Latency, ...] = ()
    nodes: tuple[ExecutedKernel, ...] = ()
    parity: "Parity | None" = None


@dataclass(frozen=True)
class NodeSteps:
    """How far one node, or (`name` None) all of one operator, is from exact integer arithmetic."""

    name: str | None
    op: str
    max_steps: int
    mismatched_fraction: float
    elements: int


@dataclass(frozen=True)
class NodeParity:
    """The executed nodes against exact integer arithmetic, each fed what it was really fed.

    Attributes:
        samples: how many went through.
        nodes: how many were compared.
        max_steps: the largest difference, in steps of the node's output.
        mismatched_fraction: share of the elements that differ, of nodes that compute.
        operators: the same for each operator, those that only move values among them.
        beyond_one_step: the nodes that are more than a step off, in order of execution.
        float_operators: operator → number of nodes that do not compute on integers.
    """

    samples: int
    nodes: int
    max_steps: int
    mismatched_fraction: float
    operators: tuple[NodeSteps, ...]
    beyond_one_step: tuple[NodeSteps, ...]
    float_operators: dict[str, int]


@dataclass(frozen=True)
class Divergence:
    """Where and how far two sessions part that were fed the same samples; differences add up.

    Attributes:
        samples: how many went through.
        nodes: how many nodes with integer outputs were compared.
        first: the first one that differs; None: none does.
        last: the last one compared.
        steps: of the last one, difference in steps → share of its elements.
    """

    samples: int
    nodes: int
    first: NodeSteps | None
    last: NodeSteps | None
    steps: dict[str, float]


@dataclass(frozen=True)
class Parity:
    """Optimised session against another, at the output, in steps of its quantizer.

    `max_steps`, `mismatched_fraction` and `steps` (difference in steps → share of the elements) are
    None where the output is not quantized. `nodes` holds the optimised session against integer
    arithmetic, node by node, and `divergence` the two sessions node after node; None where that
    was not done.
    """

    max_steps: int | None
    mismatched_fraction: float | None
    agreement: float | None
    nodes: NodeParity | None = None
    divergence: Divergence | None = None
    steps: dict[str, float] | None = None


@dataclass(frozen=True)
class Check:
    """One limit of the gate.

    Attributes:
        name: max_drop, min_integer, max_size or min_speedup.
        asked: points, a share, bytes, or times as fast as the float model.
        found: what was measured, in the same unit; None: nothing measures it.
        met: whether it holds.
        told: the figure in words.
    """

    name: str
    asked: float
    found: float | None
    met: bool
    told: str


@dataclass(frozen=True)
class MadeData:
    """How calibration samples were made from the model itself.

    Attributes:
        how: distilled; textures: images or noise that nothing could be distilled into; sampled:
            token ids.
        samples: how many.
        steps: of distillation.
        norms: BatchNormalizations of the file, whose statistics were matched.
        loss_before: of distillation, in front of the first step; None without steps.
        loss_after: likewise, at the last.
    """

    how: str
    samples: int
    steps: int
    norms: int
    loss_before: float | None
    loss_after: float | None


@dataclass(frozen=True)
class DataFacts:
    """The calibration samples: what the user called them, how many; how they were made, or None."""

    origin: str
    samples: int
    made: MadeData | None = None


@dataclass(frozen=True)
class Gate:
    """What was asked for, whether it was met (None: nothing asked), if not, why; limit by limit."""

    asked: dict[str, float]
    met: bool | None
    reason: str | None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class BudgetFacts:
    """What a model may cost at most, and what it does; both in `unit`. A limit of None: none."""

    key: str
    unit: str
    limit: float | None
    used: float


@dataclass(frozen=True)
class TrialFacts:
    """A model that was made to see whether it passes `max_drop`."""

    size_bytes: float
    loss: float
    passed: bool
    figure: str | None


@dataclass(frozen=True)
class SearchFacts:
    """How the bits of the layers were chosen.

    Attributes:
        method: exact or genetic.
        measure: of the losses: fisher or relative (`onnxbrecq.search.table`).
        samples: on which they were measured.
        loss: predicted of the allocation.
        sqnr_db: the same as a signal to noise ratio; None where losses are relative.
        gap: to the least loss that is possible, relative; None where nothing proves it.
        seconds: that the allocation took.
        budgets: asked for, and the size.
        trials: of `max_drop`, in their order.
    """

    method: str
    measure: str
    samples: int
    loss: float
    sqnr_db: float | None
    gap: float | None
    seconds: float
    budgets: tuple[BudgetFacts, ...]
    trials: tuple[TrialFacts, ...] = ()


@dataclass(frozen=True)
class Emission:
    """What was written from a saved plan. `as_json` is its public form."""

    tool_version: str
    model: FileFacts
    output: FileFacts
    target: str
    weights_mean_bits: float | None
    activations_mean_bits: float | None
    layers: tuple[LayerFacts, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `emit`: what it shares with `quantize` has the same keys."""
        return {
            **_written(self),
            "target": self.target,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Result:
    """Everything a run found out. `as_json` is its public form."""

    tool_version: str
    model: FileFacts
    output: FileFacts
    weights_mean_bits: float | None
    activations_mean_bits: float | None
    layers: tuple[LayerFacts, ...]
    blocks: tuple[BlockFacts, ...]
    accuracy: Accuracy | None
    fidelity: Fidelity | None
    execution: tuple[Execution, ...]
    parity: Parity | None
    gate: Gate
    total_seconds: float
    stages: dict[str, float]
    peak_bytes: int
    environment: dict[str, str]
    notes: tuple[str, ...] = field(default=())
    search: SearchFacts | None = None
    data: DataFacts | None = None

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `quantize` and `validate`, schema version 1."""
        return {
            **_written(self),
            "data": asdict(self.data) if self.data else None,
            "blocks": [asdict(block) for block in self.blocks],
            "accuracy": asdict(self.accuracy) if self.accuracy else None,
            "fidelity": asdict(self.fidelity) if self.fidelity else None,
            "execution": [asdict(e) for e in self.execution],
            "parity": asdict(self.parity) if self.parity else None,
            "gate": asdict(self.gate),
            "search": asdict(self.search) if self.search else None,
            "timing": {"total_seconds": self.total_seconds, "stages": self.stages},
            "memory": {"peak_bytes": self.peak_bytes},
            "environment": self.environment,
            "notes": list(self.notes),
        }


def _written(found: Emission | Result) -> dict[str, Any]:
    """What JSON says of every model that was written."""
    before, after = found.model.size_bytes, found.output.size_bytes
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "onnxbrecq", "version": found.tool_version},
        "model": asdict(found.model),
        "output": asdict(found.output),
        "size": {"float_bytes": before, "quantized_bytes": after, "ratio": after / before},
        "bits": {
            "weights_mean": found.weights_mean_bits,
            "activations_mean": found.activations_mean_bits,
        },
        "layers": [asdict(layer) for layer in found.layers],
    }
