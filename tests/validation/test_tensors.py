import numpy as np
import onnx
import pytest

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.validation.tensors import tensor_errors

_FLOAT = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> {
    g = MatMul (x, w)
    r = Relu (g)
    y = MatMul (r, w)
}
"""
# As a quantizer writes it that drops the Relu and keeps its name in front of the pair.
_OTHER = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float s = {0.02}, uint8 z = {0}> {
    r = MatMul (x, w)
    q = QuantizeLinear (r, s, z)
    r_dequantized = DequantizeLinear (q, s, z)
    y = MatMul (r_dequantized, w)
}
"""


def with_weight(text: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return proto


@pytest.fixture
def reference() -> Model:
    return from_proto(with_weight(_FLOAT))


@pytest.fixture
def data() -> Dataset:
    random = np.random.default_rng(0)
    return Dataset({"x": random.uniform(-2, 2, (16, 4)).astype(np.float32)})


def test_what_a_quantizer_gives_counts_not_what_goes_in(reference: Model, data: Dataset) -> None:
    found = tensor_errors(reference, with_weight(_OTHER), ["g", "r", "y", "none"], data)
    assert set(found) == {"r", "y"}
    x = data.inputs["x"][:]
    exact = np.maximum(x, 0)
    near = np.clip(np.rint(x / np.float32(0.02)), 0, 255) * np.float32(0.02)
    wanted = np.square(near - exact).sum() / np.square(exact).sum()
    assert found["r"] == pytest.approx(wanted, rel=1e-4)
    assert found["y"] == pytest.approx(wanted, rel=1e-4)


def test_a_model_is_exact_beside_itself(reference: Model, data: Dataset) -> None:
    found = tensor_errors(reference, reference.proto, list(reference.producer), data)
    assert set(found.values()) == {0.0}
