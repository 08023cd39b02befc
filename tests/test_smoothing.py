"""Channels of a LayerNormalization made alike: exactly, where it helps, where it may be."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxbrecq
from onnxbrecq.bits import uniform_bits
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emit_plan
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.passes.migration import migrated, sites, with_constants
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session
from onnxbrecq.smoothing import smoothed

_WIDTH = 16
# A pre-norm transformer's perceptron, and a second layer that reads the norm.
_PRE_NORM = """n = LayerNormalization (x, gamma, beta) h = MatMul (n, w0) g = Gelu (h)
    k = MatMul (g, w1) j = MatMul (n, w2) s = Add (j, k) y = Add (x, s)"""
_RECIPE = Recipe(weights=8, activations=8, effort="fast", threads=1)


def _proto(body: str, outlying: float, more: str = "") -> onnx.ModelProto:
    takes = f"(float[N, 5, {_WIDTH}] x) => (float[N, 5, {_WIDTH}] y{more})"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 20]> net {takes} {{ {body} }}'
    )
    random = np.random.default_rng(0)
    gamma = random.uniform(0.5, 1.5, _WIDTH)
    gamma[[3, 8]] *= outlying
    constants = {"gamma": gamma, "beta": random.normal(0, 0.1, _WIDTH)}
    for name in ("w0", "w1", "w2"):
        constants[name] = random.normal(0, 1 / np.sqrt(_WIDTH), (_WIDTH, _WIDTH))
    for name in ("w0", "w2"):
        constants[name][[3, 8]] /= outlying
    proto.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()
    )
    return proto


def _data() -> Dataset:
    x = np.random.default_rng(1).normal(size=(64, 5, _WIDTH)).astype(np.float32)
    return Dataset({"x": x})


def test_a_migrated_model_computes_the_same() -> None:
    model = from_proto(_proto(_PRE_NORM, 30))
    (site,) = sites(model, find_points(model))
    scale = np.random.default_rng(2).uniform(0.1, 10, _WIDTH).astype(np.float32)
    values = migrated(model, site, scale)
    assert values.keys() == {"gamma", "beta", "w0", "w2"}
    feed = _data().inputs
    made, wanted = (
        Session(m.proto, threads=1).run(feed)["y"] for m in (with_constants(model, values), model)
    )
    # Each of two layers sums 16 float32 products with other roundings, of 6e-8 relative to each.
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


_ROWS_MOVED = """n = LayerNormalization (x, gamma, beta) t = Transpose <perm = [1, 0, 2]> (n)
    r = Reshape (t, flat) h = MatMul (r, w0) front = Slice (n, one, five, one)
    back = Slice (n, zero, one, one) rolled = Concat <axis = 1> (front, back)
    k = MatMul (rolled, w2) y = Add (k, x) z = Relu (h)"""
_NUMBERS = """flat = Constant <value = int64[2] {-1, 16}> ()
    zero = Constant <value = int64[1] {0}> () one = Constant <value = int64[1] {1}> ()
    five = Constant <value = int64[1] {5}> ()"""


def test_channels_are_followed_where_rows_move() -> None:
    """Heads, windows and shifted windows lie between a norm and its layers."""
    model = from_proto(_proto(f"{_NUMBERS} {_ROWS_MOVED}", 30, ", float z"))
    (site,) = sites(model, find_points(model))
    assert {layer.weight for layer in site.layers} == {"w0", "w2"}
    values = migrated(model, site, np.linspace(0.2, 5, _WIDTH, dtype=np.float32))
    feed = _data().inputs
    made, wanted = (
        Session(m.proto, threads=1).run(feed) for m in (with_constants(model, values), model)
    )
    for name, value in wanted.items():
        atol = 1e-5 * float(np.abs(value).max())  # as above
        np.testing.assert_allclose(made[name], value, rtol=0, atol=atol)


def _smoothed(model: Model, recipe: Recipe = _RECIPE) -> dict[str, np.ndarray]:
    points = find_points(model)
    return smoothed(model, points, _data(), recipe, uniform_bits(points, recipe))


def test_outlying_channels_are_made_alike() -> None:
    model = from_proto(_proto(_PRE_NORM, 30))
    values = _smoothed(model)
    before, after = (np.abs(gamma) for gamma in (model.initializers["gamma"], values["gamma"]))
    assert after.max() / np.median(after) < 0.3 * before.max() / np.median(before)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(activations=None), Recipe(activations=16)],
    ids=["floats", "finer-than-channels-differ"],
)
def test_channels_stay_where_one_scale_serves_them(recipe: Recipe) -> None:
    model = from_proto(_proto(_PRE_NORM, 30))
    assert _smoothed(model, recipe) == {}


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization (x, gamma, beta) h = MatMul (n, w0) y = Add (n, h)",
        "n = LayerNormalization (x, gamma, beta) h = Relu (n) y = MatMul (h, w0)",
        "n = LayerNormalization (x, gamma, beta) t = Transpose <perm = [0, 2, 1]> (n) "
        "h = MatMul (n, t) k = MatMul (h, x) y = MatMul (k, w0)",
        "n = LayerNormalization (x, gamma, beta) h = MatMul (n, w0) k = MatMul (x, w0) "
        "y = Add (h, k)",
        "n = LayerNormalization (x, gamma, beta) t = Transpose <perm = [0, 2, 1]> (n) "
        "s = Transpose <perm = [0, 2, 1]> (t) y = MatMul (s, w0)",
    ],
    ids=["added-up", "not-linear", "a-product", "a-shared-weight", "channels-move"],
)
def test_nothing_migrates_where_others_read_or_a_weight_is_shared(body: str) -> None:
    model = from_proto(_proto(body, 30))
    assert not list(sites(model, find_points(model)))


def test_a_saved_plan_writes_the_same_migrated_model(tmp_path: Path) -> None:
    path, plan = tmp_path / "net.onnx", tmp_path / "net.plan"
    onnx.save(_proto(_PRE_NORM, 30), path)
    result = onnxbrecq.quantize(path, _data(), _RECIPE, output=tmp_path / "a.onnx", plan=plan)
    emit_plan(path, plan, output=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    stored = {t.name: t for t in onnx.load(tmp_path / "a.onnx").graph.initializer}
    original = numpy_helper.to_array(_proto(_PRE_NORM, 30).graph.initializer[0])
    assert not np.array_equal(numpy_helper.to_array(stored["gamma"]), original)
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > 30  # 25 dB with the channels as they were


def test_outlying_channels_cost_less_once_they_are_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(_proto(_PRE_NORM, 30), path)
    found = []
    for name in ("alike", "as-they-were"):
        result = onnxbrecq.quantize(path, _data(), _RECIPE, output=tmp_path / f"{name}.onnx")
        assert result.fidelity is not None
        found.append(result.fidelity.sqnr_db)
        monkeypatch.setattr("onnxbrecq.preparation.smoothed", lambda *_: {})
    assert found[0] > found[1] + 3
