import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.graph.load import from_proto

_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = BatchNormalization (a, gamma, beta, mean, variance)
    c = Relu (b)
    y = BatchNormalization (c, gamma2, beta2, mean, variance)
}
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    """A BatchNormalization that folds into the layer in front of it, and one that cannot."""
    proto = onnx.parser.parse_model(_TEXT)
    random = np.random.default_rng(0)
    for name in ("gamma", "beta", "gamma2", "beta2", "mean", "variance"):
        value = random.normal(size=4).astype(np.float32)
        value = np.abs(value) + 0.5 if name == "variance" else value
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    weight = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return proto


def test_what_the_file_says_of_a_tensor_outlives_folding(proto: onnx.ModelProto) -> None:
    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    model = from_proto(proto)
    assert [node.op_type for node in model.nodes] == ["Conv", "Relu", "BatchNormalization"]
    assert model.norms.keys() == {"b", "y"}
    for tensor, suffix in (("b", ""), ("y", "2")):
        assert np.array_equal(model.norms[tensor].mean, constants[f"beta{suffix}"])
        assert np.array_equal(model.norms[tensor].std, np.abs(constants[f"gamma{suffix}"]))


def test_parameters_that_are_computed_say_nothing(proto: onnx.ModelProto) -> None:
    node = next(n for n in proto.graph.node if n.output[0] == "y")
    node.input[1] = "computed"
    index = list(proto.graph.node).index(node)
    proto.graph.node.insert(index, onnx.helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0))
    proto.graph.node.insert(index + 1, onnx.helper.make_node("Mul", ["m", "gamma2"], ["computed"]))
    assert from_proto(proto).norms.keys() == {"b"}
