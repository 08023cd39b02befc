"""Sensitivities and fronts as rows of tables, from their JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
Pairs = Iterator[tuple[str, str]]

_MS = ("integer", "float")
_TERMS = 5  # interactions shown


def exploration_rows(found: Json) -> Pairs:
    """What the table was measured on."""
    open_ = [layer for layer in found["layers"] if layer["choices"]]
    yield "model", found["model"]["path"]
    yield "loss", _meaning(found["measure"])
    yield "samples", str(found["samples"])
    yield "layers", f"{len(open_)} with a choice, {len(found['layers']) - len(open_)} without"
    if found["output_measure"]:
        yield (
            "output",
            f"{found['output_measure'].upper()} at the network's output, all at their finest: "
            f"{found['output_base']:.3g}",
        )
    yield "time", f"{found['timing']['total_seconds']:.1f} s"
    yield from (("note", note) for note in found["notes"])


def sensitivity_table(found: Json) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows: the loss that each layer adds at each of its bits."""
    kinds = dict.fromkeys(_bits(c) for layer in found["layers"] for c in layer["choices"])
    outputs = found["output_measure"]
    columns = ["layer", "block", *kinds]
    columns += [f"{outputs.upper()} {kind}" for kind in kinds] if outputs else []
    timed = any(layer["measured_ms"] for layer in found["layers"])
    columns += ["integer ms", "float ms"] if timed else []
    rows = []
    for layer in found["layers"]:
        choices = {_bits(choice): choice for choice in layer["choices"]}
        fixed = "" if choices else f"{_bits(layer)} fixed"
        cells = [_figure(choices.get(kind, {}).get("added")) for kind in kinds]
        cells += [_figure(choices.get(k, {}).get("output")) for k in kinds] if outputs else []
        cells[0:1] = [fixed or cells[0]] if cells else []
        cells += [_figure((layer["measured_ms"] or {}).get(k)) for k in _MS] if timed else []
        rows.append((layer["name"], layer["block"], *cells))
    return tuple(columns), rows


def interaction_rows(found: Json) -> list[tuple[str, ...]]:
    """The largest of what two layers lose together beyond what they lose one by one."""
    largest = sorted(found["interactions"], key=lambda x: -abs(x["term"]))[:_TERMS]
    rows: list[tuple[str, ...]] = []
    for term in largest:
        pairs = zip(term["weight_bits"], term["activation_bits"], strict=True)
        kinds = [_bits({"weight_bits": w, "activation_bits": a}) for w, a in pairs]
        rows.append((" and ".join(term["layers"]), " and ".join(kinds), f"{term['term']:+.3g}"))
    return rows


def front_rows(found: Json) -> Pairs:
    """What the front is of."""
    points, cost = found["points"], found["cost"]
    yield "model", found["model"]["path"]
    yield "loss", _meaning(found["measure"])
    yield "cost", f"{cost['key']} in {cost['unit']}" + (f", {cost['note']}" if cost["note"] else "")
    gaps = [point["gap"] for point in points if point["gap"] is not None]
    yield "points", f"{len(points)}, each at most {100 * max(gaps, default=0):.2g} % from the best"
    yield from (("note", note) for note in found["notes"])


FRONT_COLUMNS = (
    "cost", "loss", "predicted", "weights", "measured size", "measured SQNR", "agreement", "drop",
)  # fmt: skip


def point_rows(found: Json) -> list[tuple[str, ...]]:
    """The points of the front; the measured columns of those that were verified."""
    rows: list[tuple[str, ...]] = []
    form = ",.6g" if found["cost"]["key"] == "latency" else ",.0f"
    for point in found["points"]:
        made = point["verified"] or {}
        nearness, accuracy = made.get("fidelity") or {}, made.get("accuracy") or {}
        rows.append((
            f"{point['cost']:{form}}",
            _figure(point["loss"]),
            _unit(point["sqnr_db"], "dB"),
            _counted(point["layers"]),
            f"{made['size_bytes']:,}" if made else "",
            _unit(nearness.get("sqnr_db"), "dB"),
            _unit(nearness.get("agreement"), "%"),
            _unit(accuracy.get("drop"), "points"),
        ))  # fmt: skip
    return rows


def _counted(layers: Sequence[Json]) -> str:
    """How many layers have how many bits: "8: 3, 4: 10"."""
    bits = [layer["weight_bits"] or "float" for layer in layers]
    return ", ".join(f"{bits.count(b)} x {b}" for b in sorted(set(bits), key=str, reverse=True))


def _meaning(measure: str) -> str:
    if measure == "fisher":
        return "noise at the network's output relative to its energy, by the Fisher information"
    return "error of each block's output relative to its energy"


def _bits(choice: Json) -> str:
    weight, data = (choice[key] or "float" for key in ("weight_bits", "activation_bits"))
    return f"W{weight}A{data}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.1f} {unit}"
