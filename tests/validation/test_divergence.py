from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph.load import load
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.validation import divergence as module
from onnxbrecq.validation.divergence import divergence

_FIXTURE = Path(__file__).parents[2] / "fixtures" / "residual.onnx"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A residual network at W8A8, and samples."""
    model = load(_FIXTURE)
    with np.load(_FIXTURE.with_name("residual.calib.npz")) as arrays:
        data = Dataset({name: arrays[name][:16] for name in model.inputs})
    plan = calibrate(model, find_points(model), data, Recipe(weights=8, threads=1))
    path = tmp_path_factory.mktemp("deployed") / "m.onnx"
    onnx.save(emit(model, plan, ORT_CPU_AVX2), path)
    return path, data


def test_sessions_differ_by_rounding_ties_at_most(deployed: tuple[Path, Dataset]) -> None:
    path, data = deployed
    found = divergence(path, data, 8, threads=1)
    assert found.samples == 16
    assert found.nodes >= 5
    assert found.last is not None
    assert found.last.mismatched_fraction < 0.1
    assert sum(found.steps.values()) == pytest.approx(1)
    assert found.steps["0"] == pytest.approx(1 - found.last.mismatched_fraction)


def test_the_first_node_that_differs_is_named(
    deployed: tuple[Path, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executed graph loses the bias of its second convolution."""
    path, data = deployed
    honest = module.optimized

    def broken(model: Path, threads: int | None = None) -> onnx.ModelProto:
        executed = honest(model, threads)
        second = [node for node in executed.graph.node if node.op_type == "QLinearConv"][1]
        second.input[8] = ""
        return executed

    monkeypatch.setattr(module, "optimized", broken)
    found = divergence(path, data, 8, threads=1)
    second = [n for n in honest(path, 1).graph.node if n.op_type == "QLinearConv"][1]
    assert found.first is not None
    assert found.first.name == second.name
    assert found.first.max_steps > 1
