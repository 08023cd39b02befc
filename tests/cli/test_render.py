"""Tables and JSON, from results made by hand."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from onnxbrecq_cli import render
from rich.console import Console

from onnxbrecq.report.result import (
    Accuracy,
    BlockFacts,
    Divergence,
    ExecutedKernel,
    Execution,
    Fidelity,
    FileFacts,
    Gate,
    Latency,
    LayerFacts,
    NodeParity,
    NodeSteps,
    Parity,
    Result,
)

_NODES = NodeParity(
    samples=4, nodes=12, max_steps=3, mismatched_fraction=5e-4, operators=(),
    beyond_one_step=(NodeSteps("conv[1]", "QLinearConv", 3, 0.01, 100),), float_operators={},
)  # fmt: skip


@pytest.fixture
def found() -> Result:
    return Result(
        tool_version="0.1.0",
        model=FileFacts("models/a.onnx", "ab", 4_000_000, 17),
        output=FileFacts("models/a.quant.onnx", "cd", 500_000, 21),
        weights_mean_bits=4.25,
        activations_mean_bits=8.0,
        layers=(LayerFacts("conv", "Conv", 4, 8, 1000, 100),),
        blocks=(
            BlockFacts("b0", ("conv",), 0.4, 0.1, 100, 1.0),
            BlockFacts("b1", ("fc",), 0.4, 0.4, 0, 1.0, "an island: rounded to nearest"),
        ),
        accuracy=Accuracy("top-1", 91.0, 90.5, 0.5, (-0.25, 1.25), 1000),
        fidelity=Fidelity(98.5, 21.25, 1000),
        execution=(
            Execution("CPUExecutionProvider", True, 0.995, ("n[0]", "n[/red]"), 2.0, 3.0, 1.5),
        ),
        parity=Parity(1, 0.01, 99.0, _NODES),
        gate=Gate({"max_drop": 1.0}, True, None),
        total_seconds=12.34,
        stages={},
        peak_bytes=2_000_000_000,
        environment={},
        notes=("the batch size is fixed",),
    )


def delivered(
    found: Result, capsys: pytest.CaptureFixture[str], where: str | None = None, quiet: bool = False
) -> tuple[str, str]:
    render.result(found, None if where is None else Path(where), quiet=quiet)
    captured = capsys.readouterr()
    return captured.out, captured.err


def rows(text: str) -> dict[str, list[str]]:
    """Label → values, in order."""
    table: dict[str, list[str]] = {}
    for line in text.splitlines():
        table.setdefault(line[:10].strip(), []).append(line[10:])
    return table


def test_every_figure_is_told(found: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(delivered(found, capsys)[0]) == {
        "model": ["models/a.onnx"],
        "size": ["4.00 MB -> 500.00 kB (12.5 %, 8.00x smaller)"],
        "mean bits": ["weights 4.25, layer inputs 8.00"],
        "accuracy": [
            "top-1 91.00 % -> 90.50 %, drop 0.50 points (95 %: -0.25 to 1.25; 1000 samples)"
        ],
        "fidelity": ["top-1 agreement 98.50 %, SQNR 21.2 dB (1000 samples)"],
        "parity": [
            "1.00 % of the outputs differ between optimised and unoptimised sessions, by 1 steps "
            "at most"
        ],
        "exactness": [
            "99.950 % of what 12 nodes compute equals integer arithmetic, the rest is off by 3 "
            "steps at most; more than one step: conv[1]"
        ],
        "kernels": [
            "99.5 % of the MACs in integer kernels of CPUExecutionProvider; float: n[0], n[/red]"
        ],
        "latency": ["3 ms -> 2 ms a sample, 1.50x as fast"],
        "gate": ["met (max_drop 1)"],
        "blocks": ["1 of 2 improved by reconstruction, their loss to 25 % (median)"],
        "time": ["12.3 s"],
        "memory": ["2.00 GB at most"],
        "output": ["models/a.quant.onnx"],
        "note": ["block b1: an island: rounded to nearest", "the batch size is fixed"],
    }


def test_latencies_costly_nodes_and_the_first_difference_are_told(
    found: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        ExecutedKernel(f"n{i}", "QLinearConv", "CPUExecutionProvider", "integer", i / 10, i / 10)
        for i in range(5)
    ]
    latencies = (
        Latency(1, 1, 2.0, 3.0, 1.5, (1.25, 1.75)),
        Latency(2, 8, 8.0, 8.0, 1.0, None),
    )
    steps = NodeSteps("n3", "QLinearConv", 2, 0.01, 100)
    full = replace(
        found,
        execution=(replace(found.execution[0], latencies=latencies, nodes=tuple(nodes)),),
        parity=Parity(1, 0.01, 99.0, divergence=Divergence(4, 7, steps, steps, {"0": 0.99})),
    )
    text = delivered(full, capsys)[0]
    assert "1.50x as fast (95 %: 1.25 to 1.75)\n" in text
    assert "batch 8, 2 threads: 8 ms -> 8 ms, 1.00x as fast\n" in text
    assert rows(text)["nodes"] == ["40.0 % n4: QLinearConv, integer, 0.4 ms"]
    assert "n2" in text
    assert "n1" not in text
    assert "sessions part from n3 on" in text


def test_what_was_not_measured_is_left_out(
    found: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = replace(
        found, accuracy=None, fidelity=None, parity=None, execution=(), blocks=(), notes=(),
        gate=Gate({}, None, None), weights_mean_bits=None, activations_mean_bits=None,
    )  # fmt: skip
    out, _ = delivered(bare, capsys)
    assert set(rows(out)) == {"model", "size", "time", "memory", "output"}


def test_what_a_terminal_would_obey_is_spelt_out(
    found: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = delivered(replace(found, notes=("a\x1b[2J\u202eb",)), capsys)
    assert out.splitlines()[-1].endswith(r"a\x1b[2J\u202eb")


@pytest.mark.parametrize("force", ["FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"])
def test_no_colours_away_from_a_terminal(
    found: Result,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    force: str,
) -> None:
    monkeypatch.setenv(force, "1")
    assert "\x1b" not in delivered(found, capsys)[0]


def test_nothing_is_folded_away_from_a_terminal(
    found: Result, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out, _ = delivered(replace(found, notes=("long " * 100,)), capsys)
    assert rows(out)["note"][-1].split() == ["long"] * 100


@pytest.mark.parametrize("width", [20, 30, 80])
def test_a_narrow_terminal_loses_nothing(found: Result, width: int) -> None:
    name = "x" * 100
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    text = render.as_text([render._pairs(iter([("note", name)]))], console)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("x") == 100


def test_json_on_stdout_moves_the_table(found: Result, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = delivered(found, capsys, "-")
    assert json.loads(out) == json.loads(json.dumps(found.as_json()))
    assert "accuracy" in rows(err)


def test_quiet_json_is_all_there_is(found: Result, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = delivered(found, capsys, "-", quiet=True)
    assert json.loads(out)["schema_version"] == 1
    assert err == ""


def test_json_in_a_file_leaves_the_table(
    found: Result, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, err = delivered(found, capsys, str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text())["size"]["ratio"] == 0.125
    assert "accuracy" in rows(out)
    assert err == ""


def test_what_json_cannot_say_is_null() -> None:
    text = render.as_json({"a": [math.inf, -math.inf, math.nan, 1.5], "b": {"c": (math.inf, 2)}})
    assert json.loads(text) == {"a": [None, None, None, 1.5], "b": {"c": [None, 2]}}


def test_names_of_any_bytes_are_json() -> None:
    name = b"\xff.onnx".decode("utf-8", "surrogateescape")
    assert json.loads(render.as_json({"path": name})) == {"path": name}


def test_an_inspection_lists_blocks_layers_and_what_stays_float(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {
        "model": {
            "path": "a.onnx", "size_bytes": 1234, "opset": 17, "notes": ["folded"],
            "inputs": {"x": [None, 3]}, "outputs": {"y": []},
        },
        "blocks": [
            {"name": "fc", "nodes": ["fc", "act"], "weights": ["w"], "macs": 12345,
             "parameters": 20},
            {"name": "nms[1]", "nodes": ["nms[1]"], "weights": [], "macs": 0, "parameters": 0},
        ],
        "layers": [
            {"name": "fc", "op": "Gemm", "macs": 12345, "parameters": 20, "quantized": True}
        ],
        "float_nodes": [{"name": "nms[1]", "op": "NonMaxSuppression", "reason": "not [bold]"}],
        "islands": ["nms[1]"],
    }  # fmt: skip
    render.inspection(found, None, quiet=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for wanted in (
        ["model", "a.onnx,", "opset", "17,", "1.23", "kB"],
        ["input", "x", "[any,", "3]"],
        ["output", "y", "[]"],
        ["structure", "2", "blocks,", "1", "weight", "layers"],
        ["note", "folded"],
        ["integer", "1", "of", "1", "weight", "layers,", "100.0", "%", "of", "the", "MACs"],
        ["fc", "block", "of", "2", "12,345", "20"],
        ["└─", "fc", "Gemm", "12,345", "20", "in", "integers"],
        ["nms[1]", "block", "of", "1,", "island", "0", "0"],
        ["└─", "nms[1]", "NonMaxSuppression", "float:", "not", "[bold]"],
    ):
        assert wanted in lines
