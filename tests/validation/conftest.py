"""A float classifier, and a quantized file of it: one Gemm, 4 inputs, 3 classes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.model import Model

WEIGHT_STEP = np.float32(0.01)
DATA_STEP = np.float32(0.05)
OUTPUT_STEP = np.float32(0.25)


@pytest.fixture
def weight() -> np.ndarray:
    """[4, 3], on the grid of the quantized model's weight."""
    codes = np.random.default_rng(0).integers(-127, 128, (4, 3))
    return codes.astype(np.float32) * WEIGHT_STEP


@pytest.fixture
def reference(weight: np.ndarray) -> Model:
    """The float model."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm")]
    return as_model(proto(nodes, [numpy_helper.from_array(weight, "w")]))


@pytest.fixture
def samples() -> Dataset:
    """40 samples; labels are what a perfect classifier of the float model would say for most."""
    random = np.random.default_rng(1)
    x = random.uniform(-6, 6, (40, 4)).astype(np.float32)
    return Dataset({"x": x}, random.integers(0, 3, 40), "samples.npz")


@pytest.fixture
def shifted(weight: np.ndarray) -> onnx.ModelProto:
    """The quantized model with its output moved by two steps."""
    return quantized_proto(weight, shift=2)


@pytest.fixture
def quantized(weight: np.ndarray, tmp_path: Path) -> Path:
    """The file of the quantized model; its output is quantized too."""
    path = tmp_path / "quantized.onnx"
    onnx.save(quantized_proto(weight), path)
    return path


def quantized_proto(weight: np.ndarray, shift: int = 0) -> onnx.ModelProto:
    """8-bit data, weight and output; `shift` moves the output by that many steps."""
    constants = {
        "xs": DATA_STEP,
        "xz": np.uint8(128),
        "ws": np.full(3, WEIGHT_STEP),
        "wz": np.zeros(3, np.int8),
        "wi": np.rint(weight / WEIGHT_STEP).astype(np.int8),
        "ys": OUTPUT_STEP,
        "yz": np.uint8(128),
        "moved": np.uint8(128 - shift),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wi", "ws", "wz"], ["w"], axis=1),
        helper.make_node("Gemm", ["xd", "w"], ["yf"], name="gemm"),
        helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "moved" if shift else "yz"], ["y"]),
    ]
    return proto(nodes, [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()])


def proto(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A model x [N, 4] → y [N, 3], or of unknown shape."""
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def as_model(model: onnx.ModelProto, *, batched: bool = True) -> Model:
    """`model` as the package passes models around."""
    return Model(model, (tuple(model.graph.input), tuple(model.graph.output)), batched)
