from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.model import Model
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.parity import SAMPLES, output_scales, parity


def plain(path: Path) -> Session:
    """The model as written."""
    return Session(path, optimize=False, threads=1)


def test_differences_are_counted_in_steps(
    quantized: Path, shifted: onnx.ModelProto, samples: Dataset
) -> None:
    """The other session's output lies two steps off everywhere: the true ones add a tie or none."""
    found = parity(quantized, plain(quantized), Session(shifted, threads=1), samples, 16)
    assert found.max_steps in (2, 3)
    assert found.mismatched_fraction == 1.0
    assert found.steps is not None
    assert sum(found.steps.values()) == 1.0
    assert found.steps["2"] > 0.9
    assert found.agreement == 100.0


def test_optimised_session_differs_by_rounding_ties_at_most(
    quantized: Path, samples: Dataset
) -> None:
    found = parity(quantized, plain(quantized), Session(quantized, threads=1), samples, 16)
    assert found.max_steps is not None
    assert found.max_steps <= 1
    assert found.mismatched_fraction is not None
    assert 0 <= found.mismatched_fraction < 0.1


def test_float_outputs_have_agreement_only(
    reference: Model, samples: Dataset, tmp_path: Path
) -> None:
    onnx.save(reference.proto, tmp_path / "float.onnx")
    path = tmp_path / "float.onnx"
    found = parity(path, plain(path), Session(path, threads=1), samples, 16)
    assert (found.max_steps, found.mismatched_fraction, found.agreement) == (None, None, 100.0)


def test_samples_are_limited(quantized: Path) -> None:
    x = np.zeros((SAMPLES + 50, 4), np.float32)
    seen: list[int] = []
    parity(
        quantized,
        plain(quantized),
        Session(quantized, threads=1),
        Dataset({"x": x}),
        32,
        progress=lambda stage, done, total, detail="": seen.append(total),
    )
    assert set(seen) == {SAMPLES}


def test_scale_of_an_output_is_found_by_its_producer(shifted: onnx.ModelProto) -> None:
    assert output_scales(shifted) == {"y": 0.25}


def test_scales_per_channel_broadcast_along_their_axis() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
        g (int8[N, 3, 2] x) => (float[N, 3, 2] y, float[N, 3, 2] z)
        <float[3] s = {1.0, 2.0, 3.0}> {
            y = DequantizeLinear <axis = 1> (x, s)
            z = Neg (y)
        }"""
    scales = output_scales(onnx.parser.parse_model(text))
    assert list(scales) == ["y"]
    np.testing.assert_array_equal(scales["y"], np.array([1, 2, 3], np.float32).reshape(1, 3, 1))
