import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnxbrecq_cli.environment import spin_briefly

Run = Callable[..., Any]  # the fixture of conftest.py

# Names that scripts rely on.
KEYS = {
    "": {
        "schema_version", "tool", "model", "output", "size", "bits", "layers", "blocks",
        "accuracy", "fidelity", "execution", "parity", "gate", "timing", "memory", "environment",
    },
    "tool": {"version"},
    "model": {"path", "sha256", "size_bytes", "opset"},
    "output": {"path", "sha256", "size_bytes", "opset"},
    "size": {"float_bytes", "quantized_bytes", "ratio"},
    "bits": {"weights_mean", "activations_mean"},
    "layers": {"name", "op", "weight_bits", "activation_bits", "macs", "parameters"},
    "blocks": {"name", "layers", "loss_before", "loss_after", "iterations", "seconds"},
    "accuracy": {"metric", "float", "quantized", "drop", "interval_95", "samples"},
    "fidelity": {"agreement", "sqnr_db", "samples"},
    "execution": {
        "provider", "loads", "integer_macs_fraction", "float_nodes", "latency_ms",
        "float_latency_ms", "speedup",
    },
    "parity": {"max_steps", "mismatched_fraction", "agreement", "nodes"},
    "gate": {"asked", "met", "reason"},
    "timing": {"total_seconds", "stages"},
    "memory": {"peak_bytes"},
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text("weights = 8\nthreads = 1\n[reconstruction]\niterations = 20\n")
    return path


def missing_keys(found: dict[str, Any]) -> dict[str, set[str]]:
    lacking = {}
    for name, keys in KEYS.items():
        value = found[name] if name else found
        value = value[0] if isinstance(value, list) else value
        lacking[name] = keys - set(value)
    return {name: keys for name, keys in lacking.items() if keys}


def test_quantize_writes_model_and_json(model: Path, recipe: Path, run: Run) -> None:
    report = model.with_name("result.json")
    done = run("quantize", model, "--recipe", recipe, "-w", "4", "--json", report)
    assert done.status == 0, done.err
    found = json.loads(report.read_text())
    assert missing_keys(found) == {}
    assert found["output"]["path"] == str(model.with_name("net.quant.onnx"))
    onnxruntime.InferenceSession(found["output"]["path"], providers=["CPUExecutionProvider"])
    nodes = found["parity"]["nodes"]
    assert nodes["nodes"] > 4
    assert nodes["float_operators"] == {}
    assert {"op", "max_steps", "mismatched_fraction"} <= set(nodes["operators"][0])
    assert "reconstruct" in done.err


def test_the_command_line_wins_over_the_recipe(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "-w", "4", "--json", "-")
    bits = {layer["name"]: layer["weight_bits"] for layer in json.loads(done.out)["layers"]}
    assert bits == {"first": 8, "second": 4, "head": 8}


def test_json_on_stdout_is_all_there_is_on_stdout(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "--json", "-")
    assert done.status == 0
    assert done.err == ""
    assert json.loads(done.out)["schema_version"] == 1


def test_the_table_tells_what_a_person_asks(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe)
    labels = [line[:10].strip() for line in done.out.splitlines()]
    wanted = ["size", "accuracy", "fidelity", "kernels", "latency", "mean bits", "blocks", "time",
              "memory", "output"]  # fmt: skip
    assert [label for label in wanted if label not in labels] == []
    assert "\x1b" not in done.out


def test_weight_only(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "-a", "float", "--json", "-")
    assert done.status == 0, done.err
    assert {layer["activation_bits"] for layer in json.loads(done.out)["layers"]} == {None}


def test_force_replaces_the_output(model: Path, recipe: Path, run: Run) -> None:
    there = model.with_name("there.onnx")
    there.write_text("old")
    done = run("quantize", model, "-q", "--recipe", recipe, "-o", there, "--force")
    assert done.status == 0, done.err
    assert there.read_bytes() != b"old"


def test_a_gate_that_is_not_met_exits_with_3(model: Path, recipe: Path, run: Run) -> None:
    """Judged by agreement, as there are no labels; two bits everywhere cannot keep it."""
    model.with_name("net.eval.npz").unlink()
    done = run("quantize", model, "-q", "--recipe", recipe, "-w", "2", "-a", "2",
               "--first-last", "2", "--max-drop", "0", "--json", "-")  # fmt: skip
    gate = json.loads(done.out)["gate"]
    assert done.status == 3
    assert gate["met"] is False
    assert gate["reason"] in done.error
    assert "agreement" in done.error


def test_a_gate_that_is_met_exits_with_0(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "--max-drop", "100")
    assert done.status == 0
    assert "gate      met" in done.out


def test_validate_measures_what_quantize_wrote(model: Path, recipe: Path, run: Run) -> None:
    quantized = model.with_name("net.quant.onnx")
    first = run("quantize", model, "-q", "--recipe", recipe, "--json", "-")
    again = run("validate", quantized, "--reference", model, "-q", "--json", "-")
    assert again.status == 0, again.err
    one, two = json.loads(first.out), json.loads(again.out)
    assert two["accuracy"] == one["accuracy"]
    assert two["fidelity"] == one["fidelity"]
    assert two["output"]["sha256"] == one["output"]["sha256"]


def test_what_it_will_take_is_said_first(model: Path, recipe: Path, run: Run) -> None:
    done = run("quantize", model, "--recipe", recipe, "--max-memory", "1KB")
    said = [line for line in done.err.splitlines() if line.startswith("forecast")]
    assert done.status == 0
    assert len(said) == 1
    assert "on disk" in said[0]
    assert done.err.index("forecast") < done.err.index("reconstruct")
    assert not list(model.parent.glob("*.work"))


def test_a_size_that_is_none(model: Path, run: Run) -> None:
    done = run("quantize", model, "--max-memory", "4 gigs")
    assert done.status == 2
    assert "'4 gigs': want a size such as 4GiB" in done.error


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_spin_briefly_unless_the_user_says(
    given: dict[str, str], wanted: str | None
) -> None:
    spin_briefly(given)
    assert given.get("GOMP_SPINCOUNT") == wanted


def test_layers_in_float_fail_the_run_that_wants_integers(
    model: Path, recipe: Path, run: Run
) -> None:
    done = run("quantize", model, "-q", "--recipe", recipe, "-a", "float", "--min-integer", "0.9")
    assert done.status == 3
    assert "in float: first, second, head" in done.error
    quantized = model.with_name("net.quant.onnx")
    done = run("validate", quantized, "--reference", model, "-q", "--min-integer", "0")
    assert done.status == 0, done.err
    done = run("validate", quantized, "--reference", model, "-q", "--min-integer", "2")
    assert done.status == 2
