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
        for name in constants:
            constants[name] *= np.float32(factor)

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


@pytest.mark.parametrize("kind", _RECIPES)
@pytest.mark.parametrize("name", _ODD)
def test_odd_weights_are_quantized(tmp_path: Path, name: str, kind: str, long: bool) -> None:
    if not long and list(_RECIPES).index(kind) != list(_ODD).index(name) % len(_RECIPES):
        pytest.skip("each with one recipe; with all: --long")
    edit, recipe = _ODD[name], _RECIPES[kind]
    constants = _constants()
    edit(constants)
    path = _saved(tmp_path / "m.onnx", constants)
    result = _quantized(tmp_path, path, _samples(), recipe)
    assert all(np.isfinite(block.loss_after) for block in result.blocks if block.loss_after)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w1", "b0", "w2"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, name: str, value: float
) -> None:
    constants = _constants()
    constants[name].reshape(-1)[1] = value
    path = _saved(tmp_path / "m.onnx", constants)
    with pytest.raises(ModelError, match=rf"constant '{name}' holds NaN or infinite values"):
        onnxbrecq.quantize(path, Dataset({"x": _samples()}), _RECIPES["fast"])


_LOG = """<ir_version: 9, opset_import: ["" : 17]>
net (float[N, 3, 6, 6] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) m = ReduceMax <axes = [1, 2, 3]> (x)
    [log] l = Log (m) r = Add (a, l) b = Conv (r, w1, b1)
    g = GlobalAveragePool (b) h = Flatten (g) y = Gemm <transB = 1> (h, w2, b2) }"""


def _with_a_negative_sample(at: int, count: int) -> np.ndarray:
    x = np.abs(_samples(count)) + 1
    x[at] *= -1
    return x


def test_a_nan_is_found_where_it_arises(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m.onnx", _constants(), _LOG)
    with pytest.raises(DataError, match=r"NaN on sample 11 .*node 'log' \(Log\) makes NaN in 'l'"):
        onnxbrecq.quantize(path, Dataset({"x": _with_a_negative_sample(11, 16)}), _RECIPES["fast"])


def test_a_nan_that_calibration_did_not_see_is_told(tmp_path: Path) -> None:
    """Ranges are taken of 256 samples; blocks learn from all."""
    path = _saved(tmp_path / "m.onnx", _constants(), _LOG)
    data = Dataset({"x": _with_a_negative_sample(258, 260)})
    result = onnxbrecq.quantize(path, data, _RECIPES["fast"])
    notes = [block.note for block in result.blocks if block.note]
    assert any("on sample 258 node 'log' (Log) makes NaN in 'l'" in note for note in notes)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.5, 0.5), (0, 0), (-3, -3), (-1e30, 1e30), (0, 1e-42), (1e4, 1e4 + 0.01), (-1e33, 1e33)],
    ids=["one-value", "zero", "negative", "huge", "denormal", "far-from-zero", "beyond-bias-range"],
)
def test_odd_ranges_of_data(tmp_path: Path, low: float, high: float) -> None:
    path = _saved(tmp_path / "m.onnx", _constants())
    x = np.random.default_rng(1).uniform(0, 1, (8, 3, 6, 6))
    _quantized(tmp_path, path, (low + x * (high - low)).astype(np.float32), _RECIPES["fast"])


def test_one_pixel_far_from_all_others(tmp_path: Path) -> None:
    path, x = _saved(tmp_path / "m.onnx", _constants()), _samples()
    x[3, 1, 2, 2] = 1e5
    result = _quantized(tmp_path, path, x, _RECIPES["fast"])
    assert result.fidelity is not None


def test_a_loss_that_overflows_leaves_what_was_there(tmp_path: Path) -> None:
    """Squares of 1e25 are infinite in float32: gradients are NaN."""
    path = _saved(tmp_path / "m.onnx", _constants())
    result = _quantized(tmp_path, path, _samples() * np.float32(1e25), _RECIPES["learned"])
    assert all(block.loss_after <= block.loss_before for block in result.blocks
               if block.loss_before is not None)  # fmt: skip
