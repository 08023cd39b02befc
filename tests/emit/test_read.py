"""Bits, grids and scales as they are read back from a file, of this tool and of others."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.adopt import adopt
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.read import DataGrid, data_grids, stored_bits, weight_scales
from onnxbrecq.emit.targets import ORT_CPU, TARGETS
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType
from onnxbrecq.recipe import Recipe

_PAIRS = """
<ir_version: 10, opset_import: ["" : 21]>
other (float[N, 4] x) => (float[N, 3] y) {
    q = QuantizeLinear (x, sx ZERO)
    d = DequantizeLinear (q, sx ZERO)
    v = DequantizeLinear <axis = 1> (w, sw)
    b = DequantizeLinear <axis = 0> (c, sb, zb)
    [layer] y = Gemm (d, v, b)
}"""


def _other(zero: np.ndarray | None, weight: np.ndarray) -> onnx.ModelProto:
    """A file of another tool: one layer between pairs."""
    text = _PAIRS.replace("ZERO", "" if zero is None else ", zx")
    proto = onnx.parser.parse_model(text)
    values = {
        "sx": np.float32(0.25),
        "sw": np.array([0.5, 1, 2], np.float32),
        "sb": np.array([0.125, 0.25, 0.5], np.float32),
        "zb": np.zeros(3, np.int32),
        "c": np.array([8, -4, 2], np.int32),
        "w": weight,
        **({} if zero is None else {"zx": zero}),
    }
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return proto


_WEIGHT = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)


@pytest.mark.parametrize(
    ("zero", "grid"),
    [
        (None, DataGrid(0.25, 0, 0, 255)),
        (np.array(3, np.uint8), DataGrid(0.25, 3, 0, 255)),
        (np.array(3, np.int8), DataGrid(0.25, 3, -128, 127)),
        (np.array(3, np.uint16), DataGrid(0.25, 3, 0, 65535)),
    ],
    ids=str,
)
def test_the_grid_of_data(zero: np.ndarray | None, grid: DataGrid) -> None:
    proto = _other(zero, _WEIGHT)
    assert data_grids(proto, ["layer"]) == {"layer": grid}
    bits = 16 if grid.high == 65535 else 8
    assert stored_bits(proto, ("layer",)) == {"layer": (8, bits)}


def test_the_scales_of_a_weight_lie_along_it() -> None:
    (scale,) = weight_scales(_other(None, _WEIGHT), ["layer"]).values()
    assert np.array_equal(np.broadcast_to(scale, (4, 3)), np.tile([0.5, 1, 2], (4, 1)))


@pytest.mark.parametrize(
    ("weights", "activations", "target"),
    [(8, 8, "ort-cpu"), (4, 8, "ort-cpu"), (2, 4, "ort-cpu"), (3, None, "ort-cpu"), (4, 8, "qnn")],
)
def test_scales_are_those_of_the_plan(
    model: Model, data: Dataset, weights: int, activations: int | None, target: str
) -> None:
    points = find_points(model)
    recipe = Recipe(weights=weights, activations=activations, target=target)
    plan = calibrate(model, points, data, recipe)
    proto = emit(model, plan, TARGETS[target])
    found = weight_scales(proto, list(points.layers))
    for name, layer in points.layers.items():
        quant = plan.tensors[layer.weight]
        shape = model.initializers[layer.weight].shape
        along = quant.scale.reshape([-1 if i == quant.axis else 1 for i in range(len(shape))])
        made = np.broadcast_to(found[name], shape)
        assert np.array_equal(made, np.broadcast_to(along, shape)), name


@pytest.mark.parametrize(
    ("weight", "kind"),
    [(_WEIGHT, QType(8, "signed")), (np.arange(12, dtype=np.uint8).reshape(4, 3), None)],
    ids=["signed", "unsigned without a zero point"],
)
def test_what_is_taken_from_another_tools_file(weight: np.ndarray, kind: QType | None) -> None:
    adopted = adopt(_other(np.array(3, np.uint8), weight), "other.onnx")
    (bias,) = adopted.biases.values()
    assert (bias.codes, bias.scale) == ("c", "sb")
    assert bias.value.tolist() == [1.0, -1.0, 1.0]
    kinds = [site.quant.qtype for site in adopted.weights.values()]
    assert kinds == ([] if kind is None else [kind])


def test_four_bits_around_another_middle_are_affine() -> None:
    proto = _other(np.array(3, np.uint8), np.zeros((4, 3), np.int8))
    del proto.graph.initializer[[t.name for t in proto.graph.initializer].index("w")]
    packed = onnx.helper.make_tensor("w", TensorProto.UINT4, [4, 3], list(range(12)))
    zero = onnx.helper.make_tensor("zw", TensorProto.UINT4, [3], [7, 8, 1])
    proto.graph.initializer.extend([packed, zero])
    node = next(n for n in proto.graph.node if n.output[0] == "v")
    node.input.append("zw")
    (site,) = adopt(proto, "other.onnx").weights.values()
    assert site.quant.qtype == QType(4, "affine")
    assert site.quant.zero_point.tolist() == [7, 8, 1]


def test_what_only_moves_values_is_written_on_integers_where_the_target_needs_it() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
        a = Conv (x, w)
        b = DepthToSpace <blocksize = 2> (a)
        c = SpaceToDepth <blocksize = 2> (b)
        y = Conv (c, w)
    }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(4, 4, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    net = from_proto(proto)
    samples = Dataset({"x": np.random.default_rng(1).normal(size=(8, 4, 6, 6)).astype(np.float32)})
    plan = calibrate(net, find_points(net), samples, Recipe(weights=4, activations=8))
    for name, wanted in (("ort-cpu", "QuantizeLinear"), ("openvino", "DequantizeLinear")):
        made = emit(net, plan, TARGETS[name])
        makers = {o: node.op_type for node in made.graph.node for o in node.output}
        (moved,) = (node for node in made.graph.node if node.op_type == "DepthToSpace")
        assert makers[moved.input[0]] == wanted, name


@pytest.mark.parametrize(
    ("bits", "op", "integer", "grid"),
    [
        (4, "MatMul", False, "affine"),
        (3, "Gemm", False, "affine"),
        (2, "MatMul", False, "half"),
        (4, "Conv", False, "half"),
        (4, "MatMul", True, "half"),
        (8, "MatMul", False, "signed"),
    ],
)
def test_the_grid_of_a_weight(bits: int, op: str, *, integer: bool, grid: str) -> None:
    assert ORT_CPU.weight_grid(bits, op, integer_data=integer) == grid
