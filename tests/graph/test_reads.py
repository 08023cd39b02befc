"""What is made in float keeps its values for those who read floats."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session
from onnxbrecq.runtime.trace import optimized

# A post-norm transformer's perceptron: what the norm makes is read by a layer and added up.
_POST_NORM = """n = LayerNormalization (x, gamma, beta) h = MatMul (n, w0) g = Gelu (h)
    k = MatMul (g, w1) y = Add (n, k)"""


def _model(body: str) -> Model:
    text = '<ir_version: 8, opset_import: ["" : 20]> net (float[N, 5, 8] x) => (float[N, 5, 8] y)'
    proto = onnx.parser.parse_model(f"{text} {{ {body} }}")
    random = np.random.default_rng(0)
    shapes = {"w0": (8, 8), "w1": (8, 8), "gamma": (8,), "beta": (8,)}
    for name, shape in shapes.items():
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return from_proto(proto)


def test_the_sum_past_a_block_reads_what_the_norm_made() -> None:
    model = _model(_POST_NORM)
    points = find_points(model).points
    assert "n" not in points
    assert "n/quantized" in points
    data = Dataset({"x": np.random.default_rng(1).normal(size=(8, 5, 8)).astype(np.float32)})
    plan = calibrate(model, find_points(model), data, Recipe(weights=8, activations=8))
    executed = {
        node.op_type: node for node in optimized(emit(model, plan, ORT_CPU_AVX2)).graph.node
    }
    assert "Identity" not in executed
    assert executed["LayerNormalization"].output[0] in executed["Add"].input


def test_parting_changes_nothing() -> None:
    x = {"x": np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)}
    parted = _model(_POST_NORM)
    whole = onnx.ModelProto()
    whole.CopyFrom(parted.proto)
    for node in [node for node in whole.graph.node if node.op_type == "Identity"]:
        whole.graph.node.remove(node)
        for reader in whole.graph.node:
            reader.input[:] = [node.input[0] if n == node.output[0] else n for n in reader.input]
    made = [Session(proto, optimize=False).run(x)["y"] for proto in (parted.proto, whole)]
    np.testing.assert_array_equal(*made)
    again = from_proto(parted.proto)
    assert [n.op_type for n in again.nodes] == [n.op_type for n in parted.nodes]


@pytest.mark.parametrize(
    "body",
    [
        "n = LayerNormalization (x, gamma, beta) h = MatMul (n, w0) y = Add (x, h)",
        "n = MatMul (x, w0) h = Relu (n) k = MatMul (h, w1) y = Mul (h, k)",
    ],
    ids=["read-by-layers-alone", "an-activation-function-belongs-to-its-quantizer"],
)
def test_nothing_is_parted_elsewhere(body: str) -> None:
    assert "Identity" not in {node.op_type for node in _model(body).nodes}
