"""sensitivity, pareto, and quantize --budget, from the shell's side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnxbrecq_cli.search_rows import interaction_rows, point_rows, sensitivity_table

Run = Callable[..., Any]  # the fixture of conftest.py

PARETO_KEYS = {"cost", "costs", "loss", "sqnr_db", "gap", "seconds", "layers", "verified"}
LAYER_KEYS = {"name", "block", "measured_ms", "weight_bits", "activation_bits", "choices"}
CHOICE_KEYS = {"weight_bits", "activation_bits", "loss", "added", "output", "size", "bitops"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('threads = 1\neffort = "fast"\nsearch_samples = 16\n')
    return path


def test_from_sensitivities_to_a_model_within_its_budget(
    model: Path, recipe: Path, run: Run
) -> None:
    table, heat, plot = (model.with_name(n) for n in ("s.json", "s.html", "p.html"))
    done = run("sensitivity", model, "-q", "--recipe", recipe, "--first-last", "free", "--json",
               table, "--html", heat, "--measure-latency")  # fmt: skip
    assert done.status == 0, done.err
    found = json.loads(table.read_text())
    assert {layer["name"] for layer in found["layers"]} == {"first", "second", "head"}
    assert set(found["layers"][0]) >= LAYER_KEYS
    assert set(found["layers"][0]["choices"][0]) >= CHOICE_KEYS
    assert [c["weight_bits"] for c in found["layers"][1]["choices"]] == [2, 4, 8]
    assert found["layers"][0]["measured_ms"]["integer"] > 0
    assert "W2A8" in done.out
    assert "Plotly.newPlot" in heat.read_text()

    shared = ("-q", "--recipe", recipe, "--first-last", "free", "--sensitivity", table, "--json",
              "-")  # fmt: skip
    done = run("pareto", model, *shared, "--points", "5", "--verify", "1", "--html", plot)
    assert done.status == 0, done.err
    points = json.loads(done.out)["points"]
    assert set(points[0]) >= PARETO_KEYS
    assert points[0]["verified"]["size_bytes"] <= points[0]["cost"]
    assert plot.exists()

    middle = points[len(points) // 2]["cost"]
    done = run("quantize", model, *shared, "--budget", f"size={middle:.0f}")
    assert done.status == 0, done.err
    made = json.loads(done.out)
    assert made["output"]["size_bytes"] <= middle
    assert {"method", "loss", "gap", "budgets", "trials"} <= set(made["search"])


def test_the_table_tells_what_the_search_did(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "--budget", "size=4kB", "--pin",
               "first=8", "--offer", "4,8")  # fmt: skip
    assert done.status == 0, done.err
    labels = [line[:10].strip() for line in done.out.splitlines()]
    assert {"search", "layers", "budget"} <= set(labels)


def test_a_gate_without_bits_asks_for_the_smallest_that_passes(
    model: Path, recipe: Path, run: Run
) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "--max-drop", "100", "--json", "-")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["search"]["trials"][0]["passed"]
    assert {x["name"]: x["weight_bits"] for x in found["layers"]}["second"] == 2
    done = run("quantize", model, "-q", "--force", "--recipe", recipe, "-w", "4", "--max-drop",
               "100", "--json", "-")  # fmt: skip
    assert json.loads(done.out)["search"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "size=1kB"], "budget size = 1000B: the least that can be had is"),
        (["--budget", "weight=1kB"], "budget = 'weight': choose one of size, bitops, latency"),
        (["--budget", "size=much"], "size = 'much'"),
        (["--budget", "bitops=12%"], "bitops = '12%': want something like 40G"),
        (["--budget", "latency=1ms"], "as fast at 2, 4 and 8 bits"),
        (["--budget", "size=9kB", "-w", "4"], "weights and a budget"),
        (["--budget", "size=9kB", "--budget", "size=8kB"], "give each key once"),
        (["--budget", "size=9kB", "--pin", "none*=8"], "no layer is called 'none*'"),
        (["--budget", "size=9kB", "--pin", "first"], "want GLOB=BITS"),
        (["--budget", "size=9kB", "--offer", "2,x"], "no list of bits"),
        (["--budget", "size=9kB", "--offer", "5"], "offered = 5"),
        (["--budget", "size=9kB", "--search", "luck"], "search = 'luck'"),
        (["--budget", "size=9kB", "--sensitivity", "none.json"], "none.json: cannot be read"),
        (["--budget", "latency=1", "--latency", "none.csv"], "none.csv: cannot be read"),
        (["--search", "exact"], "search: for what?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused(
    model: Path, recipe: Path, run: Run, options: list[str], message: str
) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, *options)
    assert message in done.error
    assert done.status == (1 if "--sensitivity" in options else 2)
    assert not model.with_name("net.quant.onnx").exists()


def test_an_html_file_is_claimed_first(model: Path, run: Run) -> None:
    there = model.with_name("there.html")
    there.write_text("old")
    assert "exists already" in run("sensitivity", model, "--html", there).error
    assert run("pareto", model, "--html", model, "--force").status == 2
    assert there.read_text() == "old"


def test_a_table_of_what_was_not_measured() -> None:
    """Layers without a choice have an empty row, and names of blocks stand beside them."""
    layer = {"name": "a", "block": "b", "weight_bits": 8, "activation_bits": None, "choices": [],
             "measured_ms": {"integer": 0.5, "float": 1.0}}  # fmt: skip
    choice = {"weight_bits": 4, "activation_bits": 8, "added": 0.5, "output": 0.25}
    other = {**layer, "name": "c", "choices": [choice], "measured_ms": None}
    found = {"layers": [layer, other], "output_measure": "kl"}
    columns, rows = sensitivity_table(found)
    assert columns == ("layer", "block", "W4A8", "KL W4A8", "integer ms", "float ms")
    assert rows == [
        ("a", "b", "W8Afloat fixed", "", "0.5", "1"), ("c", "b", "0.5", "0.25", "", ""),
    ]  # fmt: skip


def test_the_largest_interactions_come_first() -> None:
    terms = [
        {"layers": ["a", "b"], "weight_bits": [2, 4], "activation_bits": [8, 8], "term": term}
        for term in (0.1, -0.5, 0.3, 0.0, 0.2, 0.05)
    ]
    rows = interaction_rows({"interactions": terms})
    assert [row[2] for row in rows] == ["-0.5", "+0.3", "+0.2", "+0.1", "+0.05"]
    assert rows[0][:2] == ("a and b", "W2A8 and W4A8")


def test_points_that_were_not_made_have_no_figures() -> None:
    point = {"cost": 1234.0, "loss": 0.1, "sqnr_db": 10.0, "verified": None,
             "layers": [{"weight_bits": 4}, {"weight_bits": None}, {"weight_bits": 4}]}  # fmt: skip
    rows = point_rows({"cost": {"key": "size"}, "points": [point]})
    assert rows == [("1,234", "0.1", "10.0 dB", "1 x float, 2 x 4", "", "", "", "")]
