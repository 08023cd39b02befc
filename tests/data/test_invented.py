import numpy as np
import pytest

from onnxbrecq.data.invented import dead_leaves, noise, tokens


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_have_unit_statistics_and_follow_the_seed(channels: int) -> None:
    images = dead_leaves(6, 20, 24, channels, seed=1)
    assert images.shape == (6, channels, 20, 24)
    assert images.dtype == np.float32
    # float32 sums of 2880 values.
    np.testing.assert_allclose(images.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((0, 2, 3)), 1, atol=1e-4)
    assert np.array_equal(images, dead_leaves(6, 20, 24, channels, seed=1))
    assert not np.array_equal(images, dead_leaves(6, 20, 24, channels, seed=2))


def test_images_are_smooth_as_photographs_are() -> None:
    """Neighbours are alike: of white noise, their difference has twice the variance."""
    images = dead_leaves(8, 32, 32, 3, seed=0)
    assert np.var(np.diff(images, axis=3)) < np.var(images)


def test_token_ids_stay_in_the_vocabulary() -> None:
    ids = tokens((50, 40), 7, seed=0)
    assert set(ids.flat) == set(range(7))


def test_noise_is_unit_gaussian() -> None:
    assert noise((1000, 5), seed=0).std() == pytest.approx(1, abs=0.05)
