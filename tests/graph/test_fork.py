"""A node of its own in front of layers that share their data."""

import dataclasses

import numpy as np

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.session import Session

_RECIPE = Recipe(weights=4, activations=4)


def test_the_forked_model_computes_the_same(model: Model, data: Dataset) -> None:
    outputs = [
        Session(m.proto, optimize=False).run(data.inputs)["logits"] for m in (model, fork(model, 4))
    ]
    np.testing.assert_array_equal(*outputs)


def test_what_is_added_has_8_bits_and_what_the_layer_reads_4(model: Model, data: Dataset) -> None:
    forked = fork(model, 4)
    plan = calibrate(forked, find_points(forked), data, _RECIPE)
    assert plan.tensors["r"].qtype.bits == 8
    assert plan.tensors["r/read"].qtype.bits == 4
    assert plan.tensors["c"].qtype.bits == 4  # only a layer reads it
    assert calibrate(model, find_points(model), data, _RECIPE).tensors["r"].qtype.bits == 4


def test_the_fork_runs_on_integers(model: Model, data: Dataset) -> None:
    forked = fork(model, 4)
    proto = emit(forked, calibrate(forked, find_points(forked), data, _RECIPE), ORT_CPU_AVX2)
    nodes = executed(proto)
    assert {"QLinearLeakyRelu", "QLinearAdd"} <= {node.op for node in nodes}
    assert not {"LeakyRelu", "Identity"} & {node.op for node in nodes}
    assert None not in integer_kernels(tuple(find_points(model).layers), nodes).values()


def test_a_name_that_is_taken_is_left_alone(model: Model) -> None:
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    for node in proto.graph.node:
        node.input[:] = ["r/read" if name == "c" else name for name in node.input]
        node.output[:] = ["r/read" if name == "c" else name for name in node.output]
    for info in proto.graph.value_info:
        info.name = "r/read" if info.name == "c" else info.name
    forked = fork(dataclasses.replace(model, proto=proto), 4)
    assert "r/read_" in forked.producer


def test_nothing_is_forked_where_nothing_is_shared(model: Model) -> None:
    forked = fork(model, 4)
    assert fork(forked, 4) is forked
    assert fork(model, 8) is fork(model, None) is model
