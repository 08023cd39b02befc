"""Numbers at the edge of their type: quantized as well as they can be, and never to NaN."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import DataError, ModelError
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.report.result import Result
from onnxbrecq.runtime.session import Session

_TEXT = """<ir_version: 9, opset_import: ["" : 17]>
net (float[N, 3, 6, 6] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w1, b1) d = Add (b, r) e = Relu (d)
    g = GlobalAveragePool (e) h = Flatten (g) y = Gemm <transB = 1> (h, w2, b2) }"""
_SHAPES = {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (6, 6, 3, 3), "b1": (6,), "w2": (4, 6), "b2": (4,)}
_RECIPES = {
    "fast": Recipe(weights=4, effort="fast", threads=1),
    "learned": Recipe(weights=3, threads=1, reconstruction=Reconstruction(iterations=30)),
    "few-bits": Recipe(weights=2, activations=4, threads=1, effort="fast"),
    "weight-only": Recipe(weights=4, activations=None, effort="fast", threads=1),
}
Constants = dict[str, np.ndarray]


def _constants() -> Constants:
    random = np.random.default_rng(0)
    return {n: random.normal(0, 0.4, shape).astype(np.float32) for n, shape in _SHAPES.items()}


def _samples(count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, 6, 6)).astype(np.float32)


def _saved(path: Path, constants: Constants, text: str = _TEXT) -> Path:
    proto = onnx.parser.parse_model(text)
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(proto, path)
    return path


def _set(name: str, index: object, value: float) -> Callable[[Constants], None]:
    def edit(constants: Constants) -> None:
        constants[name][index] = value  # type: ignore[index]

    return edit


def _scaled(factor: float) -> Callable[[Constants], None]:
    def edit(constants: Constants) -> None:
        for array in constants.values():
            array *= np.float32(factor)

    return edit


_ODD: dict[str, Callable[[Constants], None]] = {
    "dead-channel": _set("w1", 2, 0),
    "dead-input-channel": _set("w1", (slice(None), 2), 0),
    "all-zero-weight": _set("w1", slice(None), 0),
    "all-zero-everything": _scaled(0),
    "constant-weight": _set("w1", slice(None), 0.25),
    "one-value-left": _set("w0", (slice(None), slice(None), slice(1, None)), 0),
    "huge-outlier": _set("w1", (0, 0, 0, 0), 1e6),
    "largest-float": _set("w1", (0, 0, 0, 0), 3e38),
    "denormal-channel": _set("w1", 3, 1e-42),
    "denormal-weights": _set("w1", slice(None), 1e-44),
    "tiny-weights": _scaled(1e-12),
    "huge-bias": _set("b1", 1, 1e12),
    "dead-by-bias": _set("b0", slice(None), -1e6),
    "negative-zero": _set("w1", slice(None), -0.0),
}


def _quantized(folder: Path, path: Path, x: np.ndarray, recipe: Recipe) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's on overflow and invalid values among them
        result = onnxbrecq.quantize(path, Dataset({"x": x}), recipe, output=folder / "q.onnx")
    wanted = Session(path, threads=1).run({"x": x})["y"]
    made = Session(folder / "q.onnx", threads=1).run({"x": x})["y"]
    assert np.isfinite(made[np.isfinite(wanted)]).all()
    return result


@pytest.mark.parametrize("recipe", _RECIPES.values(), ids=_RECIPES)
@pytest.mark.parametrize("edit", _ODD.values(), ids=_ODD)
def test_odd_weights_are_quantized(
    tmp_path: Path, edit: Callable[[Constants], None], recipe: Recipe
) -> None:
    constants = _constants()
    edit(constants)
    path = _saved(tmp_path / "m.onnx", constants)
    result = _quantized(tmp_path, path, _samples(), recipe)
    assert all(np.isfinite(block.loss_after) for block in result.blocks if block.loss_after)
