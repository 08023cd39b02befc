"""The detector of the fixtures: what of it runs on integers, and what shares a scale."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points, find_points
from onnxbrecq.plan import QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.kernels import executed, integer_kernels

_PATH = Path(__file__).parents[2] / "fixtures" / "detector.onnx"

Detector = tuple[Model, Points, QuantPlan]


@pytest.fixture(scope="module")
def detector() -> Detector:
    model = fork(load(_PATH), 4)
    with np.load(_PATH.with_suffix(".calib.npz")) as file:
        data = Dataset({"input": file["input"][:16]})
    points = find_points(model)
    return model, points, calibrate(model, points, data, Recipe(weights=4, activations=4))


def test_boxes_and_scores_have_a_scale_each_on_every_level(detector: Detector) -> None:
    model, points, plan = detector
    heads = [x for x in points.layers.values() if x.edge and x.data not in model.inputs]
    made = [next(n.output[0] for n in model.nodes if n.name == head.node) for head in heads]
    assert len({points.points[name].group for name in made}) == len(made) == 4
    assert len({float(plan.tensors[name].scale) for name in made}) == 4
    assert {plan.tensors[name].qtype.bits for name in made} == {8}
    joined = [node for node in model.nodes if node.op_type == "Concat"]
    assert not any(name in points.points for node in joined for name in node.output)


def test_both_levels_have_the_head_s_one_decision(detector: Detector) -> None:
    _, points, plan = detector
    shared = [p for p in points.points.values() if p.kind == "weight" and len(p.layers) > 1]
    assert Counter(point.group for point in shared).most_common()[-1][1] == 2
    assert len(shared) == 8  # two layers of the tower, distances, logits: on two levels
    assert all(plan.tensors[point.tensor] is plan.tensors[point.group] for point in shared)


def test_layers_run_on_integers_and_decoding_in_float(detector: Detector) -> None:
    model, points, plan = detector
    nodes = executed(emit(model, plan, ORT_CPU_AVX2), threads=1)
    assert None not in integer_kernels(tuple(points.layers), nodes).values()
    operators = {node.op for node in nodes}
    assert {"NonMaxSuppression", "Exp", "Sigmoid", "Concat"} <= operators
    assert not {"QLinearConcat", "QLinearSigmoid", "QLinearMul"} & operators


def test_what_suppression_chooses_is_not_learned_from(detector: Detector) -> None:
    model, _, _ = detector
    *learned, last = partition(model)
    assert not last.weights
    assert model.outputs == tuple(name for name in model.outputs if name in last.outputs)
    nodes = {name for block in learned for name in block.nodes}
    assert "NonMaxSuppression" not in {n.op_type for n in model.nodes if n.name in nodes}
