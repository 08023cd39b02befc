"""A saved plan makes what quantize wrote, for its own target and for others."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emit_plan
from onnxbrecq.errors import EmissionError, OutputError, PlanError, RecipeError
from onnxbrecq.plan import QuantPlan
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.runtime.session import Session

_RECIPE = Recipe(threads=1, reconstruction=Reconstruction(iterations=10, batch_size=8))


@pytest.fixture
def path(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    file = tmp_path / "net.onnx"
    onnx.save(proto, file)
    return file


def _saved(path: Path, data: Dataset, **asked: object) -> Path:
    """The plan of a quantization with those settings; the model lies at its default place."""
    recipe = dataclasses.replace(_RECIPE, **asked)  # type: ignore[arg-type]
    plan = path.with_name("net.plan")
    onnxbrecq.quantize(path, data, recipe, plan=plan)
    return plan


@pytest.mark.parametrize(
    "asked",
    [
        {"weights": 4, "activations": 8},
        {"weights": 2, "activations": 4},  # the model is forked
        {"weights": 4, "activations": None},
        {"weights": 8, "target": "tensorrt"},
        {"weights": 4, "activations": 16, "target": "qnn"},
        {"weights": 3, "target": "portable"},
    ],
    ids=str,
)
def test_emit_writes_the_bytes_that_quantize_wrote(
    asked: dict[str, object], path: Path, data: Dataset
) -> None:
    plan = _saved(path, data, **asked)
    again = path.with_name("again.onnx")
    found = emit_plan(path, plan, output=again)
    assert again.read_bytes() == path.with_name("net.quant.onnx").read_bytes()
    assert found.target == asked.get("target", found.target)
    assert found.as_json()["size"]["quantized_bytes"] == again.stat().st_size


def test_another_target_computes_the_same(path: Path, data: Dataset) -> None:
    plan = _saved(path, data, target="ort-cpu")
    output = path.with_name("portable.onnx")
    found = emit_plan(path, plan, "portable", output=output)
    assert (found.target, found.output.opset) == ("portable", 13)
    made, first = (
        Session(file, optimize=False, threads=1).run(data.inputs)["logits"]
        for file in (output, path.with_name("net.quant.onnx"))
    )
    np.testing.assert_array_equal(made, first)


def test_a_target_that_forbids_a_decision_writes_nothing(path: Path, data: Dataset) -> None:
    plan = _saved(path, data, target="ort-cpu")
    output = path.with_name("other.onnx")
    with pytest.raises(EmissionError, match="affine grid of 8-bit activations"):
        emit_plan(path, plan, "tensorrt", output=output)
    assert not output.exists()


def test_an_unknown_target(path: Path) -> None:
    plan = path.with_name("p")
    QuantPlan().save(plan)
    with pytest.raises(RecipeError, match="target = 'tpu': choose one of ort-cpu"):
        emit_plan(path, plan, "tpu")


def test_another_models_plan_is_refused(path: Path, data: Dataset) -> None:
    plan = _saved(path, data, target="ort-cpu")
    proto = onnx.load(path)
    proto.doc_string = "another"
    onnx.save(proto, path)
    with pytest.raises(PlanError, match=r"net\.plan: made for a model with sha256 [0-9a-f]{12}, "):
        emit_plan(path, plan, force=True)


@pytest.mark.parametrize("what", ["weight", "activation", "bias"])
def test_a_plan_of_what_is_not_there_is_refused(what: str, path: Path, data: Dataset) -> None:
    file = _saved(path, data, target="ort-cpu")
    plan = QuantPlan.load(file)
    weight = plan.tensors["w1"]
    assert weight.levels is not None
    wrong = {
        "weight": plan.updated({"w1": dataclasses.replace(weight, levels=weight.levels[:4])}),
        "activation": plan.updated({"nowhere": plan.tensors["x"]}),
        "bias": plan.updated({}, {"b1": np.zeros(3, np.float32)}),
    }
    wrong[what].save(file)
    with pytest.raises(PlanError, match=r"net\.plan: the model has no "):
        emit_plan(path, file, force=True)


def test_nothing_is_replaced_unasked(path: Path, data: Dataset) -> None:
    plan = _saved(path, data, target="ort-cpu")
    with pytest.raises(OutputError, match="exists already"):
        emit_plan(path, plan)
    with pytest.raises(OutputError, match="exists already"):
        onnxbrecq.quantize(path, data, _RECIPE, output=path.with_name("o.onnx"), plan=plan)
    with pytest.raises(OutputError, match="is the input itself"):
        emit_plan(path, plan, output=plan, force=True)
