"""A small residual network in ONNX and its data; `--long`: tests that are worth hours in full."""

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import numpy_helper

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("untimed")

_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float[N, 3, 8, 8] x) => (float[N, 5] logits) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
    c = Relu (b)
    d = Conv <pads = [1, 1, 1, 1]> (c, w2, b2)
    e = Add (d, r)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    logits = Gemm <transB = 1> (h, w3, b3)
}
"""
_SHAPES = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "w3": (5, 8)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --long."""
    parser.addoption("--long", action="store_true", help="Crashes and mutants by the thousand.")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether tests that try at random try as often as they are meant to, not for CI's minutes."""
    return bool(request.config.getoption("long"))


@pytest.fixture
def proto() -> onnx.ModelProto:
    """Three convolutions with a skip, pooling, a classifier; opset 17."""
    proto = onnx.parser.parse_model(_TEXT)
    random = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        weight = random.normal(0, 1.4 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        bias = random.normal(0, 0.1, shape[0]).astype(np.float32)
        for array, key in ((weight, name), (bias, name.replace("w", "b"))):
            proto.graph.initializer.append(numpy_helper.from_array(array, key))
    return proto


@pytest.fixture
def model(proto: onnx.ModelProto) -> Model:
    """The canonical residual network."""
    return from_proto(proto)


@pytest.fixture
def data() -> Dataset:
    """64 samples."""
    x = np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float32)
    return Dataset({"x": x})
