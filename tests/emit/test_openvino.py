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
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.runtime.openvino import OpenVino
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.validate import validate

pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.mark.parametrize("target", ["openvino", "portable", "tensorrt"])
@pytest.mark.parametrize("weights", [8, 4, 2])
def test_convolutions_run_in_integers(
    target: str, weights: int, model: Model, data: Dataset, tmp_path: Path
) -> None:
    recipe = Recipe(weights=weights, target=target)
    proto = emit(model, calibrate(model, find_points(model), data, recipe), TARGETS[target])
    onnx.save(proto, tmp_path / "m.onnx")
    opened = OpenVino(tmp_path / "m.onnx", timed=True)
    made = opened.run(data.inputs)["logits"]
    layers = [node for node in opened.executed() if node.op == "Convolution"]
    assert [node.arithmetic for node in layers] == ["integer"] * 3

    wanted = Session(proto, optimize=False, threads=1).run(data.inputs)["logits"]
    assert made.shape == wanted.shape
    if saturation_free() or target != "tensorrt":  # for which scales do not heed this processor
        # Three layers, a step of 1/256 each at most where roundings differ.
        assert np.square(made - wanted).sum() < 1e-2 * np.square(wanted).sum()


def test_the_result_tells_of_both_runtimes(model: Model, data: Dataset, tmp_path: Path) -> None:
    recipe = Recipe(weights=2, target="openvino")
    proto = emit(model, calibrate(model, find_points(model), data, recipe), TARGETS["openvino"])
    onnx.save(proto, tmp_path / "m.onnx")
    found = validate(tmp_path / "m.onnx", model, samples=data, target="openvino", threads=1)
    here, there = found.execution
    assert (here.provider, there.provider) == ("CPUExecutionProvider", "OpenVINO CPU")
    assert here.parity is None
    assert there.integer_macs_fraction == here.integer_macs_fraction == 1
    assert there.float_nodes == ()
    assert {node.arithmetic for node in there.nodes} >= {"integer"}
    assert sum(node.share for node in there.nodes) == pytest.approx(1)
    assert there.speedup is not None
    assert there.parity is not None
    assert there.parity.divergence is not None
    assert there.parity.divergence.nodes >= 3
    assert there.parity.divergence.last is not None
    assert there.parity.agreement is not None
    assert there.parity.agreement > 95
    assert there.parity.divergence.last.max_steps <= 3


def test_a_model_that_it_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"m\.onnx: OpenVINO .* cannot load the model: "):
        OpenVino(tmp_path / "m.onnx")
