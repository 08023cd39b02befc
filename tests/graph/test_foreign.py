"""Behind operators that onnx cannot infer, types and shapes are those that onnxruntime knows."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from onnxbrecq.graph import foreign
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.runtime.session import Session

_SHAPES = {"w": (8, 4, 3, 3), "v": (8, 8, 3, 3), "m": (6, 6), "b": (8,), "g": (6,)}


def _proto(body: str, value_info: str = "") -> onnx.ModelProto:
    """A model of images [N, 4, 6, 6] whose file declares its types only where `value_info` does."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 21, "com.microsoft" : 1, "my.domain" : 1]>
    net (float[N, 4, 6, 6] x) => (float[A, B, C, D] y) <{value_info}> {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _known(model: Model, name: str) -> tuple[int, tuple[int | None, ...] | None]:
    return model.dtypes.get(name, 0), model.shapes.get(name)


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w) a = com.microsoft.Gelu (c) y = Conv (a, v)",
        'a = com.microsoft.FusedConv <activation = "Relu"> (x, w, b) y = Conv (a, v)',
        "k = Constant <value_ints = [0, 24, 6]> () h = Reshape (x, k) "
        "a, , , s = com.microsoft.SkipLayerNormalization (h, h, g, g) "
        "l = Constant <value_ints = [0, 4, 6, 6]> () i = Reshape (a, l) y = Conv (i, w)",
        "c = Conv (x, w) a = GroupNormalization <num_groups = 2> (c, b, b) y = Conv (a, v)",
    ],
    ids=["gelu", "fused-conv", "skip-norm", "group-norm"],
)
def test_the_shape_behind_an_operator_that_onnx_cannot_infer(body: str) -> None:
    proto = _proto(body)
    model = from_proto(proto)
    kind, shape = _known(model, "a")
    assert kind == onnx.TensorProto.FLOAT
    assert shape is not None
    assert model.batched
    assert "y" in {name for node in model.nodes for name in node.output}
    assert all("not known" not in node.reason for node in find_points(model).float_nodes)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None))
    made = Session(proto).run({"x": np.ones((3, 4, 6, 6), np.float32)})["a"]
    assert made.shape == tuple(3 if size is None else size for size in shape)


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("a = com.microsoft.Gelu (x) y = Relu (a)", {"a": ["N", 4, 6, 6]}),
        ('a = com.microsoft.FusedConv <activation = "Relu", strides = [2, 2]> (x, w, b) '
         "y = Relu (a)", {"a": ["N", 8, 2, 2]}),
        ("a, , , s = com.microsoft.SkipLayerNormalization (x, x, g) y = Add (a, s)",
         {"a": ["N", 4, 6, 6], "s": ["N", 4, 6, 6]}),
    ],
    ids=["gelu", "fused-conv", "skip-norm"],
)  # fmt: skip
def test_stand_ins_of_what_is_written_out_later(body: str, shapes: dict[str, list[object]]) -> None:
    """Before it is, its types must be known."""
    found = foreign.infer_types(_proto(body)).graph.value_info
    for value in found:
        dims = value.type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == shapes[value.name]
    assert {value.name for value in found} == shapes.keys()


def test_the_type_behind_an_operator_whose_shape_is_not_known() -> None:
    body = "k = Constant <value_int = 0> () a = com.microsoft.ExpandDims (x, k) y = MatMul (a, m)"
    model = from_proto(_proto(body))
    assert _known(model, "a") == (onnx.TensorProto.FLOAT, None)
    assert [layer.op for layer in find_points(model).layers.values()] == ["MatMul"]


def test_what_the_file_declares_of_an_unknown_operator_is_believed() -> None:
    body = "c = Conv (x, w) a = my.domain.Odd (c) y = Conv (a, v)"
    float_nodes = find_points(from_proto(_proto(body))).float_nodes
    assert any("'a' is not known; declare it" in node.reason for node in float_nodes)
    model = from_proto(_proto(body, "float[N, 8, 4, 4] a"))
    assert _known(model, "a") == (onnx.TensorProto.FLOAT, (None, 8, 4, 4))
    assert len(find_points(model).layers) == 2


def test_the_table_says_what_onnxruntime_does() -> None:
    schemas = {
        schema.name: schema for schema in state.get_all_operator_schema()
        if schema.domain == "com.microsoft"
    }  # fmt: skip
    for table in (foreign._ALIKE, foreign._TYPED):
        for (domain, op), pairs in table.items():
            if domain != "com.microsoft" or op not in schemas:
                continue
            schema = schemas[op]
            for output, source in pairs.items():
                assert schema.outputs[output].typeStr == schema.inputs[source].typeStr, op
