"""Exact integer arithmetic, against onnxruntime's kernels of the same operators and by hand."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.reference import Expected, expected

_DOMAIN = "com.microsoft"
_RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test draws the same numbers, whichever ran before it."""
    monkeypatch.setattr(sys.modules[__name__], "_RANDOM", np.random.default_rng(0))


def _ints(*shape: int, kind: type = np.uint8) -> np.ndarray:
    limits = np.iinfo(kind)
    return _RANDOM.integers(limits.min, limits.max + 1, shape).astype(kind)


def _few(*shape: int) -> np.ndarray:
    """Weights of 4 bits, which no kernel saturates on."""
    return _RANDOM.integers(-8, 8, shape).astype(np.int8)


def _node(
    op: str, inputs: Mapping[str, Any], domain: str = "", **attributes: Any
) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """A node and its inputs; an input of None is left out."""
    names = [name if value is not None else "" for name, value in inputs.items()]
    node = helper.make_node(op, names, ["y"], name=op, domain=domain)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return node, {k: np.asarray(v) for k, v in inputs.items() if v is not None}


def _run(node: onnx.NodeProto, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime's kernel makes of it; the first input is fed, the others are constants."""
    first = node.input[0] if node.op_type != "QLinearConcat" else node.input[2]
    kinds = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in values.items()}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(first, kinds[first], values[first].shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(v, k) for k, v in values.items() if k != first],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(_DOMAIN, 1)],
        ir_version=10,
    )
    found = Session(proto, optimize=False, threads=1).run({first: values[first]})["y"]
    assert isinstance(found, np.ndarray)
    return found


