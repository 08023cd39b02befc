"""Models exported for one sample compute the same for many, or say that they cannot."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.graph.load import from_proto
from onnxbrecq.runtime.session import Session


def _model(body: str, **constants: object) -> onnx.ModelProto:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    graph (float[1, 4, 6, 6] x) => (float[1, A, B, C] y) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return proto


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("r = Relu (x) y = Reshape (r, s)", {"s": [1, 2, 12, 6]}),
        ('r = Relu (x) y = Resize <mode = "linear"> (r, , , s)', {"s": [1, 4, 9, 12]}),
        (
            'r = Relu (x) z = Resize <mode = "linear"> (r, , , s) y = Add (z, x)',
            {"s": [1, 4, 6, 6]},
        ),
        ('r = Relu (x) y = Resize <mode = "nearest"> (r, , , s)', {"s": [1, 2, 3, 12]}),
        ("r = Relu (x) y = Add (r, c)", {"c": np.ones((1, 4, 1, 1), np.float32)}),
    ],
    ids=["reshape", "resize", "resize-to-the-same", "resize-channels", "broadcast-constant"],
)
def test_many_samples_at_once_are_each_sample_alone(
    body: str, constants: dict[str, object]
) -> None:
    proto = _model(body, **constants)
    model = from_proto(proto)
    assert model.batched
    assert model.file_batch == 1
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 6)).astype(np.float32)
    alone = [Session(proto).run({"x": part[None]})["y"] for part in x]
    together = Session(model.proto).run({"x": x})["y"]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Concat <axis = 1> (x, c)", {"c": np.ones((1, 2, 6, 6), np.float32)}),
        ("r = Reshape (x, s) t = Reshape (r, u) y = Add (t, x)",
         {"s": [4, 36], "u": [1, 4, 6, 6]}),
    ],
    ids=["concat-with-constant", "through-another-rank"],
)  # fmt: skip
def test_what_holds_to_one_sample_is_processed_one_by_one(
    body: str, constants: dict[str, object]
) -> None:
    model = from_proto(_model(body, **constants))
    assert not model.batched
    assert "one by one" in model.notes[0]


def test_a_declared_batch_is_believed_where_inference_loses_it() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    graph (float[batch, 4] x) => (float[batch, 4] y) {
        s = Shape (x) t = Abs (s) y = Reshape (x, t)
    }"""
    assert from_proto(onnx.parser.parse_model(text)).batched


@pytest.mark.parametrize("body", ["y = Relu (x)", "r = Relu (x) y = Reshape (r, s)"])
def test_a_batch_fixed_to_several_samples_is_freed(body: str) -> None:
    proto = _model(body, s=[3, 2, 12, 6])
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    model = from_proto(proto)
    assert model.batched
    assert model.file_batch == 3
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 6)).astype(np.float32)
    source, made = (Session(p).run({"x": x})["y"] for p in (proto, model.proto))
    np.testing.assert_array_equal(made, source)


def test_what_holds_to_several_samples_is_processed_so_many_at_a_time() -> None:
    proto = _model("r = Reshape (x, s) t = Reshape (r, u) y = Add (t, x)",
                   s=[12, 36], u=[3, 4, 6, 6])  # fmt: skip
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    model = from_proto(proto)
    assert model.batch == 3
    assert "3 at a time" in model.notes[0]


def test_two_inputs_whose_rows_meet_are_not_of_one_batch() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    graph (float[B, 4] q, float[K, 4] m) => (float[B, K] y) {
        t = Transpose <perm = [1, 0]> (m) y = MatMul (q, t)
    }"""
    assert not from_proto(onnx.parser.parse_model(text)).batched


def test_two_inputs_with_symbols_of_their_own_are_of_one_batch() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    graph (float[B, 4] q, float[K, 4] m) => (float[B, 4] y) { y = Add (q, m) }"""
    assert from_proto(onnx.parser.parse_model(text)).batched
