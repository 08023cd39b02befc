import numpy as np
import pytest

from onnxbrecq.data.dataset import Dataset


@pytest.mark.parametrize(
    ("most", "sizes"), [(None, [3, 3, 1]), (4, [3, 1]), (9, [3, 3, 1])], ids=["all", "some", "more"]
)
def test_batches_of_the_first_samples(most: int | None, sizes: list[int]) -> None:
    data = Dataset({"x": np.arange(14).reshape(7, 2), "y": np.arange(7)})
    batches = list(data.batches(3, most))
    assert [len(feed["y"]) for feed in batches] == sizes
    joined = np.concatenate([feed["x"] for feed in batches])
    np.testing.assert_array_equal(joined, data.inputs["x"][: sum(sizes)])
