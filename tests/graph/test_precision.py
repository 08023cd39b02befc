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
from onnxbrecq.graph.precision import half_type
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


def test_custom_domains_keep_their_types(half: onnx.ModelProto) -> None:
    half.graph.node[1].domain = "my.domain"
    half.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    assert half_type(half) is None


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
