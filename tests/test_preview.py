"""What is said of data that do not suit a model."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxbrecq

_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 2] y) {
    a = Conv (x, w)
    b = BatchNormalization (a, g, e, m, v)
    c = Relu (b)
    d = GlobalAveragePool (c)
    f = Flatten (d)
    y = Gemm <transB = 1> (f, u)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network that has seen values from -1 to 1, and tells red images from others."""
    proto = onnx.parser.parse_model(_TEXT)
    random = np.random.default_rng(0)
    weight = random.normal(size=(6, 3, 1, 1)).astype(np.float32)
    weight[0] = np.array([1, 0, -1], np.float32).reshape(3, 1, 1)
    one = np.ones(6, np.float32)
    # Unit variance of `a` for inputs with a deviation of 1/sqrt(3), uniform from -1 to 1.
    variance = np.square(weight).sum(axis=(1, 2, 3)) / 3
    read = np.zeros((2, 6), np.float32)
    read[0, 0] = 20
    arrays = {"w": weight, "g": one, "e": 0 * one, "m": 0 * one, "v": variance, "u": read}
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def warnings(model: Path, images: np.ndarray) -> str:
    source = model.with_name("data.npy")
    np.save(source, images.astype(np.float32))
    return "\n".join(onnxbrecq.preview(model, source).warnings)


def images(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(1).uniform(low, high, (64, 3, 8, 8))


def test_data_that_suit_the_model(model: Path) -> None:
    assert warnings(model, images(-1, 1)) == ""


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0, 255, "wants values from -1 to 1, not 0 to 255"),
        (0, 1, "values from -1 to 1, not 0 to 1"),
    ],
)
def test_another_scale(model: Path, low: float, high: float, says: str) -> None:
    assert says in warnings(model, images(low, high))


def test_the_other_order_of_channels(model: Path) -> None:
    """Red images: the network is sure of them, and undecided where red and blue are exchanged."""
    red = images(-1, 0)
    red[:, 0] += 1
    assert warnings(model, red) == ""
    assert "the other order of channels" in warnings(model, red[:, ::-1])


def test_a_channel_that_never_changes(model: Path) -> None:
    grey = images(-1, 1)
    grey[:, 2] = 0.5
    assert "channel 2 of input 'x' is 0.5 everywhere" in warnings(model, grey)


def test_ranges_of_each_channel(model: Path) -> None:
    values = images(-1, 1)
    np.save(model.with_name("data.npy"), values.astype(np.float32))
    found = onnxbrecq.preview(model, model.with_name("data.npy"))
    assert (found.samples, found.inputs[0].shape) == (64, (64, 3, 8, 8))
    for i, channel in enumerate(found.inputs[0].channels):
        assert channel.low == np.float32(values[:, i].min())
        assert channel.std == pytest.approx(values[:, i].std(), rel=1e-5)
