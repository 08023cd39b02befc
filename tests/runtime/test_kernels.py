"""Which kernels onnxruntime picks for graphs as emission writes them."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq.runtime.kernels import ExecutedNode, executed, integer_kernels


class Graph:
    """Nodes and initializers of a QDQ graph, with seeded weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def quantize(self, source: str, target: str, *, top: int | None = None) -> str:
        """Q, below 8 bits Clip, DQ; scale 0.1, zero point 0."""
        pair = [
            self.constant(f"{target}.s", np.array(0.1, np.float32)),
            self.constant(f"{target}.z", np.array(0, np.uint8)),
        ]
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *pair], [f"{target}.q"]))
        levels = f"{target}.q"
        if top is not None:
            limit = self.constant(f"{target}.top", np.array(top, np.uint8))
            self.nodes.append(helper.make_node("Clip", [levels, "", limit], [f"{target}.c"]))
            levels = f"{target}.c"
        self.nodes.append(helper.make_node("DequantizeLinear", [levels, *pair], [target]))
        return target

    def weight(self, name: str, shape: tuple[int, ...], axis: int) -> str:
        """INT4 initializer, Cast to INT8, DequantizeLinear per channel."""
        codes = self.random.integers(-8, 8, shape).astype(ml_dtypes.int4)
        scale = np.full(shape[axis], 0.02, np.float32)
        inputs = [
            f"{name}.i",
            self.constant(f"{name}.s", scale),
            self.constant(f"{name}.z", np.zeros(shape[axis], np.int8)),
        ]
        self.constant(f"{name}.p", codes)
        self.nodes += [
            helper.make_node("Cast", [f"{name}.p"], [f"{name}.i"], to=TensorProto.INT8),
            helper.make_node("DequantizeLinear", inputs, [name], axis=axis),
        ]
        return name

    def bias(self, name: str, size: int) -> str:
        """INT32 at the scale of activation times weight."""
        codes = self.random.integers(-50, 50, size).astype(np.int32)
        scale = np.full(size, np.float32(0.1) * np.float32(0.02), np.float32)
        inputs = [self.constant(f"{name}.i", codes), self.constant(f"{name}.s", scale)]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=0))
        return name

    def layer(self, op: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    def model(self, *outputs: str) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "kernels",
            [value("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
            [value(name, TensorProto.FLOAT, None) for name in outputs],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """Convolutions (plain, depthwise, float), a Gemm and two MatMuls behind a pool."""
    g = Graph()
    x = g.quantize("x", "xq")
    conv = g.layer("Conv", "conv", [x, g.weight("w1", (8, 4, 3, 3), 0), g.bias("b1", 8)])
    a = g.quantize(conv, "a", top=15)
    depthwise = g.layer("Conv", "depthwise", [a, g.weight("w2", (8, 1, 3, 3), 0)], group=8)
    b = g.quantize(depthwise, "b")
    wf = g.constant("wf", g.random.normal(size=(8, 8, 1, 1)).astype(np.float32))
    floating = g.layer("Conv", "floating", [b, wf])
    pool = g.quantize(g.layer("GlobalAveragePool", "pool", [b]), "p")
    flat = g.quantize(g.layer("Flatten", "flat", [pool]), "f")
    gemm = g.layer("Gemm", "gemm", [flat, g.weight("w3", (6, 8), 0), g.bias("b3", 6)], transB=1)
    c = g.quantize(gemm, "c")
    matmul = g.layer("MatMul", "matmul", [c, g.weight("w4", (6, 5), 1)])
    d = g.quantize(matmul, "d")
    open_end = g.layer("MatMul", "open_end", [d, g.weight("w5", (5, 4), 1)])
    added = g.layer("MatMul", "added", [d, g.weight("w6", (5, 4), 1)])
    sum_ = g.layer("Add", "add", [added, g.bias("b6", 4)])
    return g.model(floating, open_end, sum_)


KERNELS = {
    "conv": "QLinearConv",
    "depthwise": "QLinearConv",
    "floating": None,
    "gemm": "QGemm",
    "matmul": "QLinearMatMul",
    "open_end": "MatMulIntegerToFloat",
    "added": "QGemm",
}


@pytest.mark.parametrize("on_disk", [True, False], ids=["file", "memory"])
def test_names_survive_fusion(network: onnx.ModelProto, on_disk: bool, tmp_path: Path) -> None:
    source: onnx.ModelProto | Path = network
    if on_disk:
        source = tmp_path / "network.onnx"
        onnx.save(network, source)
    assert integer_kernels(list(KERNELS), executed(source, threads=1)) == KERNELS


def test_gemm_needs_the_zero_point_of_its_weight(network: onnx.ModelProto) -> None:
    """onnxruntime 1.32 leaves a Gemm float if the weight's DequantizeLinear has two inputs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(network)
    for node in bare.graph.node:
        if node.output[0] == "w3":
            del node.input[2]
    kernels = integer_kernels(list(KERNELS), executed(bare, threads=1))
    assert kernels == {**KERNELS, "gemm": None}


def test_weight_decoding_is_folded_at_load(network: onnx.ModelProto) -> None:
    assert "Cast" in {node.op_type for node in network.graph.node}
    assert "Cast" not in {node.op for node in executed(network, threads=1)}


def test_subgraphs_are_executed_too() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
        g (float[2] x, bool c) => (float[2] y) {
            [choose] y = If (c) <
                then_branch = t () => (float[2] a) { [inner] a = Neg (x) },
                else_branch = e () => (float[2] b) { [other] b = Abs (x) }
            >
        }"""
    nodes = executed(onnx.parser.parse_model(text), threads=1)
    assert {node.name for node in nodes} >= {"choose", "inner", "other"}


@pytest.mark.parametrize(
    ("nodes", "kernel"),
    [
        ([], None),
        ([("a", "QLinearConv")], "QLinearConv"),
        ([("a_token_12", "QLinearConv")], "QLinearConv"),
        ([("a/MatMulAddFusion_token_3", "QGemm")], "QGemm"),
        ([("a", "Conv")], None),
        ([("a", "QLinearConv"), ("a_token_1", "Conv")], None),
        ([("ab", "QLinearConv")], None),
        ([("", "QLinearConv")], None),
    ],
    ids=["absent", "kept", "layout", "fused", "float", "ambiguous", "longer-name", "unnamed"],
)
def test_a_layer_is_found_by_its_name_or_counts_as_float(
    nodes: list[tuple[str, str]], kernel: str | None
) -> None:
    found = integer_kernels(["a"], [ExecutedNode(name, op, "") for name, op in nodes])
    assert found == {"a": kernel}


def test_a_name_that_ends_like_an_appended_one_is_its_own() -> None:
    nodes = [ExecutedNode("a", "Conv", ""), ExecutedNode("a_token_1", "QLinearConv", "")]
    assert integer_kernels(["a", "a_token_1"], nodes) == {"a": None, "a_token_1": "QLinearConv"}
