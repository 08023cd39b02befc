"""Reading part by part finds what protobuf's own parser finds, of any bytes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxbrecq.graph.constants import LARGE, edit_together
from onnxbrecq.graph.load import load
from onnxbrecq.graph.wire import read_apart

_LAYERS, _CHANNELS = 12, 384  # convolutions of 3 x 3: 64 MB
_TIMES = 2.0  # the model's size: what loading it may take at most

_MEASURED = """
import sys
from pathlib import Path
import onnx.reference, onnx.version_converter
from onnxbrecq.graph.load import load

def size(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

before = size("VmRSS")
model = load(Path(sys.argv[1]))
print(size("VmHWM") - before)
"""


def _small() -> onnx.ModelProto:
    text = """
    <ir_version: 8, opset_import: ["" : 17], producer_name: "test">
    net (float[N, 3] x) => (float[N, 3] y, float[3] k) {
        a = Add (x, s)
        k = Constant <value = float[3] {1.0, 2.0, 3.0}> ()
        y = Add (a, k)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "s"))
    return proto


def _large() -> onnx.ModelProto:
    """Large constants: an initializer, one that a node makes, and one that is an output."""
    rows = np.arange(2 * LARGE, dtype=np.float32)
    nodes = [
        helper.make_node("Constant", [], ["made"], value=numpy_helper.from_array(rows, "w")),
        helper.make_node("Constant", [], ["out"], value=numpy_helper.from_array(rows + 1, "v")),
        helper.make_node("Add", ["x", "made"], ["a"]),
        helper.make_node("Add", ["a", "listed"], ["y"]),
    ]
    kinds = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N"]) for n in "xy"]
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [2 * LARGE])
    listed = [numpy_helper.from_array(rows * 2, "listed")]
    graph = helper.make_graph(nodes, "net", kinds[:1], [kinds[1], out], listed)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_of_small_constants_is_read_as_protobuf_reads_it() -> None:
    proto, constants = read_apart(io.BytesIO(_small().SerializeToString()))
    assert proto == _small()
    assert constants == {}


def test_large_constants_lie_apart_and_come_back() -> None:
    source = _large()
    proto, constants = read_apart(io.BytesIO(source.SerializeToString()))
    assert set(constants) == {"made", "listed"}
    assert proto.ByteSize() < source.ByteSize() / 2
    assert [node.op_type for node in proto.graph.node] == ["Add", "Add", "Constant"]
    edit_together(proto.graph, constants)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    rows = np.arange(2 * LARGE, dtype=np.float32)
    np.testing.assert_array_equal(found["made"], rows)
    np.testing.assert_array_equal(found["listed"], rows * 2)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_of_damaged_bytes_no_more_is_read_than_protobuf_would(data: st.DataObject) -> None:
    whole = bytearray(_small().SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        found, _ = read_apart(io.BytesIO(content))
    except (DecodeError, UnicodeDecodeError):
        return
    assert found == onnx.ModelProto.FromString(content)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("external", [False, True], ids=["one-file", "external-data"])
def test_loading_takes_no_more_than_twice_the_models_size_in_memory(
    tmp_path: Path, *, external: bool
) -> None:
    """Convolutions into each of which a BatchNormalization is folded: every weight changes."""
    path = tmp_path / "model.onnx"
    onnx.save(_convolutions(), path, save_as_external_data=external, location="model.data")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    run = [sys.executable, "-c", _MEASURED, str(path)]
    taken = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert taken < _TIMES * size
    assert all(node.op_type != "BatchNormalization" for node in load(path).nodes)


def _convolutions() -> onnx.ModelProto:
    random, nodes, constants, x = np.random.default_rng(0), [], [], "x"
    for i in range(_LAYERS):
        weight = random.standard_normal((_CHANNELS, _CHANNELS, 3, 3), dtype=np.float32)
        arrays = {f"w{i}": weight} | {f"{n}{i}": np.ones(_CHANNELS, np.float32) for n in "gbmv"}
        constants += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        read = [f"c{i}", *(f"{n}{i}" for n in "gbmv")]
        nodes.append(helper.make_node("BatchNormalization", read, [x := f"y{i}"]))
    kinds = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", _CHANNELS, 8, 8])
        for n in ("x", x)
    ]
    graph = helper.make_graph(nodes, "net", kinds[:1], kinds[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
