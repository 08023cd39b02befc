import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]  # the fixture of conftest.py


@pytest.fixture
def plan(model: Path, run: Run) -> Path:
    """The plan of a quantization of `model`, for ort-cpu."""
    file, recipe = model.with_name("net.plan"), model.with_name("recipe.toml")
    recipe.write_text("threads = 1\n[reconstruction]\niterations = 0\n")
    done = run("quantize", model, "-q", "--recipe", recipe, "--target", "ort-cpu", "--plan", file)
    assert done.status == 0, done.err
    return file


def test_emit_writes_what_quantize_wrote(model: Path, plan: Path, run: Run) -> None:
    written = model.with_name("net.quant.onnx")
    before = written.read_bytes()
    done = run("emit", model, plan, "--force")
    assert (done.status, done.err) == (0, "")
    assert written.read_bytes() == before
    labels = [line[:10].strip() for line in done.out.splitlines()]
    assert labels[:5] == ["model", "target", "size", "mean bits", "output"]


def test_json_has_the_keys_of_quantize(model: Path, plan: Path, run: Run) -> None:
    output = model.with_name("portable.onnx")
    done = run("emit", model, plan, "-q", "--target", "portable", "-o", output, "--json", "-")
    found = json.loads(done.out)
    assert found["schema_version"] == 1
    assert found["target"] == "portable"
    assert found["output"]["path"] == str(output)
    assert found["size"]["ratio"] > 0
    # Stored in bytes: the file tells what it holds.
    assert [layer["weight_bits"] for layer in found["layers"]] == [8, 8, 8]


def test_a_target_that_forbids_a_decision_is_one_line(model: Path, plan: Path, run: Run) -> None:
    done = run("emit", model, plan, "--target", "tensorrt", "-o", model.with_name("t.onnx"))
    assert done.status == 1
    assert done.error.startswith("onnxbrecq: tensor 'f': the affine grid")
    assert "zero point 0" in done.error


def test_an_unknown_target_is_wrong_usage(model: Path, plan: Path, run: Run) -> None:
    assert run("emit", model, plan, "--target", "tpu", "--force").status == 2


@pytest.mark.parametrize("content", [b"", b"no plan"], ids=["empty", "text"])
def test_what_is_no_plan_is_one_line(content: bytes, model: Path, run: Run) -> None:
    file = model.with_name("bad.plan")
    file.write_bytes(content)
    done = run("emit", model, file)
    assert done.status == 1
    assert "bad.plan: cannot be read as a plan" in done.error


def test_inspect_reads_back_where_a_file_comes_from(model: Path, plan: Path, run: Run) -> None:
    source = json.loads(run("inspect", model, "--json", "-").out)["model"]["sha256"]
    portable = model.with_name("portable.onnx")
    assert run("emit", model, plan, "--target", "portable", "-o", portable).status == 0
    told = {}
    for file, target in ((model.with_name("net.quant.onnx"), "ort-cpu"), (portable, "portable")):
        done = run("inspect", file, "-q", "--json", "-")
        assert done.status == 0, done.err
        told[target] = json.loads(done.out)
        assert told[target]["quantized"]["target"] == target
        assert told[target]["quantized"]["source_sha256"] == source
        assert len(told[target]["quantized"]["data_sha256"]) == 64
    # Bytes hold 4 bits in the portable file; what was decided is the same.
    assert told["portable"]["layers"] == told["ort-cpu"]["layers"]
    assert [x["weight_bits"] for x in told["portable"]["layers"]] == [8, 4, 8]
    shown = run("inspect", portable)
    assert "second" in shown.out
    assert "for target portable" in shown.out
