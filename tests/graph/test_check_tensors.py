"""Constants that are not what they say are refused before anything is made of them."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import from_proto, load, read

Edit = Callable[[onnx.ModelProto], None]


def _tensor(proto: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def _terabytes(proto: onnx.ModelProto) -> None:
    _tensor(proto, "w1").dims[0] = 2**40


def _terabytes_of_nothing(proto: onnx.ModelProto) -> None:
    _tensor(proto, "w1").CopyFrom(TensorProto(name="w1", data_type=1, dims=[2**40, 8, 3, 3]))


def _sparse_terabytes(proto: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [2**40, 4]))


def _cut_integers(proto: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([1, 2, 3]), "shape")
    shape.raw_data = shape.raw_data[:-1]
    proto.graph.initializer.append(shape)


def _too_many_values(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(
        TensorProto(name="axes", data_type=TensorProto.INT64, dims=[1], int64_data=[1, 2])
    )


def _within_a_node(proto: onnx.ModelProto) -> None:
    value = TensorProto(name="w1", data_type=TensorProto.INT64, dims=[2**40], raw_data=b"1")
    proto.graph.node.add(op_type="Constant", output=["k"]).attribute.append(
        helper.make_attribute("value", value)
    )


def _unknown_type(proto: onnx.ModelProto) -> None:
    _tensor(proto, "b1").data_type = 99


def _unknown_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 99


def _negative(proto: onnx.ModelProto) -> None:
    _tensor(proto, "b1").dims[0] = -8


def _segment(proto: onnx.ModelProto) -> None:
    _tensor(proto, "b1").segment.end = 4


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_terabytes, "'w1' declares 79164837199872 elements"),
        (_terabytes_of_nothing, "'w1' declares 79164837199872 elements"),
        (_sparse_terabytes, "would not fit into memory"),
        (_cut_integers, "'shape' declares 3 elements of type INT64 but holds 23 bytes"),
        (_too_many_values, "'axes' declares 1 elements of type INT64 but holds 2 values"),
        (_within_a_node, "'w1' declares 1099511627776 elements"),
        (_unknown_type, "'b1' has the unknown type 99"),
        (_unknown_input, "'x' has the unknown type 99"),
        (_negative, "'b1' has a negative dimension"),
        (_segment, "'b1' is a segment of a larger one"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_what_is_not_what_it_says_is_refused(
    proto: onnx.ModelProto, edit: Edit, words: str
) -> None:
    edit(proto)
    tracemalloc.start()
    with pytest.raises(ModelError) as caught:
        from_proto(proto)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words in str(caught.value)
    assert peak < 1 << 24


def test_an_attribute_of_a_function_that_there_is_not_is_refused(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    attribute = next(node for node in proto.graph.node if node.attribute).attribute[0]
    attribute.ref_attr_name = "given"
    onnx.save(proto, tmp_path / "m.onnx")
    for reading in (load, read):
        with pytest.raises(ModelError, match="refers to 'given' of a function"):
            reading(tmp_path / "m.onnx")


def test_who_made_the_model_may_be_told_in_any_encoding(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    proto.producer_name = proto.doc_string = "here"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(b"here", b"h\xff\xfee"))
    assert load(tmp_path / "m.onnx").nodes


def test_files_that_are_read_only_to_be_told_of_are_checked_as_well(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    _segment(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: tensor 'b1' is a segment"):
        read(tmp_path / "m.onnx")


def _set_name(proto: onnx.ModelProto) -> None:
    proto.graph.name = "here"


def _set_node(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].name = "here"


def _set_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.add(domain="here", version=1)


def _set_dimension(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "here"


def _set_annotation(proto: onnx.ModelProto) -> None:
    proto.graph.quantization_annotation.add(tensor_name="here")


def _set_attribute(proto: onnx.ModelProto) -> None:
    constant = helper.make_tensor("here", TensorProto.FLOAT, [1], [0.0])
    proto.graph.node.append(helper.make_node("Constant", [], ["unread"], value=constant))


@pytest.mark.parametrize(
    "edit",
    [_set_name, _set_node, _set_domain, _set_dimension, _set_annotation, _set_attribute],
    ids=lambda edit: edit.__name__,
)
def test_a_text_that_is_no_text_is_refused(
    proto: onnx.ModelProto, edit: Edit, tmp_path: Path
) -> None:
    edit(proto)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(b"here", b"h\xff\xfee"))
    with pytest.raises(ModelError, match="is not UTF-8"):
        load(tmp_path / "m.onnx")


def test_what_a_model_says_of_itself_may_be_in_any_encoding(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    proto.doc_string = proto.graph.doc_string = proto.graph.node[0].doc_string = "here"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(b"here", b"h\xff\xfee"))
    load(tmp_path / "m.onnx")


def test_a_name_of_any_length_is_told_shortly(proto: onnx.ModelProto) -> None:
    _tensor(proto, "b1").name = "b" * 10_000
    _tensor(proto, "b" * 10_000).data_type = 99
    with pytest.raises(ModelError) as caught:
        from_proto(proto)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("body", [
    "s = ConstantOfShape (dims) z = ReduceSum <keepdims = 0> (s)",
    "c = Unsqueeze (row, one) s = Add (c, row) z = ReduceSum <keepdims = 0> (s)",
])  # fmt: skip
def test_a_constant_that_grows_to_terabytes_is_not_folded(body: str) -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 17]> net (float[N, 3] x) => (float[N, 3] y)
        {{ {body} y = Add (x, z) }}"""
    )
    for name, value in (("dims", np.array([1 << 20, 1 << 20])), ("one", np.array([1])),
                        ("row", np.zeros(1 << 20, np.float32))):  # fmt: skip
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    model = from_proto(proto)
    assert {"ConstantOfShape", "Add"} & {node.op_type for node in model.nodes if node.name != "Add"}


def test_packed_integers_may_lie_outside(tmp_path: Path) -> None:
    """Two elements of four bits a byte."""
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> net (float[N, 4] x) => (float[N, 3] y) {
        u = DequantizeLinear (v, s) h = MatMul (x, u) y = MatMul (h, w) }"""
    )
    levels = helper.make_tensor("v", TensorProto.INT4, [4, 3], np.arange(-6, 6))
    proto.graph.initializer.extend([
        levels, numpy_helper.from_array(np.float32(0.5), "s"),
        numpy_helper.from_array(np.eye(3, dtype=np.float32), "w"),
    ])  # fmt: skip
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0,
              location="m.data")  # fmt: skip
    assert load(tmp_path / "m.onnx").files[1:] == (tmp_path / "m.data",)


def test_attributes_that_contradict_the_graph_are_one_line() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17]> net (float[N, 2, 6, 6] x) => (float y) {
        y = MaxPool <kernel_shape = [2, 2, 2], auto_pad = "SAME_UPPER"> (x) }"""
    )
    with pytest.raises(ModelError) as caught:
        from_proto(proto)
    assert "\n" not in str(caught.value)
