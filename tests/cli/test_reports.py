"""--report, --junit, --summary, --metric and the limits, through the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

Run = Callable[..., Any]  # the fixture of conftest.py


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('threads = 1\neffort = "fast"\nmax_size = "1kB"\n')
    return path


def test_every_report_is_written_though_the_gate_is_not_met(
    model: Path, recipe: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    Path("scores.py").write_text(
        "def positive(outputs, samples):\n"
        "    assert samples['labels'].shape == (32,)\n"
        "    return 100.0 * (outputs['logits'].max(axis=1) > 0)\n"
    )
    Path("summary.md").write_text("what another step said\n")
    done = run(
        "quantize", model, "-q", "--recipe", recipe, "--metric", "scores:positive",
        "--min-speedup", "1e-3", "--report", "r.html", "--junit", "j.xml", "--summary",
        "summary.md",
    )  # fmt: skip
    assert done.status == 3
    assert "bytes; at most 1,000 was asked for" in done.error
    assert "scores:positive" in done.out
    suite = Xml.parse("j.xml").getroot()[0]
    failed = [c.attrib["name"] for c in suite.iter("testcase") if c.find("failure") is not None]
    assert failed == ["max_size 1000"]
    assert len(list(suite.iter("testcase"))) == 3
    summary = Path("summary.md").read_text("utf-8").splitlines()
    assert summary[0] == "what another step said"
    assert summary[1].startswith("### ❌")
    page = Path("r.html").read_text("utf-8")
    assert "gate not met" in page
    assert "rounded to nearest, and as reconstructed" in page

    again = run("validate", "net.quant.onnx", "--reference", model, "-q", "--report", "v.html")
    assert again.status == 0, again.err
    assert "rounded to nearest, and as" not in Path("v.html").read_text("utf-8")


@pytest.mark.parametrize("option", ["--report", "--junit"])
def test_a_report_that_is_there_already(model: Path, run: Run, option: str) -> None:
    there = model.with_name("there")
    there.write_text("old")
    done = run("quantize", model, option, there)
    assert done.status == 1
    assert "exists already; pass --force" in done.error
    assert there.read_text() == "old"


def test_a_summary_over_the_model(model: Path, run: Run) -> None:
    done = run("quantize", model, "--summary", model)
    assert done.status == 2
    assert "is the file of a model" in done.error


def test_a_metric_that_is_none_is_told_before_any_work(model: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--metric", "nothing:here")
    assert done.status == 1
    assert "module 'nothing' cannot be imported" in done.error
    assert not model.with_name("net.quant.onnx").exists()
