"""What an untrusted file may hold: one line each, nothing executed, nothing outside its folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import from_proto, load
from onnxbrecq.runtime.session import Session


def _proto(weight: np.ndarray | None = None, opset: int = 17) -> onnx.ModelProto:
    text = f"""
    <ir_version: 8, opset_import: ["" : {opset}]>
    dense (float[N, 4] x) => (float[N, 3] y) {{ y = MatMul (x, w) }}"""
    proto = onnx.parser.parse_model(text)
    value = np.ones((4, 3), np.float32) if weight is None else weight
    proto.graph.initializer.append(numpy_helper.from_array(value, "w"))
    return proto


def _external(location: str, **entries: int | str) -> onnx.ModelProto:
    proto = _proto()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


def _huge() -> onnx.ModelProto:
    proto = _proto()
    proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 10]
    return proto


def _quantized() -> bytes:
    """A MatMul of integers in QDQ form, that ends in one of QLinear form."""
    return _parsed("""s = Constant <value = float {0.5}> () z = Constant <value = uint8 {128}> ()
        w = Constant <value = int8[4, 4] {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> ()
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, s)
        y = MatMul (d, v)""")


def _parsed(body: str, takes: str = "float[N, 4] x", gives: str = "float[N, 4] y") -> bytes:
    head = f'<ir_version: 8, opset_import: ["" : 17]> net ({takes}) => ({gives})'
    return bytes(onnx.parser.parse_model(f"{head} {{ {body} }}").SerializeToString())


def _two_opsets() -> onnx.ModelProto:
    proto = _proto(opset=17)
    proto.opset_import.add(domain="ai.onnx", version=4)
    return proto


def _bytes(make: Callable[[], onnx.ModelProto]) -> Callable[[], bytes]:
    return lambda: make().SerializeToString()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: b"", "is empty"),
        (lambda: b"this is no model\n" * 20, "not an ONNX model"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (lambda: b"PK\x03\x04" + bytes(99), "a zip archive"),
        (lambda: b"\x1f\x8b\x08" + bytes(99), "gunzip"),
        (lambda: b"\x89HDF\r\n" + bytes(99), "HDF5"),
        (lambda: b"\x08\x00\x00\x00ORTM" + bytes(99), "format of onnxruntime"),
        (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(99), "TensorFlow Lite"),
        (lambda: _proto().SerializeToString()[:60], "model"),
        (lambda: onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
        (_bytes(lambda: _proto(opset=6)), "opset 6 is not supported"),
        (_bytes(lambda: _proto(np.full((4, 3), np.nan, np.float32))), "'w' holds NaN"),
        (_quantized, "no layer has a float weight: .* already quantized"),
        (_bytes(_huge), "'w' declares"),
        (_bytes(lambda: _external("../outside.bin")), "outside the model's folder"),
        (_bytes(lambda: _external("/etc/passwd")), "outside the model's folder"),
        (_bytes(lambda: _external("weights\0.bin")), r"which is no file \(.*null"),
        (_bytes(lambda: _external("w" * 5000)), r"too long\)"),
        (_bytes(lambda: _external("loop.bin")), r"which is no file \(.* loop"),
        (_bytes(lambda: _external("missing.bin")), "is missing"),
        (_bytes(lambda: _external("short.bin")), "does not hold them"),
        (_bytes(lambda: _external("link.bin")), "outside the model's folder; copy .*cp -L"),
        (_bytes(lambda: _external("short.bin", offset="abc")), "'w' has the offset 'abc'"),
        (_bytes(lambda: _external("short.bin", offset=-8)), "'w' has the offset '-8'"),
        (lambda: _parsed("[n1] a = Add (x, b) [n2] b = Relu (a) y = Relu (b)"),
         "the nodes 'n.', 'n.' wait for each other"),
        (lambda: _parsed("[first] y = MatMul (x, w)"), "node 'first' \\(MatMul\\) reads 'w'"),
        (lambda: _parsed("[odd] y = Relu <foo = 3> (x)"), "node 'odd' \\(Relu\\): .*foo"),
        (lambda: _parsed("y = Relu (x)", gives="float[N, 5] y"), "'y' is declared as .*, 5.*, 4"),
        (lambda: _parsed("y = Relu (x)", takes="float[-3, 4] x"), "'x' has the negative dimens"),
        (lambda: _parsed("y = Relu (x) y = Abs (x)"), "'y'"),
        (lambda: _parsed("[odd] y = Reluu (x)"), "node 'odd'.*Reluu.*opset 17"),
        (_bytes(lambda: _proto(opset=99)), "opset 99 is not supported"),
        (_bytes(_two_opsets), "imports opsets 17 and 4 of the domain 'ai.onnx'"),
        (lambda: _external("short.bin").SerializeToString().replace(b"\x01w", b"\x01\xff"),
         "is not UTF-8"),
        (lambda: _external("short.bin", offset="here").SerializeToString()
         .replace(b"here", b"h\xffre"), "is not UTF-8"),
    ],
    ids=["empty", "text", "lfs", "zip", "gzip", "hdf5", "ort", "tflite", "truncated",
         "no-graph", "old-opset", "nan", "quantized", "huge",
         "parent", "absolute", "no-name", "long", "loop", "missing", "short", "link", "offset",
         "before", "cycle", "no-maker", "attribute", "contradiction", "negative", "twice",
         "unknown-operator", "new-opset", "two-opsets", "bytes-for-a-name", "bytes-for-an-offset"],
)  # fmt: skip
def test_bad_files_get_one_line(tmp_path: Path, content: Callable[[], bytes], said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(48))
    (folder / "short.bin").write_bytes(bytes(10))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "loop.bin").symlink_to(folder / "loop.bin")
    path = folder / "model.onnx"
    path.write_bytes(content())
    with pytest.raises(ModelError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(path))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        load(tmp_path)


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    (tmp_path / "data.bin").write_bytes(bytes(8) + weight.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(_external("data.bin", offset=8, length=48, other="theirs").SerializeToString())
    model = load(path)
    np.testing.assert_array_equal(model.initializers["w"], weight)
    assert model.source_bytes == path.stat().st_size + 56


def test_one_domain_under_its_two_names_is_imported_once() -> None:
    proto = _proto(opset=17)
    proto.opset_import.add(domain="ai.onnx", version=17)
    imports = from_proto(proto).proto.opset_import
    assert [(known.domain, known.version) for known in imports] == [("", 21)]


def test_custom_domain_is_kept() -> None:
    proto = _proto()
    proto.opset_import.add(domain="my.domain", version=1)
    proto.graph.node[0].output[0] = "h"
    proto.graph.node.append(helper.make_node("Odd", ["h"], ["y"], name="o", domain="my.domain"))
    assert [node.op_type for node in from_proto(proto).nodes] == ["MatMul", "Odd"]


def test_weights_listed_as_inputs_are_constants() -> None:
    proto = _proto()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    assert from_proto(proto).inputs == ("x",)


def test_local_functions_are_inlined() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    outer (float[N, 4] x) => (float[N, 4] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 17]>
    twice (a) => (b) { b = Add (a, a) }"""
    model = from_proto(onnx.parser.parse_model(text))
    assert [node.op_type for node in model.nodes] == ["Add"]


def test_the_source_is_not_edited() -> None:
    proto = _proto()
    before = proto.SerializeToString()
    from_proto(proto)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 22, 25])
def test_opsets_are_brought_up_to_21(opset: int) -> None:
    model = from_proto(_proto(opset=opset))
    assert model.opset == max(21, opset)
    assert model.source_opset == opset
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(Session(model.proto).run({"x": x})["y"], 4)


def test_constants_of_an_old_ir_need_not_be_inputs() -> None:
    proto = _proto(opset=9)
    proto.ir_version = 3
    assert from_proto(proto).inputs == ("x",)


def test_the_long_name_of_the_default_domain_is_taken() -> None:
    proto = _proto()
    proto.graph.node[0].domain = "ai.onnx"
    assert [node.domain for node in from_proto(proto).nodes] == [""]


def test_nodes_out_of_order_are_sorted() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y) '
        "{ [last] y = Relu (a) [first] a = Abs (x) }"
    )
    assert [node.name for node in from_proto(proto).nodes] == ["first", "last"]


def test_a_dimension_of_minus_one_is_unknown() -> None:
    proto = _proto()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert from_proto(proto).batched
