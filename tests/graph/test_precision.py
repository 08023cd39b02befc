"""Half-precision models are learned in float32, and keep their types outside and in the file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import target_by_name
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session

_HALF = 2.0**-11  # relative rounding of float16


@pytest.fixture
def half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The residual network in float16, inputs and outputs too."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def test_float16_computes_the_same_but_for_its_rounding(
    half: onnx.ModelProto, data: Dataset
) -> None:
    feed = {"x": np.asarray(data.inputs["x"], np.float16)}
    expected = Session(half).run(feed)["logits"]
    model = from_proto(half)
    made = Session(model.proto).run(feed)["logits"]
    assert made.dtype == expected.dtype == np.float16
    # nine nodes round to float16 in the source, none but the last in the canonical model
    atol = 9 * _HALF * float(np.abs(expected).max())
    np.testing.assert_allclose(made.astype(np.float32), expected.astype(np.float32), atol=atol)
    assert {model.dtypes[n.output[0]] for n in model.nodes[:-1]} == {TensorProto.FLOAT}


def test_casts_between_precisions_disappear() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    mixed (float[N, 4] x) => (float[N, 4] y) {
        h = Cast <to = 10> (x)
        m = MatMul (h, w)
        s = Cast <to = 1> (m)
        e = Exp (s)
        t = Cast <to = 10> (e)
        u = Relu (t)
        y = Cast <to = 1> (u)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float16), "w"))
    model = from_proto(proto)
    assert [node.op_type for node in model.nodes] == ["MatMul", "Exp", "Relu"]


def _foreign(half: onnx.ModelProto, domain: str, op: str) -> onnx.ModelProto:
    """The network with another operator in the place of its first Relu."""
    half.graph.node[1].domain, half.graph.node[1].op_type = domain, op
    half.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return half


def test_a_node_of_another_domain_keeps_its_types_between_casts(
    half: onnx.ModelProto, data: Dataset
) -> None:
    proto = _foreign(half, "com.microsoft", "Trilu")
    model = from_proto(proto)
    trilu = next(node for node in model.nodes if node.op_type == "Trilu")
    assert model.dtypes[trilu.input[0]] == model.dtypes[trilu.output[0]] == TensorProto.FLOAT16
    assert len(find_points(model).layers) == 4
    feed = {"x": np.asarray(data.inputs["x"], np.float16)}
    expected, made = (
        Session(p).run(feed)["logits"].astype(np.float32) for p in (half, model.proto)
    )
    np.testing.assert_allclose(made, expected, atol=9 * _HALF * float(np.abs(expected).max()))


def test_half_precision_that_nobody_can_follow_is_kept_and_noted(half: onnx.ModelProto) -> None:
    model = from_proto(_foreign(half, "my.domain", "Odd"))
    assert any("my.domain.Odd" in note and "declare it" in note for note in model.notes)
    assert model.stored_type == TensorProto.FLOAT
    half.graph.value_info.append(
        onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT16, ["N", 8, 8, 8])
    )
    declared = from_proto(half)
    assert declared.stored_type == TensorProto.FLOAT16
    assert len(find_points(declared).layers) == 4


def test_what_stays_float_is_stored_in_half_precision(half: onnx.ModelProto) -> None:
    proto = emit(from_proto(half), QuantPlan({}), target_by_name("ort-cpu"))
    large = [t for t in proto.graph.initializer if np.prod(t.dims) > 64]
    assert large
    assert {t.data_type for t in large} == {TensorProto.FLOAT16}
    onnx.checker.check_model(proto, full_check=True)


def test_quantized_float16_model_runs_in_integers(
    half: onnx.ModelProto, data: Dataset, tmp_path: Path
) -> None:
    onnx.save(half, tmp_path / "m.onnx")
    samples = Dataset({"x": np.asarray(data.inputs["x"], np.float16)})
    recipe = Recipe(weights=8, effort="fast")
    result = onnxbrecq.quantize(tmp_path / "m.onnx", samples, recipe).as_json()
    assert result["execution"][0]["integer_macs_fraction"] == 1.0
    assert result["fidelity"]["sqnr_db"] > 20  # 8 bits keep a shallow net to a few per cent
