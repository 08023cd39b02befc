"""Models of old opsets are taken in: what they say in old words is said in new ones."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.upgrade import OPSET
from onnxbrecq.runtime.session import Session

_ROUNDING = 1e-5  # the same float operations, some fused or folded
_SHAPES = {
    "w": (8, 4, 3, 3), "m": (6, 5), "row": (5,), "c4": (4,), "d4": (4,), "e4": (4,), "v4": (4,),
}  # fmt: skip
_SCALES = "k = Constant <value = float[4] {1, 1, 2, 2}> ()"

# Name → (opsets, body). Each body is valid, and says the same, in each of its opsets.
_OLD = {
    "upsample-attribute": ([7, 8], "y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (x)"),
    "upsample-input": ([9], f'{_SCALES} y = Upsample <mode = "nearest"> (x, k)'),
    "upsample-linear": ([9], f'{_SCALES} y = Upsample <mode = "linear"> (x, k)'),
    "resize-10": ([10], f'{_SCALES} y = Resize <mode = "nearest"> (x, k)'),
    "upsample-by-three": ([9], "k = Constant <value = float[4] {1, 1, 3, 1.5}> () "
                          "y = Upsample (x, k)"),
    "upsample-cubes": ([9], "k = Constant <value = float[4] {1, 1, 3, 2}> () "
                       'y = Upsample <mode = "linear"> (x, k)'),
    "resize-10-linear": ([10], 'k = Constant <value = float[4] {1, 1, 1.5, 3}> () '
                         'y = Resize <mode = "linear"> (x, k)'),
    "resize-10-down": ([10], 'k = Constant <value = float[4] {1, 1, 0.5, 0.7}> () '
                       'y = Resize <mode = "nearest"> (x, k)'),
    "dropout": ([7, 9, 10, 11], "h = Dropout <ratio = 0.5> (x) y = Relu (h)"),
    "batch-norm": ([7, 8, 9, 13], "y = BatchNormalization (x, c4, d4, e4, v4)"),
    "softmax-flattens": ([7, 9, 11, 12], "y = Softmax <axis = 1> (x)"),
    "softmax-default": ([7, 11, 12], "y = Softmax (x)"),
    "softmax-13": ([13, 17], "y = Softmax <axis = 1> (x)"),
    "log-softmax": ([7, 12], "y = LogSoftmax <axis = 2> (x)"),
    "hardmax": ([7, 12], "y = Hardmax <axis = 1> (x)"),
    "squeeze": ([7, 11, 12], "h = Unsqueeze <axes = [0, 3]> (x) y = Squeeze <axes = [0]> (h)"),
    "reduce-sum": ([7, 11, 12], "y = ReduceSum <axes = [1], keepdims = 0> (x)"),
    "reduce-mean": ([7, 11, 13, 17], "y = ReduceMean <axes = [2, 3]> (x)"),
    "split": ([7, 11, 12], "a, b = Split <axis = 1, split = [1, 3]> (x) "
              "y = Concat <axis = 1> (b, a)"),
    "clip-attributes": ([7, 10], "y = Clip <min = -0.5, max = 0.5> (x)"),
    "relu6-attributes": ([7, 10], "h = Conv (x, w) y = Clip <min = 0.0, max = 6.0> (h)"),
    "slice-attributes": ([7, 9], "y = Slice <axes = [1, 2], starts = [1, 0], ends = [3, -1]> (x)"),
    "pad-attributes": ([7, 10], "y = Pad <pads = [0, 0, 1, 1, 0, 0, 2, 2], value = 0.5> (x)"),
    "pad-reflect": ([7, 10], 'y = Pad <mode = "reflect", pads = [0, 0, 1, 1, 0, 0, 2, 2]> (x)'),
    "pad-reflect-value": ([7, 10], 'y = Pad <mode = "reflect", value = 0.5, '
                          "pads = [0, 0, 1, 1, 0, 0, 2, 2]> (x)"),
    "pad-edge-value": ([7, 10], 'y = Pad <mode = "edge", value = 0.0, '
                       "pads = [0, 0, 1, 1, 0, 0, 2, 2]> (x)"),
    "pad-conv": ([7, 10], "h = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x) y = Conv (h, w)"),
    "top-k": ([7, 9], "y, i = TopK <axis = 1, k = 2> (x)"),
    "gemm": ([7, 9, 10], "h = Flatten <axis = 3> (x) y = Gemm (h, m, row)"),
    "average-pool": ([7, 10, 11, 19], "y = AveragePool <kernel_shape = [3, 3], "
                     "pads = [1, 1, 1, 1]> (x)"),
    "lrn": ([7, 13], "y = LRN <size = 3> (x)"),
    "prelu": ([7, 9, 16], "h = Constant <value = float[4, 1, 1] {0.1, 0.2, 0.3, 0.4}> () "
              "y = PRelu (x, h)"),
    "equal-cast": ([7, 9], "g = Greater (x, x) y = Cast <to = 1> (g)"),
    "scatter": ([9, 10], "i = Constant <value = int64[1, 1, 1, 1] {2}> () "
                "u = Constant <value = float[1, 1, 1, 1] {9}> () y = Scatter <axis = 1> (x, i, u)"),
}  # fmt: skip
_CASES = [(name, opset, body) for name, (opsets, body) in _OLD.items() for opset in opsets]


def _model(body: str, opset: int) -> onnx.ModelProto:
    head = f'<ir_version: 4, opset_import: ["" : {opset}]> net (float[N, 4, 6, 6] x) => (float y)'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    random = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, shape in _SHAPES.items():
        array = random.normal(size=shape).astype(np.float32)
        if name in read:
            array = np.abs(array) + np.float32(0.1) if name == "v4" else array
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _compare(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The canonical model, checked against its source in onnxruntime."""
    model = from_proto(proto)
    source = Session(proto, threads=1).run(feed)
    made = Session(model.proto, threads=1).run(feed)
    assert list(made) == list(source)
    for name, expected in source.items():
        np.testing.assert_allclose(made[name], expected, rtol=_ROUNDING, atol=_ROUNDING)
    return model.proto


