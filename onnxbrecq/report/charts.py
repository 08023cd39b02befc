"""Pictures of a search, each one HTML file that needs nothing else: plotly's script is inside.

Names come from strangers' models: they are escaped, as plotly takes some markup in labels, and
plotly itself escapes what could end a script.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

Json = Mapping[str, Any]

_ROW, _MARGIN = 18, 220  # pixels


def heat_map(found: Json) -> str:
    """The loss that each layer adds at each of its bits, from the JSON of `sensitivity`."""
    import plotly.graph_objects as go  # noqa: PLC0415 -- it takes long, and few want a picture

    layers = [layer for layer in found["layers"] if layer["choices"]]
    bits = sorted({_bits(choice) for layer in layers for choice in layer["choices"]})
    rows = []
    for layer in layers:
        added = {_bits(choice): choice["added"] for choice in layer["choices"]}
        rows.append([_log(added.get(key)) for key in bits])
    figure = go.Figure(
        go.Heatmap(
            z=rows,
            x=[_worded(key) for key in bits],
            y=[html.escape(layer["name"]) for layer in layers],
            colorscale="Viridis",
            colorbar={"title": "log10 of the loss added"},
            hovertemplate="%{y}<br>%{x}<br>10^%{z:.2f}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    return _page(figure, f"Sensitivity of {found['model']['path']}", len(layers))


def front(found: Json) -> str:
    """Predicted and measured quality against cost, from the JSON of `pareto`."""
    import plotly.graph_objects as go  # noqa: PLC0415 -- likewise

    points, unit = found["points"], found["cost"]["unit"]
    decibels = found["measure"] == "fisher"
    figure = go.Figure()
    predicted = [p["sqnr_db"] if decibels else p["loss"] for p in points]
    figure.add_scatter(
        x=[p["cost"] for p in points], y=predicted, name="predicted", mode="lines+markers"
    )
    made = [p for p in points if p["verified"] and p["verified"]["fidelity"]]
    if made and decibels:
        figure.add_scatter(
            x=[p["cost"] for p in made],
            y=[p["verified"]["fidelity"]["sqnr_db"] for p in made],
            name="measured",
            mode="markers",
            marker={"size": 11, "symbol": "diamond"},
        )
    figure.update_xaxes(title=f"{found['cost']['key']} ({unit})")
    figure.update_yaxes(
        title="SQNR (dB)" if decibels else "loss", type="linear" if decibels else "log"
    )
    return _page(figure, f"Pareto front of {found['model']['path']}", 0)


def _page(figure: "go.Figure", title: str, rows: int) -> str:
    figure.update_layout(
        title=html.escape(title), template="plotly_white", height=max(480, _ROW * rows + _MARGIN)
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def _bits(choice: Json) -> tuple[int, int]:
    return choice["weight_bits"] or 32, choice["activation_bits"] or 32


def _worded(bits: Sequence[int]) -> str:
    return f"W{bits[0]}A{bits[1]}"


def _log(value: float | None) -> float | None:
    return math.log10(value) if value is not None and value > 0 else None
