from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxbrecq_cli.main import main

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] image) => (float[N, 4] logits) {
    [first] c = Conv <pads = [1, 1, 1, 1]> (image, w1)
    [act] r = Relu (c)
    [second] d = Conv <pads = [1, 1, 1, 1]> (r, w2)
    [act2] s = Relu (d)
    [pool] p = GlobalAveragePool (s)
    [flat] f = Flatten (p)
    [head] logits = Gemm <transB = 1> (f, w3, b3)
}
"""
SHAPES = {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3), "w3": (4, 6)}


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left behind."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("onnxbrecq: ")
        return lines[0]


Run = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line; sees what native code writes to stderr as well."""

    def invoke(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return invoke


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small convolutional classifier with calibration and evaluation data beside it."""
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        weight = rng.normal(0, 0.4, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    images = rng.normal(0, 1, (32, 3, 8, 8)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "b3"))
    # Without a mean of their own the logits have each class win sometimes.
    (logits,) = ReferenceEvaluator(proto).run(None, {"image": images})
    proto.graph.initializer[-1].CopyFrom(numpy_helper.from_array(-logits.mean(0), "b3"))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    np.savez(tmp_path / "net.calib.npz", image=images)
    np.savez(tmp_path / "net.eval.npz", image=images, labels=rng.integers(0, 4, 32))
    return path
