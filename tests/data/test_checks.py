import re

import numpy as np
import onnx.parser
import pytest

from onnxbrecq.data.checks import checked
from onnxbrecq.errors import DataError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_arrays_that_fit_are_passed_on(pair: Model) -> None:
    x, ids = ones(5, 7, 2), np.zeros((5, 3), np.int64)
    data = checked(pair, {"x": x, "ids": ids, "other": ones(1)}, None, "here")
    assert list(data.inputs) == ["x", "ids"]
    assert np.array_equal(data.inputs["x"], x)
    assert (len(data), data.labels, data.origin) == (5, None, "here")


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
def test_labels_become_int64(single: Model, dtype: type) -> None:
    data = checked(single, {"image": ones(3, 3, 4, 6)}, np.array([2, 0, 1], dtype), "here")
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((2, 3, 4, 6)), r"is float64, but the model's input is float32.*astype\('float32'"),
        (np.ones((2, 3, 4, 6), ">f4"), r"is >f4, but the model's input is float32"),
        (ones(2, 3, 4, 5), r"shape \[2, 3, 4, 5\].*\[samples, 3, 4, 6\]"),
        (ones(2, 3, 4), r"shape \[2, 3, 4\].*\[samples, 3, 4, 6\]"),
        (ones(), r"shape \[\].*\[samples, 3, 4, 6\]"),
        (ones(0, 3, 4, 6), "holds no samples"),
    ],
    ids=["type", "endian", "size", "rank", "scalar", "empty"],
)
def test_an_array_that_does_not_fit(single: Model, array: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=f"^here: .*{says}"):
        checked(single, {"image": array}, None, "here")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sample", [0, 63, 64, 99])
def test_the_first_sample_that_is_not_finite_is_named(
    single: Model, value: float, sample: int
) -> None:
    array = ones(100, 3, 4, 6)
    array[sample:, 1, 2, 3] = value
    with pytest.raises(DataError, match=rf"'image' holds NaN .* in sample {sample};"):
        checked(single, {"image": array}, None, "here")


def test_a_wrong_name_lists_what_is_wanted_and_found(pair: Model) -> None:
    says = re.escape("has no array 'ids'; wanted: ['x', 'ids'], found: ['idx', 'x']")
    with pytest.raises(DataError, match=says):
        checked(pair, {"x": ones(1, 1, 2), "idx": ones(1)}, None, "here")


def test_inputs_with_different_numbers_of_samples(pair: Model) -> None:
    arrays = {"x": ones(5, 1, 2), "ids": np.zeros((4, 3), np.int64)}
    with pytest.raises(DataError, match=r"numbers of samples: \{'x': 5, 'ids': 4\}"):
        checked(pair, arrays, None, "here")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(3), "labels are float64"),
        (np.array([True, False, True]), "labels are bool"),
        (np.zeros((3, 1), np.int64), r"labels have shape \[3, 1\] for 3 samples"),
        (np.zeros(2, np.int64), r"labels have shape \[2\] for 3 samples"),
        (np.array([0, -1, 2]), "labels run from -1 to 2"),
        (np.array([0, 2**63, 2], np.uint64), "labels run from 0 to 9223372036854775808"),
    ],
    ids=["float", "bool", "column", "count", "negative", "huge"],
)
def test_labels_that_do_not_fit(single: Model, labels: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=f"^here: {says}"):
        checked(single, {"image": ones(3, 3, 4, 6)}, labels, "here")


def test_inputs_fixed_to_different_numbers_of_samples() -> None:
    model = from_proto(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]>'
            "g (float[4, 2] x, float[3, 2] z) => (float[7, 2] y) { y = Concat <axis = 0> (x, z) }"
        )
    )
    with pytest.raises(DataError, match="'z' takes exactly 3 samples at a time, another input 4"):
        checked(model, {"x": ones(8, 2), "z": ones(8, 2)}, None, "here")