@pytest.mark.parametrize(("opset", "body"), [case[1:] for case in _CASES],
                         ids=[f"{name}-{opset}" for name, opset, _ in _CASES])  # fmt: skip
def test_old_words(opset: int, body: str) -> None:
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    proto = _compare(_model(body, opset), {"x": x})
    assert proto.opset_import[0].version == OPSET


@pytest.mark.parametrize("opset", range(7, 26))
def test_every_opset(opset: int) -> None:
    body = "a = Conv (x, w) b = Relu (a) c = MaxPool <kernel_shape = [2, 2]> (b) y = Flatten (c)"
    x = np.random.default_rng(1).normal(size=(3, 4, 6, 6)).astype(np.float32)
    proto = _compare(_model(body, opset), {"x": x})
    assert proto.opset_import[0].version == max(opset, OPSET)


@pytest.mark.parametrize("opset", [8, 11, 16])
def test_subgraphs_are_upgraded_too(opset: int) -> None:
    """An If whose branches are of an old opset, and read tensors from outside."""
    then = helper.make_graph(
        [helper.make_node("Softmax", ["h"], ["t"], axis=1)], "then", [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["e"])], "else", [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="first"),
        helper.make_node("If", ["flag"], ["y"], name="fork", then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 2, 2]),
         helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)
    x = np.random.default_rng(1).normal(size=(2, 3, 2, 2)).astype(np.float32)
    for flag in (True, False):
        made = _compare(proto, {"x": x, "flag": np.array(flag)})
    assert [node.name for node in made.graph.node] == ["first", "fork"]


def test_a_custom_node_beside_old_ones_passes() -> None:
    body = "h = Softmax <axis = 1> (x) y = com.microsoft.Trilu (h)"
    proto = _model(body, 11)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 6)).astype(np.float32)
    made = _compare(proto, {"x": x})
    assert "com.microsoft" in {node.domain for node in made.graph.node}


def test_what_cannot_be_converted_names_the_node() -> None:
    """Scan has no way from opset 8 to 9."""
    body = helper.make_graph(
        [helper.make_node("Relu", ["i"], ["o"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    node = helper.make_node("Scan", ["lengths", "x"], ["y"], "walk", body=body, num_scan_inputs=1)
    graph = helper.make_graph(
        [node], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 3]),
         helper.make_tensor_value_info("lengths", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 3])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    with pytest.raises(ModelError, match=r"node 'walk'.*Scan.*opset 8.*export"):
        from_proto(proto)
