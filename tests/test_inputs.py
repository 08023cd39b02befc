"""Models that take more than one image: token ids, masks, several outputs, several floats."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.runtime.session import Session

_RECIPE = Recipe(
    weights=4, activations=8, threads=1, reconstruction=Reconstruction(iterations=40, batch_size=8)
)
_TOKENS = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[N, 12] ids, int64[N, 12] mask) => (float[N, 12, 16] hidden, float[N, 3] logits) {
    e = Gather (table, ids)
    one = Constant <value = float {1}> () big = Constant <value = float {-10000}> ()
    two = Constant <value_ints = [1, 2]> () last = Constant <value_ints = [1]> ()
    f = Cast <to = 1> (mask) i = Sub (one, f) m = Mul (i, big) bias = Unsqueeze (m, last)
    q = MatMul (e, wq) k = MatMul (e, wk) v = MatMul (e, wv)
    t = Transpose <perm = [0, 2, 1]> (k)
    s = MatMul (q, t) a = Add (s, bias) p = Softmax <axis = -1> (a)
    c = MatMul (p, v) o = MatMul (c, wo) r = Add (e, o)
    hidden = LayerNormalization <axis = -1> (r, g, b)
    pooled = ReduceMean <axes = [1], keepdims = 0> (hidden)
    logits = MatMul (pooled, wl)
}"""
_SHAPES = {"table": (50, 16), "wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16),
           "g": (16,), "b": (16,), "wl": (16, 3)}  # fmt: skip
_TWO = """
<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 3, 8, 8] left, float[N, 6] right) => (float[N, 4] sum, float[N, 4] far) {
    c = Conv (left, w) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
    d = MatMul (right, m) sum = Add (f, d) far = MatMul (sum, n)
}"""
_TWO_SHAPES = {"w": (4, 3, 3, 3), "m": (6, 4), "n": (4, 4)}


def _saved(text: str, shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = random.normal(0, 0.4, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def _agreement(path: Path, output: Path, data: Dataset) -> dict[str, float]:
    """SQNR of each output in dB."""
    source, made = (Session(p, threads=1).run(data.inputs) for p in (path, output))
    assert list(source) == list(made)
    return {
        name: float(10 * np.log10((a**2).sum() / ((a - made[name]) ** 2).sum()))
        for name, a in source.items()
    }


def test_token_ids_and_masks(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    ids = random.integers(0, 50, (64, 12))
    mask = (np.arange(12) < random.integers(4, 13, (64, 1))).astype(np.int64)
    data = Dataset({"ids": ids, "mask": mask})
    path = _saved(_TOKENS, _SHAPES, tmp_path / "encoder.onnx")
    result = onnxbrecq.quantize(path, data, _RECIPE, output=tmp_path / "q.onnx")
    assert all(layer.weight_bits in (4, 8) for layer in result.layers)
    # 4-bit weights: uniform noise of a step that is a seventh of a Gaussian's maximum at most
    # (about 3 sigma) leaves 17 dB of each product; activations and sums take some of it.
    assert min(_agreement(path, tmp_path / "q.onnx", data).values()) > 12
    assert any(block.iterations for block in result.blocks)


def test_ids_beyond_the_table_are_refused_in_one_line(tmp_path: Path) -> None:
    path = _saved(_TOKENS, _SHAPES, tmp_path / "encoder.onnx")
    data = Dataset({"ids": np.full((8, 12), 50), "mask": np.ones((8, 12), np.int64)})
    with pytest.raises(onnxbrecq.OnnxbrecqError) as caught:
        onnxbrecq.quantize(path, data, _RECIPE)
    assert "\n" not in str(caught.value)


def test_two_float_inputs_and_two_outputs(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    left = random.normal(size=(64, 3, 8, 8)).astype(np.float32)
    data = Dataset({"left": left, "right": random.normal(size=(64, 6)).astype(np.float32)})
    path = _saved(_TWO, _TWO_SHAPES, tmp_path / "two.onnx")
    result = onnxbrecq.quantize(path, data, _RECIPE, output=tmp_path / "q.onnx")
    assert len(result.layers) == 3
    assert min(_agreement(path, tmp_path / "q.onnx", data).values()) > 12
