"""Sensitivities and fronts as data, and as the JSON of schema version 1."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxbrecq.bits import Bits
from onnxbrecq.report import charts
from onnxbrecq.report.result import SCHEMA_VERSION, Accuracy, Fidelity, FileFacts
from onnxbrecq.search.allocate import Found
from onnxbrecq.search.costs import Cost
from onnxbrecq.search.table import BlockTable, Sensitivity


@dataclass(frozen=True)
class Exploration:
    """What `sensitivity` found out.

    Attributes:
        tool_version: of the package.
        model: the float file.
        blocks: layer → its block, of all layers that can be quantized.
        table: of losses.
        costs: `size` and `bitops` of each choice; `latency` where a table or an array tells it.
        measured_ms: layer → ms of onnxruntime here, in integers at any bits and in float; empty
            unless asked for.
        notes: lines for the reader.
    """

    tool_version: str
    model: FileFacts
    blocks: Mapping[str, str]
    table: Sensitivity
    costs: Mapping[str, Cost]
    measured_ms: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `sensitivity`; what `--sensitivity` reads is under that key."""
        return {
            **_header(self.tool_version, self.model),
            "measure": self.table.measure,
            "samples": self.table.samples,
            "output_measure": self.table.output_measure,
            "output_base": self.table.output_base,
            "layers": list(self._layers()),
            "interactions": [x for block in self.table.blocks for x in _interactions(block)],
            "timing": {"total_seconds": self.table.seconds},
            "sensitivity": self.table.as_json(),
            "notes": list(self.notes),
        }

    def as_html(self) -> str:
        """A heat map, in one file."""
        return charts.heat_map(self.as_json())

    def _layers(self) -> Iterator[dict[str, Any]]:
        tables = {name: block for block in self.table.blocks for name in block.layers}
        for name, block in self.blocks.items():
            table, ms = tables.get(name), self.measured_ms.get(name)
            timed = {"integer": ms[0], "float": ms[1]} if ms else None
            layer = {"name": name, "block": block, "measured_ms": timed}
            if table is None:
                yield {**layer, **_pair(self.table.fixed[name]), "choices": []}
                continue
            costs = {key: cost.layers.get(name) for key, cost in self.costs.items()}
            choices = [
                {
                    **_pair(bits),
                    "loss": table.single(name, i),
                    "added": table.single(name, i) - table.base,
                    "output": table.outputs[name][i] if name in table.outputs else None,
                    **{key: values[i] if values else None for key, values in costs.items()},
                }
                for i, bits in enumerate(table.choices[name])
            ]
            yield {**layer, **_pair(None), "choices": choices}


@dataclass(frozen=True)
class Verified:
    """What a point of a front turned out to be once it was quantized."""

    size_bytes: int
    accuracy: Accuracy | None
    fidelity: Fidelity | None


@dataclass(frozen=True)
class Point:
    """An allocation on the front, and what became of it; None: it was not made."""

    found: Found
    verified: Verified | None


@dataclass(frozen=True)
class Front:
    """What `pareto` found out; as `Exploration`, and the points by rising `cost`."""

    tool_version: str
    model: FileFacts
    blocks: Mapping[str, str]
    table: Sensitivity
    cost: Cost
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `pareto`."""
        return {
            **_header(self.tool_version, self.model),
            "cost": {"key": self.cost.key, "unit": self.cost.unit, "note": self.cost.note},
            "measure": self.table.measure,
            "points": [self._point(point) for point in self.points],
            "sensitivity": self.table.as_json(),
            "notes": list(self.notes),
        }

    def as_html(self) -> str:
        """A plot, in one file."""
        return charts.front(self.as_json())

    def _point(self, point: Point) -> dict[str, Any]:
        found = point.found
        everything = {**self.table.fixed, **found.bits}
        return {
            "cost": found.costs[self.cost.key],
            "costs": dict(found.costs),
            "loss": found.loss,
            "sqnr_db": predicted_db(self.table, found.loss),
            "gap": found.gap,
            "seconds": found.seconds,
            "layers": [{"name": name, **_pair(everything[name])} for name in self.blocks],
            "verified": asdict(point.verified) if point.verified else None,
        }


def predicted_db(table: Sensitivity, loss: float) -> float | None:
    """The SQNR at the network's output that a loss stands for; None where it stands for none."""
    if table.measure != "fisher" or loss <= 0:
        return None
    return -10 * math.log10(loss)


def _header(version: str, model: FileFacts) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "onnxbrecq", "version": version},
        "model": asdict(model),
    }


def _pair(bits: Bits | None) -> dict[str, int | None]:
    return {
        "weight_bits": bits.weight if bits else None,
        "activation_bits": bits.data if bits else None,
    }


def _interactions(block: BlockTable) -> Iterator[dict[str, Any]]:
    """What each two layers of a block lose together beyond one by one, below their finest."""
    for one, two in itertools.combinations(block.layers, 2):
        for i, j in itertools.product(*(range(len(block.choices[x]) - 1) for x in (one, two))):
            bits = [block.choices[one][i], block.choices[two][j]]
            yield {
                "block": block.name,
                "layers": [one, two],
                "weight_bits": [b.weight for b in bits],
                "activation_bits": [b.data for b in bits],
                "term": block.interaction({one: i, two: j}),
            }
