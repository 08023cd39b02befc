"""Samples in batches, for some models in whole ones only."""

import numpy as np
import pytest

from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.errors import DataError


@pytest.mark.parametrize(
    ("most", "sizes"), [(None, [3, 3, 1]), (4, [3, 1]), (9, [3, 3, 1])], ids=["all", "some", "more"]
)
def test_batches_of_the_first_samples(most: int | None, sizes: list[int]) -> None:
    data = Dataset({"x": np.arange(14).reshape(7, 2), "y": np.arange(7)})
    batches = list(data.batches(3, most))
    assert [len(feed["y"]) for feed in batches] == sizes
    joined = np.concatenate([feed["x"] for feed in batches])
    np.testing.assert_array_equal(joined, data.inputs["x"][: sum(sizes)])


def _samples(count: int) -> Dataset:
    return Dataset({"x": np.arange(count)}, np.arange(count), "here")


@pytest.mark.parametrize(("batch", "kept"), [(None, 10), (1, 10), (4, 8), (5, 10)])
def test_what_fills_no_batch_is_left_out(batch: int | None, kept: int) -> None:
    found = _samples(10).whole(batch)
    assert len(found) == kept
    assert found.labels is not None
    assert len(found.labels) == kept


def test_less_than_one_batch_is_refused() -> None:
    said = r"here: holds 3 samples.*exactly 4 at a time; give at least 4"
    with pytest.raises(DataError, match=said):
        _samples(3).whole(4)


@pytest.mark.parametrize(("most", "kept"), [(1, 4), (4, 4), (7, 4), (9, 8)])
def test_some_samples_are_whole_batches_and_at_least_one(most: int, kept: int) -> None:
    assert whole(most, 4) == kept
