"""Pictures hold what they are made of, and names of strangers do no harm."""

import json
import re

import pytest

from onnxbrecq.report import charts

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


def _choice(bits: int, added: float) -> dict[str, object]:
    return {"weight_bits": bits, "activation_bits": 8, "added": added}


def _sensitivity(name: str) -> dict[str, object]:
    choices = [_choice(2, 1e-2), _choice(8, 0.0)]
    layers = [
        {"name": name, "choices": choices},
        {"name": "other", "choices": [_choice(4, 1e-4), _choice(8, 0.0)]},
        {"name": "fixed", "choices": []},
    ]
    return {"model": {"path": f"{name}.onnx"}, "layers": layers}


def _front(name: str) -> dict[str, object]:
    verified = {"fidelity": {"sqnr_db": 19.5}}
    points = [
        {"cost": 100.0, "loss": 0.01, "sqnr_db": 20.0, "verified": verified},
        {"cost": 200.0, "loss": 0.001, "sqnr_db": 30.0, "verified": None},
    ]
    cost = {"key": "size", "unit": "bytes"}
    return {"model": {"path": name}, "points": points, "cost": cost, "measure": "fisher"}


def _figure(page: str) -> str:
    """What the page tells plotly to draw."""
    found = re.search(r"Plotly\.newPlot\((.*)\)\s*(;|\}|<)", page, re.DOTALL)
    assert found
    return found[1]


def test_a_heat_map_has_a_row_for_each_layer_with_a_choice() -> None:
    drawn = _figure(charts.heat_map(_sensitivity("first")))
    rows = json.loads(drawn[drawn.index('"z":') + 4 : drawn.index("]]", drawn.index('"z":')) + 2])
    assert rows == [[-2.0, None, None], [None, -4.0, None]]
    assert '"fixed"' not in drawn


def test_a_front_has_what_was_predicted_and_what_was_measured() -> None:
    drawn = _figure(charts.front(_front("m.onnx")))
    assert '"y":[20.0,30.0]' in drawn
    assert '"y":[19.5]' in drawn


@pytest.mark.parametrize("page", [charts.heat_map(_sensitivity(EVIL)), charts.front(_front(EVIL))])
def test_names_do_not_become_markup(page: str) -> None:
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'src="http' not in page  # nothing is fetched