_S = np.float32(0.0123)
_CONV: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 4, 17), (6, 4, 3), {}),
    "2-D": ((2, 4, 9, 8), (6, 4, 3, 3), {}),
    "3-D": ((1, 3, 5, 6, 7), (4, 3, 2, 2, 3), {}),
    "strides": ((1, 4, 9, 11), (6, 4, 3, 3), {"strides": [2, 3]}),
    "pads": ((1, 4, 6, 6), (6, 4, 3, 3), {"pads": [2, 1, 0, 1]}),
    "dilations": ((1, 4, 11, 11), (6, 4, 3, 3), {"dilations": [2, 3], "pads": [1, 1, 1, 1]}),
    "groups": ((2, 6, 7, 7), (4, 3, 3, 3), {"group": 2}),
    "depthwise": ((1, 8, 7, 7), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "same": ((1, 4, 7, 8), (6, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((1, 4, 7, 8), (6, 4, 4, 3), {"auto_pad": "SAME_LOWER"}),
}


@pytest.mark.parametrize("case", _CONV)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_conv_is_what_the_kernel_computes(case: str, bias: bool) -> None:
    shape, weight, attributes = _CONV[case]
    channels = weight[0]
    scale = _RANDOM.uniform(1e-3, 1e-2, channels).astype(np.float32)
    # Sums of K products of about 70 * 5: the outputs fill half of their range.
    wide = np.float32(_S * 5e-3 * 70 * 5 * math.sqrt(math.prod(weight[1:])) / 64)
    inputs = {
        "x": _ints(*shape), "xs": _S, "xz": np.uint8(117),
        "w": _few(*weight), "ws": scale, "wz": np.zeros(channels, np.int8),
        "ys": wide, "yz": np.uint8(99),
        "b": _RANDOM.integers(-5000, 5000, channels).astype(np.int32) if bias else None,
    }  # fmt: skip
    node, values = _node("QLinearConv", inputs, **attributes)
    _near(node, values)


def _near(node: onnx.NodeProto, values: Mapping[str, np.ndarray], least: float = 0.99) -> None:
    """One step at most, and that only where a value lies between two."""
    wanted, found = expected(node, values), _run(node, values)
    assert wanted is not None
    assert wanted.value.shape == found.shape
    steps = wanted.steps(found)
    assert steps.max() <= 1
    assert (steps == 0).mean() >= least
    assert found.std() > 0  # a constant would agree with much


def test_matmuls_are_what_the_kernels_compute() -> None:
    operands = {"a": _ints(2, 5, 16), "as": _S, "az": np.uint8(3), "b": _few(16, 7), "bs": _S,
                "bz": np.int8(0)}  # fmt: skip
    node, values = _node("QLinearMatMul", {**operands, "ys": np.float32(0.05), "yz": np.uint8(128)})
    _near(node, values)


@pytest.mark.parametrize("turned", [0, 1], ids=["as it is", "transposed"])
@pytest.mark.parametrize("quantized", [True, False], ids=["integers", "float"])
def test_gemm_is_what_the_kernel_computes(turned: int, quantized: bool) -> None:
    inputs: dict[str, Any] = {
        "a": _ints(5, 16), "as": _S, "az": np.uint8(3),
        "b": _few(7, 16) if turned else _few(16, 7),
        "bs": _RANDOM.uniform(1e-3, 1e-2, 7).astype(np.float32), "bz": np.zeros(7, np.int8),
        "c": _RANDOM.integers(-500, 500, 7).astype(np.int32),
    }  # fmt: skip
    if quantized:
        inputs |= {"ys": np.float32(0.004), "yz": np.uint8(128)}
    node, values = _node("QGemm", inputs, _DOMAIN, transB=turned, alpha=1.0)
    _near(node, values)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_elementwise_is_what_the_kernel_computes(op: str) -> None:
    scale = np.float32(0.02) if op == "QLinearAdd" else np.float32(0.015)
    inputs = {"a": _ints(2, 3, 40), "as": _S, "az": np.uint8(7), "b": _ints(3, 40),
              "bs": np.float32(0.0071), "bz": np.uint8(200), "ys": scale,
              "yz": np.uint8(120)}  # fmt: skip
    _near(*_node(op, inputs, _DOMAIN))


def test_concat_brings_its_inputs_to_one_scale() -> None:
    inputs = {"ys": np.float32(0.02), "yz": np.uint8(10), "a": _ints(2, 3, 20), "as": _S,
              "az": np.uint8(7), "b": _ints(2, 5, 20), "bs": np.float32(0.031),
              "bz": np.uint8(90)}  # fmt: skip
    _near(*_node("QLinearConcat", inputs, _DOMAIN, axis=1))


@pytest.mark.parametrize("last", [0, 1], ids=["NCHW", "NHWC"])
def test_global_average_is_what_the_kernel_computes(last: int) -> None:
    inputs = {"x": _ints(3, 5, 6, 7), "xs": _S, "xz": np.uint8(7), "ys": np.float32(0.006),
              "yz": np.uint8(3)}  # fmt: skip
    _near(*_node("QLinearGlobalAveragePool", inputs, _DOMAIN, channels_last=last))


_POOLS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_shape": [3, 2], "strides": [2, 2]},
    "pads": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "pads counted": {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "count_include_pad": 1},
    "ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 0, 0]},
}


@pytest.mark.parametrize("case", _POOLS)
def test_average_pool_is_what_the_kernel_computes(case: str) -> None:
    inputs = {"x": _ints(2, 3, 8, 10), "xs": _S, "xz": np.uint8(40), "ys": np.float32(0.011),
              "yz": np.uint8(30)}  # fmt: skip
    _near(*_node("QLinearAveragePool", inputs, _DOMAIN, **_POOLS[case]))


@pytest.mark.parametrize("case", [c for c in _POOLS if "counted" not in c])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_max_pool_is_exact(case: str, kind: type) -> None:
    node, values = _node("MaxPool", {"x": _ints(2, 3, 8, 10, kind=kind)}, **_POOLS[case])
    _near(node, values, least=1.0)


@pytest.mark.parametrize("op", ["QLinearLeakyRelu", "QLinearSigmoid"])
def test_tables_are_what_the_kernel_computes(op: str) -> None:
    inputs = {"x": np.arange(256, dtype=np.uint8), "xs": np.float32(0.05), "xz": np.uint8(100),
              "ys": np.float32(0.031 if op == "QLinearLeakyRelu" else 1 / 256),
              "yz": np.uint8(20)}  # fmt: skip
    attributes = {"alpha": 0.1} if op == "QLinearLeakyRelu" else {}
    _near(*_node(op, inputs, _DOMAIN, **attributes), least=0.98)


def test_pixels_between_two_levels_round_as_floats_do() -> None:
    pixels = (np.arange(256, dtype=np.float32) - np.float32(127.5)) / np.float32(127.5)
    node, values = _node("QuantizeLinear", {"x": pixels, "s": np.float32(2 / 255),
                                            "z": np.uint8(128)})  # fmt: skip
    _near(node, values, least=1.0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16])
