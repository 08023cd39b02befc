"""A run that is killed, whenever, goes on where it was and ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from children import Children, Ended
from corpus import residual_data, residual_network
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from trials import listing

from onnxbrecq import state

_CRASHES, _MANY = 5, 50
_RECIPE = "weights = 2\n[reconstruction]\niterations = 20\n"
_COMMAND = (
    "quantize", "m.onnx", "-q", "--recipe", "r.toml", "--threads", "1", "--plan", "m.plan",
)  # fmt: skip
_MADE = ("m.quant.onnx", "m.plan")
_REPAIR = (
    "repair", "other.onnx", "--reference", "m.onnx", "-q", "--recipe", "r.toml", "--threads", "1",
)  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """What a run makes that nothing disturbs: of these files, in so many seconds."""

    files: dict[str, bytes]
    made: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, children: Children) -> Whole:
    """A run of the small residual network of the other tests."""
    folder = tmp_path_factory.mktemp("whole")
    onnx.save(residual_network(), folder / "m.onnx")
    np.savez(folder / "m.calib.npz", x=np.asarray(residual_data().inputs["x"]))
    (folder / "r.toml").write_text(_RECIPE, encoding="utf-8")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    ended = _run(children, folder)
    assert ended.status == 0, ended
    return Whole(files, _taken(folder), ended.seconds)


@pytest.fixture
def place(tmp_path: Path, whole: Whole) -> Path:
    """A folder with the model, its data and a recipe."""
    folder = tmp_path / "place"
    folder.mkdir()
    for name, content in whole.files.items():
        (folder / name).write_bytes(content)
    return folder


def _run(children: Children, place: Path, **how: object) -> Ended:
    return children.run(*_COMMAND, folder=place, **how)  # type: ignore[arg-type]


def _taken(place: Path) -> dict[str, bytes]:
    """What a finished run made, which is taken away."""
    found = {name: (place / name).read_bytes() for name in _MADE}
    for name in _MADE:
        (place / name).unlink()
    return found


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    place: Path, children: Children, whole: Whole, long: bool
) -> None:
    moments, killed = random.Random(0), 0
    while killed < (_MANY if long else _CRASHES):
        ended = _run(children, place, seconds=moments.uniform(0.01, whole.seconds))
        killed += ended.timed_out
        there = {name for name in _MADE if (place / name).exists()}
        assert all((place / name).read_bytes() == whole.made[name] for name in there)
        left = listing(place) - {*whole.files, *_MADE, "m.quant.onnx.work"}
        assert all(name.endswith(".tmp") or name.startswith("m.quant.onnx.work") for name in left)
        for name in there:  # then nothing was left to do but to clear up
            (place / name).unlink()
        assert _run(children, place).status == 0
        assert _taken(place) == whole.made
        assert listing(place) == {*whole.files}


class _Samples(CalibrationDataReader):
    """The calibration samples, for onnxruntime's quantizer."""

    def __init__(self) -> None:
        self._feeds = iter(residual_data().batches(8))

    def get_next(self) -> object:
        return next(self._feeds, None)


def test_a_killed_repair_ends_with_the_same_bytes(
    place: Path, children: Children, long: bool
) -> None:
    quantize_static(
        place / "m.onnx", place / "other.onnx", _Samples(), quant_format=QuantFormat.QDQ
    )
    before, output = listing(place), place / "other.repaired.onnx"
    undisturbed = children.run(*_REPAIR, folder=place)
    assert undisturbed.status == 0, undisturbed
    whole = output.read_bytes()
    output.unlink()
    moments, killed = random.Random(0), 0
    while killed < (_MANY if long else _CRASHES):
        seconds = moments.uniform(0.01, undisturbed.seconds)
        killed += children.run(*_REPAIR, folder=place, seconds=seconds).timed_out
        if output.exists():  # then nothing was left to do but to clear up
            assert output.read_bytes() == whole
            output.unlink()
        assert children.run(*_REPAIR, folder=place).status == 0
        assert output.read_bytes() == whole
        output.unlink()
        assert listing(place) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_a_signal_stops_it_cleanly(
    place: Path, children: Children, whole: Whole, number: int
) -> None:
    for part in (4, 8, 16):
        stopped = _run(children, place, seconds=whole.seconds / part, ended_by=number)
        if stopped.timed_out:
            break
        assert _taken(place) == whole.made  # it ended before the signal
    assert (stopped.status, stopped.err) == (130, "onnxbrecq: interrupted\n")
    assert not [name for name in listing(place) if name.endswith(".tmp")]
    assert not any((place / name).exists() for name in _MADE)
    assert _run(children, place).status == 0
    assert _taken(place) == whole.made


def test_the_work_of_another_model_is_not_mixed_in(
    place: Path, children: Children, whole: Whole
) -> None:
    """Of its first block, which stands in the same folder under the same number."""
    other = onnx.load(place / "m.onnx")
    other.graph.initializer[0].raw_data = onnx.numpy_helper.from_array(
        -onnx.numpy_helper.to_array(residual_network().graph.initializer[0])
    ).raw_data
    onnx.save(other, place / "m.onnx")
    work = place / "m.quant.onnx.work"
    early, late, ended = 0.0, whole.seconds, False
    while not any(work.glob("block-0000-*.json")):
        if not ended and late - early < late / 8:  # the machine is slower than it was
            late *= 2
        seconds = (early + late) / 2
        assert late - early > 1e-3 * whole.seconds, "it cannot be killed behind its first block"
        _run(children, place, seconds=seconds)
        made = [place / name for name in _MADE if (place / name).exists()]
        if made:  # and its blocks are gone
            late, ended = seconds, True
        else:
            early = seconds
        for path in made:
            path.unlink()
    (place / "m.onnx").write_bytes(whole.files["m.onnx"])
    assert _run(children, place).status == 0
    assert _taken(place) == whole.made


def test_the_second_run_says_who_is_at_work(place: Path, children: Children) -> None:
    with state.opened(place / "m.quant.onnx.work", {}, resume=True):
        second = _run(children, place)
    assert second.status == 1
    assert f"process {os.getpid()} is at work here" in second.err
    assert not (place / "m.quant.onnx").exists()


def test_another_process_makes_the_same_bytes_and_says_how_many_threads(
    place: Path, whole: Whole
) -> None:
    """One of its own: no child of the process that made the other."""
    command = [sys.executable, "-m", "onnxbrecq_cli.guard", *_COMMAND, "--json", "r.json"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run(command, cwd=place, env=environment, check=True)
    result = json.loads((place / "r.json").read_text(encoding="utf-8"))
    assert result["environment"]["threads"] == "1"
    assert _taken(place) == whole.made
