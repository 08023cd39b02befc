"""Each pass keeps what the model computes."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.points import find_points
from onnxbrecq.runtime.session import Session

_ROUNDING = 2e-6  # relative: weights folded in float64 and rounded to float32 once


def _model(body: str, weights: dict[str, tuple[int, ...]], head: str = "") -> onnx.ModelProto:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    graph (float[N, 4, 6, 6] x) => (float[N, A, B, C] y) {{ {body} }}"""
    proto = onnx.parser.parse_model(head or text)
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        array = random.normal(size=shape).astype(np.float32)
        if name == "var":
            array = np.abs(array) + np.float32(0.1)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _same(proto: onnx.ModelProto, tolerance: float = 0.0) -> list[str]:
    """Checks the normalised model against its source; returns its operators."""
    model = from_proto(proto)
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)
    source = Session(proto, threads=1).run({"x": x})["y"]
    made = Session(model.proto, threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(made, source, atol=tolerance * float(np.abs(source).max()))
    twice = from_proto(model.proto)
    assert [n.op_type for n in twice.nodes] == [n.op_type for n in model.nodes]
    return [node.op_type for node in model.nodes]


_NORM = {"gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,)}
_LAYERS = {
    "conv": ("h = Conv (x, w)", {"w": (8, 4, 3, 3)}),
    "conv-bias": ("h = Conv (x, w, b)", {"w": (8, 4, 3, 3), "b": (8,)}),
    "depthwise": ("h = Conv <group = 4> (x, w)", {"w": (8, 1, 3, 3)}),
    "transposed": ("h = ConvTranspose (x, w)", {"w": (4, 8, 3, 3)}),
    "transposed-groups": ("h = ConvTranspose <group = 2> (x, w)", {"w": (4, 4, 3, 3)}),
}


@pytest.mark.parametrize(("layer", "weights"), _LAYERS.values(), ids=_LAYERS)
def test_batch_normalization_is_folded(layer: str, weights: dict[str, tuple[int, ...]]) -> None:
    body = f"{layer} y = BatchNormalization (h, gamma, beta, mean, var)"
    operators = _same(_model(body, {**weights, **_NORM}), 10 * _ROUNDING)
    assert "BatchNormalization" not in operators


def test_batch_normalization_stays_where_others_read_the_convolution() -> None:
    body = "h = Conv (x, w) n = BatchNormalization (h, gamma, beta, mean, var) y = Add (h, n)"
    assert "BatchNormalization" in _same(_model(body, {"w": (8, 4, 3, 3), **_NORM}))


@pytest.mark.parametrize(
    "body",
    [
        "h = Identity (x) y = Relu (h)",
        "h = Relu (x) y = Identity (h)",
        "h = Dropout (x) y = Relu (h)",
    ],
    ids=["inner", "output", "dropout"],
)
def test_copies_give_way(body: str) -> None:
    assert _same(_model(body, {})) == ["Relu"]


def test_an_identity_between_input_and_output_stays() -> None:
    assert _same(_model("y = Identity (x)", {})) == ["Identity"]


def test_shape_arithmetic_is_folded() -> None:
    body = """
    s = Shape (x) i = Constant <value = int64 {1}> () c = Gather (s, i)
    z = Constant <value_ints = [0]> () u = Unsqueeze (c, z)
    m = Constant <value_ints = [-1, 1, 1]> () d = Concat <axis = 0> (m, u)
    r = Reshape (x, d) y = Relu (r)"""
    assert _same(_model(body, {})) == ["Reshape", "Relu"]


def test_a_reshape_by_the_batch_size_copies_it() -> None:
    body = """
    s = Shape (x) i = Constant <value = int64 {0}> () c = Gather (s, i)
    z = Constant <value_ints = [0]> () u = Unsqueeze (c, z)
    m = Constant <value_ints = [2, 2, 36]> () d = Concat <axis = 0> (u, m)
    r = Reshape (x, d) y = Relu (r)"""
    assert _same(_model(body, {})) == ["Reshape", "Relu"]


def test_a_shared_weight_is_copied() -> None:
    proto = _model("h = Conv (x, w) k = Conv (x, w) y = Add (h, k)", {"w": (4, 4, 1, 1)})
    _same(proto, _ROUNDING)  # with biases, onnxruntime adds in another order
    weights = [n.input[1] for n in from_proto(proto).nodes if n.op_type == "Conv"]
    assert len(set(weights)) == 2


def test_dead_nodes_and_constants_go() -> None:
    proto = _model("h = Conv (x, w) y = Relu (x)", {"w": (4, 4, 1, 1)})
    model = from_proto(proto)
    assert [node.op_type for node in model.nodes] == ["Relu"]
    assert not model.initializers


def test_names_become_unique() -> None:
    proto = _model("h = Relu (x) k = Relu (h) y = Relu (k)", {})
    for node in proto.graph.node[:2]:
        node.name = "same"
    names = [node.name for node in from_proto(proto).nodes]
    assert len(set(names)) == 3
    assert names[0] == "same"


def test_missing_biases_become_zeros() -> None:
    model = from_proto(_model("y = Conv (x, w)", {"w": (8, 4, 3, 3)}))
    assert len(model.nodes[0].input) == 3
    assert not model.initializers[model.nodes[0].input[2]].any()


@pytest.mark.parametrize("shape", [[1, -1], [1, 144]], ids=["rest", "known"])
def test_a_batch_of_one_is_freed(shape: list[int]) -> None:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    flat (float[1, 4, 6, 6] x) => (float[1, 144] y) {{
        s = Constant <value_ints = {shape}> ()
        y = Reshape (x, s)
    }}"""
    model = from_proto(onnx.parser.parse_model(text))
    assert model.batched
    assert model.signature[0][0].type.tensor_type.shape.dim[0].dim_value == 1
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(Session(model.proto).run({"x": x})["y"], x.reshape(3, -1))


def test_a_batch_that_cannot_be_freed_stays_with_a_note() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    flat (float[1, 4, 6, 6] x) => (float[4, 36] y) {
        s = Constant <value_ints = [4, 36]> ()
        y = Reshape (x, s)
    }"""
    model = from_proto(onnx.parser.parse_model(text))
    assert not model.batched
    assert "batch size is fixed" in model.notes[0]


_LEVELS = np.random.default_rng(0).integers(-127, 127, (8, 4, 3, 3)).astype(np.int8)


def _partly_quantized(data: str, opset: int) -> onnx.ModelProto:
    """A Conv whose weight is in integers, and one whose weight is not."""
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    graph (float[N, 4, 6, 6] x) => (float[N, A, B, C] y) {{
        s = Constant <value = float {{0.01}}> () z = Constant <value = uint8 {{128}}> ()
        u = DequantizeLinear (levels, s) {data} h = Conv (d, u) r = Relu (h) y = Conv (r, w)
    }}"""
    proto = _model("", {"w": (4, 8, 1, 1)}, text)
    proto.graph.initializer.append(numpy_helper.from_array(_LEVELS, "levels"))
    return proto


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_weights_alone_in_integers_become_float(opset: int) -> None:
    proto = _partly_quantized("d = Identity (x)", opset)
    assert _same(proto, 5 * _ROUNDING) == ["Conv", "Relu", "Conv"]
    assert [layer.op for layer in find_points(from_proto(proto)).layers.values()] == ["Conv"] * 2


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_a_layer_that_computes_in_integers_already_stays(opset: int) -> None:
    data = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
    proto = _partly_quantized(data, opset)
    assert _same(proto, 5 * _ROUNDING).count("DequantizeLinear") == 2
    points = find_points(from_proto(proto))
    assert len(points.layers) == 1
    assert [n.reason for n in points.float_nodes if n.op == "Conv"] == ["already quantized"]


def test_a_tensor_of_unknown_rank_may_be_joined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    graph (float[N, 4, 6, 6] x) => (float[N, A, B, C] y) {
        m = ReduceMax <keepdims = 0> (x) c = Cast <to = 9> (m)
        z = If (c) <
            then_branch = one () => (float a) { a = Exp (x) },
            else_branch = other () => (float e) { e = Squeeze (x) }
        >
        y = Concat <axis = -1> (z, x)
    }"""
    proto = onnx.parser.parse_model(text)
    branch = next(node for node in proto.graph.node if node.op_type == "If")
    for item in branch.attribute:  # no shape at all, where the text can only say: no dimensions
        item.g.output[0].type.tensor_type.ClearField("shape")
    assert _same(proto) == ["ReduceMax", "Cast", "If", "Concat"]