def test_quantizing_and_back(kind: type) -> None:
    x = _RANDOM.normal(0, 1, (4, 50)).astype(np.float32)
    scale, zero = np.float32(0.017), kind(5)
    node, values = _node("QuantizeLinear", {"x": x, "s": scale, "z": zero})
    _near(node, values)
    levels = _run(node, values)
    _near(*_node("DequantizeLinear", {"q": levels, "s": scale, "z": zero}), least=1.0)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Transpose", {"x": _ints(2, 3, 4)}, {"perm": [2, 0, 1]}),
        ("Reshape", {"x": _ints(2, 3, 4), "shape": np.array([0, -1])}, {}),
        ("Flatten", {"x": _ints(2, 3, 4)}, {}),
        ("Slice", {"x": _ints(6, 9), "b": np.array([1]), "e": np.array([9]), "a": np.array([1]),
                   "s": np.array([3])}, {}),
        ("Clip", {"x": _ints(6, 9), "low": None, "high": np.uint8(15)}, {}),
        ("Pad", {"x": _ints(3, 4), "pads": np.array([0, 1, 0, 2]), "v": np.uint8(9)}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_moving_is_exact(op: str, inputs: dict[str, Any], attributes: dict[str, Any]) -> None:
    node, values = _node(op, inputs, **attributes)
    wanted = expected(node, values)
    assert wanted is not None
    assert wanted.moved
    np.testing.assert_array_equal(wanted.value, _run(node, values))


def test_a_sum_by_hand() -> None:
    """(2 * 3 + 1 * -4) = 2 of (10 - 8) and (9 - 8), at 0.5 * 0.5 / 0.25, from 100: 102."""
    inputs = {"x": np.array([[[10], [9]]], np.uint8), "xs": np.float32(0.5), "xz": np.uint8(8),
              "w": np.array([[[3], [-4]]], np.int8), "ws": np.float32(0.5), "wz": np.int8(0),
              "ys": np.float32(0.25), "yz": np.uint8(100)}  # fmt: skip
    wanted = expected(*_node("QLinearConv", inputs))
    assert wanted is not None
    assert wanted.value.tolist() == [[[102.0]]]
    assert wanted.steps(np.array([[[99]]], np.uint8)).tolist() == [[[3.0]]]


def test_large_convolutions_are_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, weight, attributes = _CONV["dilations"]
    inputs = {"x": _ints(*shape), "xs": _S, "xz": np.uint8(117), "w": _few(*weight), "ws": _S,
              "wz": np.int8(0), "ys": np.float32(0.05), "yz": np.uint8(99)}  # fmt: skip
    node, values = _node("QLinearConv", inputs, **attributes)
    whole = expected(node, values)
    monkeypatch.setattr("onnxbrecq.validation.reference._PATCH_VALUES", 1)
    pieces = expected(node, values)
    assert whole is not None
    assert pieces is not None
    np.testing.assert_array_equal(whole.value, pieces.value)


def test_float_operators_are_not_computed() -> None:
    node, values = _node("Relu", {"x": np.ones(3, np.float32)})
    assert expected(node, values) is None
    node, values = _node("Softmax", {"x": np.ones((1, 3), np.float32)})
    assert expected(node, values) is None


def test_what_float32_cannot_hold_is_no_difference() -> None:
    """Products beyond 3.4e38: a kernel makes infinity of them, exact arithmetic a larger number."""
    node, values = _node(
        "MatMulIntegerToFloat",
        {
            "a": np.array([[200, 100]], np.uint8),
            "b": np.array([[127, -127, 1], [127, -127, 0]], np.int8),
            "a_scale": np.float32(1),
            "b_scale": np.float32(1e35),
            "a_zero_point": np.uint8(0),
        },
        _DOMAIN,
    )
    wanted = expected(node, values)
    assert wanted is not None
    found = np.array([[np.inf, -np.inf, 2e37]], np.float32)
    assert wanted.steps(found).tolist() == [[0.0, 0.0, 0.0]]
    assert np.isfinite(wanted.steps(np.full((1, 3), np.nan, np.float32))).all()
    assert (wanted.steps(-found) > 1).all()


def test_whatever_nan_is_quantized_to_is_right() -> None:
    node, values = _node(
        "QuantizeLinear", {"x": [np.nan, 1.0], "s": np.float32(0.5), "z": np.uint8(0)}
    )
    values["x"] = values["x"].astype(np.float32)
    wanted = expected(node, values)
    assert wanted is not None
    np.testing.assert_array_equal(wanted.steps(np.asarray([77, 3], np.uint8)), [0, 1])


@pytest.mark.parametrize("step", [np.nan, 0.0])
def test_where_a_step_is_none_what_differs_is_far(step: float) -> None:
    wanted = Expected(np.asarray([1.0, 1.0]), np.float32(step))
    np.testing.assert_array_equal(wanted.steps(np.asarray([1.0, 2.0], np.float32)), [0, 2.0**53])


def test_steps_count_alike_in_both_directions() -> None:
    wanted = Expected(np.asarray([1.0, 1.0]), np.float32(-0.5))
    np.testing.assert_array_equal(wanted.steps(np.asarray([2.0, 0.0], np.float32)), [2, 2])
