"""recipe, completion, repair, and quantize without data, as somebody at a shell meets them."""

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import quantization as ort

from onnxbrecq import datafree

Run = Callable[..., Any]  # the fixture of conftest.py


def test_recipe_prints_toml(run: Run) -> None:
    done = run("recipe")
    assert done.status == 0
    assert tomllib.loads(done.out)["weights"] == 4


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.status == 0
    assert "_ONNXBRECQ_COMPLETE" in done.out


def test_without_data_is_said_loudly_and_recorded(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datafree, "_SAMPLES", (32, 32))
    model.with_name("net.calib.npz").unlink()
    done = run("quantize", model, "--effort", "fast", "--threads", 1, "-q", "--json", "-")
    assert done.status == 0
    assert "NO CALIBRATION DATA" in done.err
    found = json.loads(done.out)
    assert found["data"]["origin"] == "made from the model"
    assert found["data"]["made"]["how"] == "distilled"
    assert any("NO CALIBRATION DATA" in note for note in found["notes"])


def test_with_data_nothing_is_made(run: Run, model: Path) -> None:
    done = run("quantize", model, "--effort", "fast", "--threads", 1, "-q", "--json", "-")
    assert "NO CALIBRATION" not in done.err
    assert json.loads(done.out)["data"]["made"] is None


def test_inspect_shows_data(run: Run, model: Path) -> None:
    data = model.with_name("net.calib.npz")
    done = run("inspect", model, "-d", data)
    assert done.status == 0
    assert "image [32, 3, 8, 8]" in done.out
    found = json.loads(run("inspect", model, "-d", data, "--json", "-").out)
    assert len(found["data"]["inputs"][0]["channels"]) == 3


class Reader(ort.CalibrationDataReader):
    """Samples as quantize_static wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self._feeds: Iterator[Any] = iter([{"image": images}])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def test_repair(run: Run, model: Path) -> None:
    proto = onnx.version_converter.convert_version(onnx.load(model), 21)
    source, broken = model.with_name("new.onnx"), model.with_name("broken.onnx")
    onnx.save(proto, source)
    with np.load(model.with_name("net.calib.npz")) as arrays:
        reader = Reader(arrays["image"])
    ort.quantize_static(source, broken, reader, quant_format=ort.QuantFormat.QDQ,
                        per_channel=True, weight_type=ort.QuantType.QInt4)  # fmt: skip
    options = ("--reference", source, "-d", model.with_name("net.calib.npz"), "--effort", "fast",
               "--threads", 1, "-q", "--json", "-")  # fmt: skip
    output = model.with_name("out.onnx")
    done = run("repair", broken, "-o", output, *options)
    assert done.status == 0
    assert json.loads(done.out)["output"]["path"] == str(output)
    nodes = [[node.SerializeToString() for node in onnx.load(p).graph.node]
             for p in (broken, output)]  # fmt: skip
    assert nodes[0] == nodes[1]
    again = run("repair", broken, "-o", output, *options)
    assert again.status == 1
    assert "--force" in again.err
