import numpy as np
import onnx
import pytest

from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.outline import constant_tensors, edit_to_outline

_TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 3, 6, 6] x) => (float[N, 5] y)
<int8[4, 3, 3, 3] w, float s = {0.02}, float[4] ws = {1, 2, 3, 4}, float[4, 5] v,
 int64[2] shape = {0, -1}>
{
    q = QuantizeLinear (x, s)
    d = DequantizeLinear (q, s)
    half = Cast <to = 6> (w)
    back = Cast <to = 3> (half)
    decoded = DequantizeLinear <axis = 0> (back, ws)
    [conv] c = Conv (d, decoded)
    [pool] p = GlobalAveragePool (c)
    [flat] f = Reshape (p, shape)
    [fc] y = MatMul (f, v)
}
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(_TEXT)
    for name, array in (
        ("w", np.ones((4, 3, 3, 3), np.int8)),
        ("v", np.ones((4, 5), np.float32)),
    ):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def test_decoded_weights_are_constants(proto: onnx.ModelProto) -> None:
    fixed = constant_tensors(proto.graph)
    assert {"w", "half", "back", "decoded", "v"} <= fixed
    assert not fixed & {"x", "q", "d", "c", "y"}


def test_layers_and_their_costs_are_those_of_the_float_model(proto: onnx.ModelProto) -> None:
    outline = edit_to_outline(proto, "m.onnx")
    signature = tuple(outline.graph.input), tuple(outline.graph.output)
    layers = weight_layers(Model(outline, signature, batched=True))
    found = {layer.name: (layer.op, layer.macs, layer.parameters) for layer in layers}
    assert found == {
        "conv": ("Conv", 4 * 4 * 4 * 27, 4 * 27),
        "fc": ("MatMul", 5 * 4, 4 * 5),
    }
