"""Models that a runtime runs are quantized: masks, empty tensors, odd outputs and inputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.result import Result
from onnxbrecq.runtime.session import Session

_RECIPE = Recipe(effort="fast", threads=1)
_RANDOM = np.random.default_rng(0)


def _saved(folder: Path, head: str, body: str, **constants: object) -> Path:
    """The file of a model of opset 18; a constant is an array, or the shape of a random one."""
    text = f'<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> net {head} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, value in constants.items():
        array = value
        if isinstance(value, tuple):
            array = random.normal(0, value[0] ** -0.5, value).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def _quantized(path: Path, data: Dataset) -> Result:
    return onnxbrecq.quantize(path, data, _RECIPE)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


_ATTENTION = """q = MatMul (x, wq) k = MatMul (x, wk) t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, t) {masked} p = Softmax <axis = -1> (m) v = MatMul (x, wv) c = MatMul (p, v)
    y = MatMul (c, wo)"""
_CLOSED = np.triu(np.full((6, 6), -np.inf, np.float32), 1)


@pytest.mark.parametrize(
    ("masked", "constants"),
    [
        ("m = Add (s, mask)", {"mask": _CLOSED}),
        ("z = Shape (s) f = ConstantOfShape <value = float[1] {-inf}> (z) "
         "o = Trilu <upper = 1> (f, one) m = Add (s, o)", {"one": np.int64(1)}),
        ("m = Where (open, s, low)", {"open": _CLOSED == 0, "low": np.float32(-np.inf)}),
    ],
    ids=["initializer", "computed", "where"],
)  # fmt: skip
def test_a_mask_of_minus_infinity_masks(
    tmp_path: Path, masked: str, constants: dict[str, object]
) -> None:
    path = _saved(tmp_path, "(float[N, 6, 16] x) => (float[N, 6, 16] y)",
                  _ATTENTION.format(masked=masked), **constants,
                  wq=(16, 16), wk=(16, 16), wv=(16, 16), wo=(16, 16))  # fmt: skip
    data = Dataset({"x": _normal(32, 6, 16)})
    result = _quantized(path, data)
    assert all(layer.weight_bits == 8 for layer in result.layers)
    # 8 bits of a Gaussian leave some 40 dB of each product; four in a row, and a softmax, take 20.
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > 20


def test_a_tensor_of_infinite_values_stays_float(tmp_path: Path) -> None:
    path = _saved(tmp_path, "(float[N, 6] x) => (float[N, 4] y)",
                  "a = MatMul (x, v) m = Add (a, mask) s = Sigmoid (m) y = MatMul (s, w)",
                  v=(6, 6), w=(6, 4), mask=_CLOSED[0])  # fmt: skip
    result = _quantized(path, Dataset({"x": _normal(32, 6)}))
    assert any("'m' stay float" in note for note in result.notes)
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > 30  # two products in 8 bits


_ROWS = """a = MatMul (x, w0) r = Relu (a) m = ReduceMax <keepdims = 0> (r, axes)
    k = Greater (m, least) s = Compress <axis = 0> (r, k) b = MatMul (s, w1) c = Relu (b)
    y = MatMul (c, w2)"""


@pytest.mark.parametrize(("least", "note"), [(1e6, True), (1.5, False)], ids=["never", "sometimes"])
def test_rows_that_are_filtered_away(tmp_path: Path, least: float, note: bool) -> None:
    path = _saved(
        tmp_path,
        "(float[N, 16] x) => (float[M, 4] y)",
        _ROWS,
        w0=(16, 16),
        w1=(16, 16),
        w2=(16, 4),
        axes=np.array([1]),
        least=np.float32(least),
    )
    x = _normal(17, 16)
    x[16] *= 0.001
    result = _quantized(path, Dataset({"x": x}))
    assert any("without any value" in line for line in result.notes) == note
    assert Session(Path(result.output.path)).run({"x": x[16:]})["y"].shape == (0, 4)


_IMAGES = "(float[3, 4, 6, 6] x) => (float[3, 4, 6, 6] y)"


@pytest.mark.parametrize(
    "body",
    [
        "h = Conv (x, w) r = Relu (h) y = Conv (r, v)",
        "h = Conv (x, w) a = Reshape (h, flat) b = Relu (a) r = Reshape (b, full) y = Conv (r, v)",
    ],
    ids=["freed", "held"],
)
def test_a_batch_fixed_to_three_takes_three_at_a_time(tmp_path: Path, body: str) -> None:
    path = _saved(tmp_path, _IMAGES, body, w=(4, 4, 1, 1), v=(4, 4, 1, 1),
                  flat=np.array([12, 36]), full=np.array([3, 4, 6, 6]))  # fmt: skip
    x = _normal(14, 4, 6, 6)
    result = _quantized(path, Dataset({"x": x}))
    assert any("the last 2 samples are left out" in note for note in result.notes)
    assert result.fidelity is not None
    assert result.fidelity.samples == 12
    assert result.fidelity.sqnr_db > 25  # two products in 8 bits
    made = Session(Path(result.output.path)).run({"x": x[:3]})["y"]
    assert made.shape == (3, 4, 6, 6)


def test_layers_in_integers_already_stay_beside_new_ones(tmp_path: Path) -> None:
    path = _saved(tmp_path, "(float[N, 16] x) => (float[N, 4] y)",
                  """q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
                  u = DequantizeLinear (levels, s) h = MatMul (d, u) r = Relu (h)
                  y = MatMul (r, w)""", s=np.float32(0.02), z=np.uint8(128), w=(16, 4),
                  levels=_RANDOM.integers(-9, 9, (16, 16)).astype(np.int8))  # fmt: skip
    result = _quantized(path, Dataset({"x": _normal(32, 16)}))
    assert [layer.weight_bits for layer in result.layers] == [8]
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > 30  # one product in 8 bits


def test_an_output_without_a_row_for_each_sample(tmp_path: Path) -> None:
    path = _saved(tmp_path, "(float[1, 4, 6, 6] x) => (float[4, 6, 6] y)",
                  "h = Conv (x, w) r = Relu (h) c = Conv (r, v) y = Squeeze (c, axes)",
                  w=(4, 4, 1, 1), v=(4, 4, 1, 1), axes=np.array([0]))  # fmt: skip
    result = _quantized(path, Dataset({"x": _normal(12, 4, 6, 6)}))
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > 25  # two products in 8 bits
    assert any("a row for each sample" in str(block.note) for block in result.blocks)


def test_an_output_that_is_a_sequence(tmp_path: Path) -> None:
    path = _saved(tmp_path, "(float[N, 4, 6, 6] x) => (seq(float[N, 2, 6, 6]) y)",
                  "h = Conv (x, w) r = Relu (h) y = SplitToSequence <axis = 1> (r, two)",
                  w=(4, 4, 1, 1), two=np.int64(2))  # fmt: skip
    result = _quantized(path, Dataset({"x": _normal(12, 4, 6, 6)}))
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > 30  # one product in 8 bits


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    path = _saved(tmp_path, "(float x) => (float y)",
                  "h = Conv (x, w) r = Relu (h) y = Conv (r, v)",
                  w=(4, 4, 1, 1), v=(4, 4, 1, 1))  # fmt: skip
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    x = _normal(12, 4, 6, 6)
    result = _quantized(path, Dataset({"x": x}))
    assert Session(Path(result.output.path)).run({"x": x})["y"].shape == x.shape


def test_an_input_of_text(tmp_path: Path) -> None:
    path = _saved(tmp_path, "(string[N, 5] x) => (float[N, 5, 4] y)",
                  """i = ai.onnx.ml.LabelEncoder <keys_strings = ["a", "b", "c"],
                  values_int64s = [0, 1, 2]> (x) e = Gather (table, i) y = MatMul (e, w)""",
                  table=(3, 16), w=(16, 4))  # fmt: skip
    proto = onnx.load(path)
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 2))
    onnx.save(proto, path)
    words = np.array([["a", "b", "c", "a", "b"], ["c", "c", "b", "a", "a"]] * 4)
    np.savez(tmp_path / "model.calib.npz", x=words)
    result = onnxbrecq.quantize(path, None, _RECIPE)
    assert [layer.weight_bits for layer in result.layers] == [8]
    assert Session(Path(result.output.path)).run({"x": words})["y"].shape == (8, 5, 4)
