"""The executed nodes against exact arithmetic, on a network with a skip."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU, ORT_CPU_AVX2, Target
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.validation import node_parity as module
from onnxbrecq.validation.node_parity import node_parity
from onnxbrecq.validation.reference import Expected, Values, expected


def _emitted(
    model: Model, data: Dataset, weights: int, activations: int, target: Target = ORT_CPU_AVX2
) -> onnx.ModelProto:
    forked = fork(model, activations)
    recipe = Recipe(weights=weights, activations=activations, target=target.name)
    return emit(forked, calibrate(forked, find_points(forked), data, recipe), target)


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (2, 4)])
def test_integer_kernels_are_exact_but_for_ties(
    weights: int, activations: int, model: Model, data: Dataset
) -> None:
    found = node_parity(_emitted(model, data, weights, activations), data, 16, threads=1)
    assert found.samples == 64
    assert found.max_steps <= 1
    assert found.mismatched_fraction <= 1e-3
    assert found.beyond_one_step == ()
    compared = {operator.op for operator in found.operators}
    assert {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= compared
    assert found.float_operators == {}


def test_what_only_moves_does_not_dilute_the_fraction(model: Model, data: Dataset) -> None:
    found = node_parity(_emitted(model, data, 8, 8), data.head(4), 4, threads=1)
    moving = ("Transpose", "Flatten", "Clip")
    elements = sum(o.elements for o in found.operators if o.op not in moving)
    differing = sum(
        round(o.mismatched_fraction * o.elements) for o in found.operators if o.op not in moving
    )
    assert any(o.op in moving for o in found.operators)
    assert found.mismatched_fraction == differing / elements


def test_a_kernel_that_is_off_is_named(
    model: Model, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(node: onnx.NodeProto, values: Values) -> Expected | None:
        found = expected(node, values)
        if node.op_type != "QLinearAdd" or found is None:
            return found
        return dataclasses.replace(found, value=np.asarray(found.value) - 3)

    monkeypatch.setattr(module, "expected", shifted)
    found = node_parity(_emitted(model, data, 8, 8), data.head(4), 2, threads=1)
    (add,) = found.beyond_one_step
    assert (add.op, add.max_steps, add.mismatched_fraction) == ("QLinearAdd", 3, 1.0)
    assert found.max_steps == 3


def test_saturating_products_show_where_they_are(model: Model, data: Dataset) -> None:
    """Weights of 127 and data of 255 throughout: sums that signed kernels without VNNI lose."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) { [conv] y = Conv (x, w) }"""
    proto = onnx.parser.parse_model(text)
    weight = np.ones((4, 4, 1, 1), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    ones = Dataset({"x": np.ones((8, 4, 4, 4), np.float32)})
    net = from_proto(proto)
    avoided = node_parity(_emitted(net, ones, 8, 8), ones, 8, threads=1)
    assert avoided.max_steps <= 1
    lost = node_parity(_emitted(net, ones, 8, 8, ORT_CPU), ones, 8, threads=1)
    assert (lost.beyond_one_step == ()) is saturation_free()


def test_float_operators_are_counted(data: Dataset) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
        a = Conv (x, w)
        b = Tanh (a)
        y = Conv (b, v)
    }"""
    proto = onnx.parser.parse_model(text)
    for name in ("w", "v"):
        weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    found = node_parity(_emitted(from_proto(proto), data, 8, 8), data.head(2), 2, threads=1)
    assert found.float_operators == {"Tanh": 1}
    assert found.nodes > 2
