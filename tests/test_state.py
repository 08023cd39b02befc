"""A killed run goes on where it was, and ends with the same bytes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxbrecq
from onnxbrecq import state
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import OutputError
from onnxbrecq.plan import QType, QuantPlan, TensorQuant
from onnxbrecq.recipe import Recipe, Reconstruction

_KEY = {"model": "a"}
_RECIPE = Recipe(weights=2, threads=1, reconstruction=Reconstruction(iterations=60))


def _plan(scale: float) -> QuantPlan:
    quant = TensorQuant(QType(8, "affine"), np.float32(scale).reshape(()), np.zeros((), np.int32))
    return QuantPlan({"t": quant}, {"b": np.ones(3, np.float32)})


def test_what_was_kept_is_recalled(tmp_path: Path) -> None:
    with state.opened(tmp_path / "w", _KEY, resume=True) as first:
        assert first.recall("0003") is None
        first.keep("0003", _plan(0.5), {"name": "block"})
    with state.opened(tmp_path / "w", _KEY, resume=True) as second:
        assert second.recall("0003") == (_plan(0.5), {"name": "block"})
        second.discard()
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("key", "resume"), [({"model": "b"}, True), (_KEY, False)], ids=["other-key", "afresh"]
)
def test_the_state_of_another_run_is_never_taken(
    tmp_path: Path, key: dict[str, object], resume: bool
) -> None:
    with state.opened(tmp_path / "w", _KEY, resume=True) as first:
        first.keep("0000", _plan(0.5), {})
    with state.opened(tmp_path / "w", key, resume=resume) as second:
        assert second.recall("0000") is None


def test_a_damaged_file_is_not_taken(tmp_path: Path) -> None:
    with state.opened(tmp_path / "w", _KEY, resume=True) as first:
        first.keep("0000", _plan(0.5), {})
        file = tmp_path / "w" / "block-0000.plan"
        file.write_bytes(file.read_bytes()[:20])
        assert first.recall("0000") is None


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    with state.opened(tmp_path / "w", _KEY, resume=True) as first:
        first.keep("0000", _plan(0.5), {"name": "block"})
        file = tmp_path / "w" / "block-0000.plan"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        assert first.recall("0000") is None


def test_a_block_of_another_run_is_not_taken(tmp_path: Path) -> None:
    for name, key in (("a", _KEY), ("b", {"model": "b"})):
        with state.opened(tmp_path / name, key, resume=True) as run:
            run.keep("0000", _plan(0.5), {"name": "block"})
    for kind in ("plan", "json"):
        (tmp_path / "b" / f"block-0000.{kind}").replace(tmp_path / "a" / f"block-0000.{kind}")
    with state.opened(tmp_path / "a", _KEY, resume=True) as run:
        assert run.recall("0000") is None


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(OutputError, match="holds other files; give another --work-dir"),
        state.opened(tmp_path, _KEY, resume=True),
    ):
        pass


def test_the_second_run_says_who_holds_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from onnxbrecq import state\n"
        "with state.opened(Path(sys.argv[1]), {}, resume=True): pass"
    )
    with state.opened(tmp_path / "w", _KEY, resume=True):
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "w")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert f"process {os.getpid()} is at work here" in ran.stderr


def test_digest_tells_values_types_and_names_apart() -> None:
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    others = [{"x": a + 1}, {"x": a.astype(np.int64)}, {"y": a}, {"x": a.reshape(3, 2)}]
    assert len({state.digest(arrays) for arrays in ({"x": a}, *others)}) == 5
    assert state.digest({"x": a}) == state.digest({"x": np.asfortranarray(a)})


def _quantize(source: Path, output: Path, samples: Dataset) -> None:
    onnxbrecq.quantize(source, samples, _RECIPE, output=output, force=True)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    proto: onnx.ModelProto, data: Dataset, tmp_path: Path
) -> None:
    source, output = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(proto, source)
    _quantize(source, tmp_path / "whole.onnx", data)

    process = multiprocessing.get_context("spawn").Process(
        target=_quantize, args=(source, output, data)
    )
    process.start()
    work = tmp_path / "q.onnx.work"
    while not any(work.glob("block-0000-*.json")):
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not output.exists()
    assert not any(work.glob("block-0003-*.json")), "killed too late to tell"

    _quantize(source, output, data)
    assert output.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert not (tmp_path / "q.onnx.work").exists()


def test_a_draft_is_gone_when_it_is_done(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with state.opened(work, _KEY, resume=True) as opened:
        with opened.draft("m.onnx") as draft:
            draft.write_bytes(b"model")
            draft.with_name("m.onnx.data").write_bytes(b"data")
        assert not draft.parent.exists()
        with pytest.raises(ZeroDivisionError), opened.draft("m.onnx") as draft:
            draft.write_bytes(b"model")
            raise ZeroDivisionError
        assert not draft.parent.exists()


@pytest.mark.parametrize("key", ["a", "b"])
def test_what_a_killed_run_left_of_a_draft_is_cleared(tmp_path: Path, key: str) -> None:
    work = tmp_path / "work"
    with state.opened(work, _KEY, resume=True):
        (work / "draft").mkdir()
        (work / "draft" / "other.onnx").write_bytes(b"model")
    with state.opened(work, {"model": key}, resume=True) as opened:
        assert (work / "draft").exists() is (key == "a")
        opened.discard()
    assert not work.exists()
