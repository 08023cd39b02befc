import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emitted
from onnxbrecq.emit.targets import target_by_name
from onnxbrecq.graph.load import load
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe

Run = Callable[..., Any]  # the fixture of conftest.py


@pytest.fixture
def pair(model: Path) -> tuple[Path, Path]:
    """The model rounded to nearest at 8 and at 2 bits."""
    floating = load(model)
    images = np.load(model.with_name("net.calib.npz"))["image"]
    made = []
    for bits in (8, 2):
        recipe = Recipe(weights=bits)
        plan = calibrate(floating, find_points(floating), Dataset({"image": images}), recipe)
        made.append(model.with_name(f"w{bits}.onnx"))
        onnx.save(emitted(floating, plan, target_by_name("ort-cpu")), made[-1])
    return made[0], made[1]


def test_layers_side_by_side(model: Path, pair: tuple[Path, Path], run: Run) -> None:
    done = run("compare", *pair, "--reference", model, "-q", "--json", "-")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == ["first", "second", "head"]
    bits = {name: (x["a"]["weight_bits"], x["b"]["weight_bits"]) for name, x in layers.items()}
    assert bits == {"first": (8, 8), "second": (8, 2), "head": (8, 8)}
    same, apart = layers["first"], layers["second"]
    assert same["a"]["error"] == same["b"]["error"]
    assert 0 < apart["a"]["error"] < apart["b"]["error"] / 10
    assert found["a"]["fidelity"]["sqnr_db"] > found["b"]["fidelity"]["sqnr_db"]
    assert found["a"]["accuracy"]["samples"] == 32
    assert found["samples"] == 32
    errors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert errors["logits"]["a"] < errors["logits"]["b"]


def test_the_error_is_that_of_the_tensors(model: Path, pair: tuple[Path, Path], run: Run) -> None:
    """At the output it is the noise that SQNR tells, without optimisations and within rounding."""
    done = run("compare", *pair, "--reference", model, "-q", "--json", "-")
    found = json.loads(done.out)
    logits = next(t for t in found["tensors"] if t["name"] == "logits")
    decibels = -10 * np.log10(logits["b"])
    assert decibels == pytest.approx(found["b"]["fidelity"]["sqnr_db"], abs=0.5)


def test_a_model_beside_its_float_form(model: Path, pair: tuple[Path, Path], run: Run) -> None:
    done = run("compare", model, pair[1], "--reference", model, "-q")
    assert done.status == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("second"))
    assert "float" in line
    assert "W2 A8" in line
    assert line.split()[-1] == "A"


def test_another_network_is_refused(model: Path, pair: tuple[Path, Path], run: Run) -> None:
    proto = onnx.load(pair[1])
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "other"
    onnx.save(proto, pair[1])
    done = run("compare", *pair, "--reference", model, "-q")
    assert done.status == 1
    assert "give the float model that it was made from" in done.error
