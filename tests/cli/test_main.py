"""Exit status and streams: what the shell sees."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onnxbrecq

Run = Callable[..., Any]  # the fixture of conftest.py


def raising(error: BaseException) -> Callable[..., Any]:
    def inspect(*_: object) -> None:
        raise error

    return inspect


def test_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxbrecq, "inspect", raising(KeyboardInterrupt()), raising=False)
    done = run("inspect", "m.onnx")
    assert done.status == 130
    assert done.error == "onnxbrecq: interrupted"


def test_an_error_of_ours_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxbrecq, "inspect", raising(RuntimeError("a\nb")), raising=False)
    done = run("inspect", "m.onnx")
    assert done.status == 1
    assert done.error == (
        "onnxbrecq: internal error: RuntimeError: a b; run with -v for the traceback"
    )


@pytest.mark.parametrize("flag", ["-v", "--verbose", "-qv"])
def test_verbose_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(onnxbrecq, "inspect", raising(RuntimeError("why")), raising=False)
    done = run("inspect", "m.onnx", flag)
    assert done.status == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == "onnxbrecq: internal error: RuntimeError: why"


def test_escape_sequences_do_not_reach_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = onnxbrecq.ModelError("node '\x1b[2J'")
    monkeypatch.setattr(onnxbrecq, "inspect", raising(error), raising=False)
    assert run("inspect", "m.onnx").error.startswith(r"onnxbrecq: node '\x1b[2J' (")


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.status, done.out) == (0, f"onnxbrecq {onnxbrecq.__version__}\n")


def test_inspect_json_has_the_keys_that_scripts_use(model: Path, run: Run) -> None:
    done = run("inspect", model, "--json", "-")
    found = json.loads(done.out)
    assert {"model", "blocks", "float_nodes", "islands"} <= set(found)
    keys = {"name", "nodes", "inputs", "outputs", "weights", "macs", "parameters"}
    assert [keys - set(block) for block in found["blocks"]] == [set()] * len(found["blocks"])
    assert found["blocks"]


def test_inspect_shows_every_layer(model: Path, run: Run) -> None:
    done = run("inspect", model)
    assert done.status == 0
    layers = {"first": "Conv", "second": "Conv", "head": "Gemm"}
    shown = [line.split()[1:3] for line in done.out.splitlines()]  # behind the branch of the tree
    assert [item for item in layers.items() if list(item) not in shown] == []


def test_doctor_json(run: Run) -> None:
    done = run("doctor", "--json", "-")
    assert done.status == 0
    assert {"packages", "processor", "onnxruntime", "problems"} <= set(json.loads(done.out))


def test_a_reader_that_leaves_early_is_no_error(model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "onnxbrecq_cli.main", "inspect", str(model)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_process_interrupted_at_work_exits_with_130(model: Path) -> None:
    """Through the operating system: the signal, not an exception put there by a test."""
    endless = model.with_name("endless.toml")
    endless.write_text("[reconstruction]\niterations = 1_000_000\n", encoding="utf-8")
    command = [sys.executable, "-m", "onnxbrecq_cli.main", "quantize", str(model)]
    command += ["--recipe", str(endless)]
    # What a shell runs in the background ignores the signal, and so would what it starts.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=listening,  # noqa: PLW1509 -- nothing here has started a thread that holds a lock
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first stage is done
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == b"onnxbrecq: interrupted"
    assert not model.with_name("net.quant.onnx").exists()
