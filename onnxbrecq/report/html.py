"""The result as one page for people: nothing is loaded from anywhere, every name is text.

Jinja2 escapes what stands in the page; what the charts show travels as JSON, whose `<`, `>` and `&`
are escaped as well, and is escaped once more where plotly would read markup. A
Content-Security-Policy keeps the page from the network.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from onnxbrecq.report.evidence import Evidence
from onnxbrecq.report.result import ExecutedKernel, LayerFacts, Result
from onnxbrecq.report.words import in_bytes, verdict

_APPENDED = ("_token_", "/MatMulAddFusion")
_PAGE = Path(__file__).with_name("page")


def as_html(found: Result, evidence: Evidence) -> bytes:
    """The page, in UTF-8; half of a character that a name may hold is spelt out."""
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        bytes=in_bytes,
        percent=_percent,
        decibels=_decibels,
        count=_count,
        ms=_ms,
        breakable=_breakable,
    )
    own = {name: Markup((_PAGE / name).read_text("utf-8")) for name in ("page.css", "page.js")}
    page = environment.get_template("page.html").render(
        found=found,
        evidence=evidence,
        name=PurePath(found.output.path).name,
        verdict=verdict(found.gate),
        state={True: "good", False: "bad", None: "neutral"}[found.gate.met],
        layers=_layers(found, evidence),
        data=_finite(_charts(found, evidence)),
        style=own["page.css"],
        script=own["page.js"],
        plotly=Markup(get_plotlyjs()),
    )
    return page.encode("utf-8", "backslashreplace")


def _charts(found: Result, evidence: Evidence) -> dict[str, Any]:
    """What the charts show, as plain values."""
    execution = found.execution[0] if found.execution else None
    return {
        "layers": [asdict(layer) for layer in found.layers],
        "growth": [asdict(block) for block in evidence.growth],
        "worst": [asdict(layer) for layer in evidence.worst],
        "kernels": [asdict(node) for node in execution.nodes] if execution else [],
        "latencies": [asdict(latency) for latency in execution.latencies] if execution else [],
        "front": asdict(evidence.front) if evidence.front else None,
        "learned": bool(found.blocks),
    }


def _layers(found: Result, evidence: Evidence) -> list[dict[str, Any]]:
    """A row for each weight layer: its bits, its costs, its noise, its kernel and time."""
    noise = {layer.name: layer for layer in evidence.noise}
    floating = {name for execution in found.execution for name in execution.float_nodes}
    kernels = {name: node for node in _kernels(found) for name in _written(node, found.layers)}
    return [
        {
            "facts": layer,
            "noise": noise.get(layer.name),
            "arithmetic": "float" if layer.name in floating else "integer",
            "kernel": kernels.get(layer.name),
        }
        for layer in found.layers
    ]


def _kernels(found: Result) -> tuple[ExecutedKernel, ...]:
    return found.execution[0].nodes if found.execution else ()


def _written(node: ExecutedKernel, layers: tuple[LayerFacts, ...]) -> tuple[str, ...]:
    """The layer that an executed node is: onnxruntime appends to its name."""
    behind = {
        x.name: node.name.removeprefix(x.name) for x in layers if node.name.startswith(x.name)
    }
    fits = [n for n, rest in behind.items() if not rest or rest.startswith(_APPENDED)]
    return tuple(sorted(fits, key=len)[-1:])


def _breakable(name: str) -> Markup:
    """The name, which may be folded behind each slash."""
    return Markup("/<wbr>").join(name.split("/"))


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _decibels(noise: float | None) -> str:
    """A relative squared error as a ratio of signal to noise."""
    if noise is None:
        return "–"
    return "exact" if noise <= 0 else f"{-10 * math.log10(noise):.1f} dB"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _ms(time: float | None) -> str:
    return "–" if time is None else f"{time:.3g} ms"


def _finite(value: Any) -> Any:
    """The value with None in place of what JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
