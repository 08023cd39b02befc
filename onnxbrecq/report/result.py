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

    `interval_95` bounds the drop: paired bootstrap over the samples.
    """

    metric: str
    float: builtins.float
    quantized: builtins.float
    drop: builtins.float
    interval_95: tuple[builtins.float, builtins.float]
    samples: int


@dataclass(frozen=True)
class Fidelity:
    """Nearness to the float model: top-1 agreement in percent (None if outputs are not class
    scores) and the outputs' signal to quantization noise ratio.
    """

    agreement: float | None
    sqnr_db: float
    samples: int


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
class Gate:
    """What was asked for, whether it was met (None: nothing asked), and if not, why."""

    asked: dict[str, float]
    met: bool | None
    reason: str | None


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

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `quantize` and `validate`, schema version 1."""
        return {
            **_written(self),
            "blocks": [asdict(block) for block in self.blocks],
            "accuracy": asdict(self.accuracy) if self.accuracy else None,
            "fidelity": asdict(self.fidelity) if self.fidelity else None,
            "execution": [asdict(e) for e in self.execution],
            "parity": asdict(self.parity) if self.parity else None,
            "gate": asdict(self.gate),
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
