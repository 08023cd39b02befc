import numpy as np
import onnx.parser
import pytest

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import DataError, ModelError
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.fidelity import SQNR_CEILING_DB, compare, fidelity, sqnr_db


def session(text: str) -> Session:
    header = '<ir_version: 10, opset_import: ["": 21]>'
    return Session(onnx.parser.parse_model(f"{header} {text}"), threads=1)


def scaled(factor: float) -> Session:
    return session(
        f"""g (float[N, 3] x) => (float[N, 3] y) <float[1] a = {{{factor}}}> {{ y = Mul (x, a) }}"""
    )


@pytest.fixture
def samples() -> Dataset:
    return Dataset({"x": np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)})


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_sqnr_of_a_known_error(samples: Dataset, batch: int) -> None:
    # An error of half the signal everywhere, exact in float32: 20 log10(2) dB in any batches.
    found = fidelity(compare(scaled(1.0), scaled(0.5), samples, batch))
    assert found is not None
    assert found.sqnr_db == pytest.approx(20 * np.log10(2), abs=1e-9)
    assert (found.agreement, found.samples) == (100.0, 7)


def test_agreement_counts_equal_classes(samples: Dataset) -> None:
    x = samples.inputs["x"]
    found = fidelity(compare(scaled(1.0), scaled(-1.0), samples, 2))
    assert found is not None
    expected = 100 * np.mean(x.argmax(axis=1) == x.argmin(axis=1))
    assert found.agreement == expected == 0.0


def test_equal_outputs_are_as_near_as_float32_tells(samples: Dataset) -> None:
    found = fidelity(compare(scaled(1.0), scaled(1.0), samples, 4))
    assert found is not None
    assert found.sqnr_db == SQNR_CEILING_DB


@pytest.mark.parametrize(
    ("signal", "noise", "decibels"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 10.0, -10.0),
        (0.0, 1.0, -SQNR_CEILING_DB),
        (1.0, 0.0, SQNR_CEILING_DB),
        (1.0, 1e-30, SQNR_CEILING_DB),
    ],
)
def test_sqnr_is_finite(signal: float, noise: float, decibels: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(decibels)


def test_outputs_that_are_no_class_scores_have_no_agreement(samples: Dataset) -> None:
    text = """g (float[N, 3] x) => (float[1, N, 3] y, int64[2] s) {
        axes = Constant <value_ints = [0]> ()
        y = Unsqueeze (x, axes)
        s = Shape (x)
    }"""
    image = session(text)
    comparison = compare(image, image, samples, 7)
    found = fidelity(comparison)
    assert found is not None
    assert found.agreement is None
    assert set(comparison.signal) == {"y"}


def test_not_a_number_is_an_error_that_names_the_output(samples: Dataset) -> None:
    root = session("g (float[N, 3] x) => (float[N, 3] y) { y = Sqrt (x) }")
    with pytest.raises(ModelError, match=r"output 'y': .* of 21 values .* NaN"):
        compare(scaled(1.0), root, samples, 7)


def test_where_the_reference_is_not_finite_nothing_is_compared(samples: Dataset) -> None:
    root = session("g (float[N, 3] x) => (float[N, 3] y) { y = Sqrt (x) }")
    comparison = compare(root, scaled(1.0), samples, 7)
    x = samples.inputs["x"].astype(np.float64)
    assert comparison.signal["y"] == pytest.approx(x[x > 0].sum(), rel=1e-6)  # sqrt squared


def test_outputs_of_data_dependent_shape_are_left_out(samples: Dataset) -> None:
    text = """g (float[N, 3] x) => (float[N, 3] y, int64[2, M] z, float[K] p)
        <float[1] a = {%s}> {
            y = Neg (x)
            moved = Add (x, a)
            positive = Relu (moved)
            z = NonZero (positive)
            flat = Constant <value_ints = [-1]> ()
            row = Reshape (positive, flat)
            zero = Constant <value_float = 0.0> ()
            kept = Greater (row, zero)
            p = Compress (row, kept)
        }"""
    comparison = compare(session(text % "0.0"), session(text % "10.0"), samples, 7)
    assert comparison.uncompared == ("p",)
    assert set(comparison.signal) == {"y"}


def test_no_samples_is_a_data_error() -> None:
    with pytest.raises(DataError, match="holds no samples"):
        compare(scaled(1.0), scaled(1.0), Dataset({"x": np.zeros((0, 3), np.float32)}), 4)
