import math

import numpy as np
import pytest

from onnxbrecq.errors import DataError
from onnxbrecq.validation.accuracy import mcnemar, share_interval, top1_accuracy


def test_accuracies_by_hand() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    floating = np.array([0, 1, 2, 0, 1, 0, 0, 0])  # 6 of 8
    quantized = np.array([0, 1, 2, 1, 0, 2, 0, 0])  # 5 of 8: two lost, one won
    found = top1_accuracy(labels, floating, quantized, 3)
    assert (found.float, found.quantized, found.drop) == (75.0, 62.5, 12.5)
    assert (found.metric, found.samples) == ("top-1", 8)
    assert (found.lost, found.won, found.p_value) == (2, 1, 1.0)


@pytest.mark.parametrize(
    ("lost", "won", "value"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (5, 0, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_by_hand(lost: int, won: int, value: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(value)


def test_mcnemar_of_many_pairs_is_the_normal_approximation() -> None:
    """With continuity correction its error is of the order 1 / pairs."""
    z = (10_200 - 9_800 - 1) / 20_000**0.5
    assert mcnemar(10_200, 9_800) == pytest.approx(math.erfc(z / 2**0.5), rel=1e-3)


def test_interval_of_a_share() -> None:
    """Wilson's, of 9 in 10: from its quadratic (p - 0.9)^2 = z^2 p (1 - p) / 10."""
    for bound in share_interval(9, 10):
        p = bound / 100
        assert (p - 0.9) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 10)
    low, high = share_interval(100, 100)
    assert (low < 97, high) == (True, 100.0)


def test_interval_is_that_of_a_paired_bootstrap() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 500)
    floating = np.where(random.random(500) < 0.9, labels, 0)
    quantized = np.where(random.random(500) < 0.95, floating, 1)
    found = top1_accuracy(labels, floating, quantized, 4)
    drops = 100.0 * ((floating == labels).astype(int) - (quantized == labels).astype(int))
    means = drops[random.integers(0, 500, (20000, 500))].mean(axis=1)
    # A 2.5 % quantile of 2000 draws has standard error sd * sqrt(0.025 * 0.975 / 2000) / 0.0584,
    # 0.0584 being the normal density there: 0.06 sd. Four of them, and the grid of 0.2 points.
    tolerance = 4 * 0.06 * means.std() + 0.2
    np.testing.assert_allclose(found.interval_95, np.percentile(means, [2.5, 97.5]), atol=tolerance)
    assert found.interval_95[0] < found.drop < found.interval_95[1]


def test_interval_is_the_same_each_time() -> None:
    labels = np.arange(100) % 3
    other = np.where(np.arange(100) < 20, 0, labels)
    first, second = (top1_accuracy(labels, labels, other, 3) for _ in range(2))
    assert first == second


def test_equal_predictions_have_no_interval() -> None:
    labels = np.arange(10) % 3
    assert top1_accuracy(labels, labels, labels, 3).interval_95 == (0.0, 0.0)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0, 1]), "one class index for each sample"),
        (np.array([0, 1, 3]), "indices from 0 to 2"),
        (np.array([-1, 1, 2]), "indices from 0 to 2"),
    ],
    ids=["count", "too-large", "negative"],
)
def test_labels_that_do_not_fit(labels: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        top1_accuracy(labels, np.zeros(3, np.int64), np.zeros(3, np.int64), 3)
