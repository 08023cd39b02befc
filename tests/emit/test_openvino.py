"""What OpenVINO itself makes of files for target openvino; skipped where it is not installed.

It is no dependency; CONTRIBUTING.md has the command that installs it in a folder of its own and
runs these tests, and `.ci/run` does so.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import TARGETS
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.runtime.session import Session

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.mark.parametrize("target", ["openvino", "portable", "tensorrt"])
@pytest.mark.parametrize("weights", [8, 4, 2])
def test_convolutions_run_in_integers(
    target: str, weights: int, model: Model, data: Dataset, tmp_path: Path
) -> None:
    recipe = Recipe(weights=weights, target=target)
    proto = emit(model, calibrate(model, find_points(model), data, recipe), TARGETS[target])
    onnx.save(proto, tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(
        tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    layers = [i for i in infos if _text(i["layerType"]) == "Convolution"]
    assert len(layers) == 3
    assert {_text(info["runtimePrecision"]) for info in layers} <= {"u8", "i8"}

    made = next(iter(compiled({"x": data.inputs["x"]}).values()))
    wanted = Session(proto, optimize=False, threads=1).run(data.inputs)["logits"]
    assert made.shape == wanted.shape
    if saturation_free():
        # Three layers, a step of 1/256 each at most where roundings differ.
        assert np.square(made - wanted).sum() < 1e-2 * np.square(wanted).sum()


def _text(value: object) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
