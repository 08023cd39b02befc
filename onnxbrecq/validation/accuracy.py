"""Top-1 accuracy of the float and the quantized model, and how sure their difference is.

Both models see the same samples, so the bootstrap resamples pairs. A pair contributes d = -1, 0 or
1 (float right minus quantized right) to the drop: drawing N pairs with replacement is drawing the
counts of the three values from a multinomial distribution, which is what is done here.
"""

import math

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.errors import DataError
from onnxbrecq.report.result import Accuracy

_RESAMPLES = 2000
_NORMAL_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution
_SEED = 0  # the interval is part of a result that is the same for the same inputs


def top1_accuracy(
    labels: NDArray[np.int64],
    reference_classes: NDArray[np.int64],
    quantized_classes: NDArray[np.int64],
    classes: int,
) -> Accuracy:
    """Accuracies in percent, their difference in points, and its 95 % interval.

    Args:
        labels: [N] true classes.
        reference_classes: [N] the float model's.
        quantized_classes: [N] the quantized model's.
        classes: how many the model tells apart.

    Raises:
        DataError: the labels do not fit the samples or the classes.
    """
    if labels.shape != reference_classes.shape:
        raise DataError(
            f"labels have shape {labels.shape} for {len(reference_classes)} samples; "
            "give one class index for each sample"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but the model has {classes} "
            f"classes: indices from 0 to {classes - 1} are needed"
        )
    right = reference_classes == labels
    kept = quantized_classes == labels
    samples = len(labels)
    return Accuracy(
        metric="top-1",
        float=_percent(int(right.sum()), samples),
        quantized=_percent(int(kept.sum()), samples),
        drop=_percent(int(right.sum()) - int(kept.sum()), samples),
        interval_95=_interval(right, kept),
        samples=samples,
        lost=(lost := int(np.count_nonzero(right & ~kept))),
        won=(won := int(np.count_nonzero(~right & kept))),
        p_value=mcnemar(lost, won),
    )


def mcnemar(lost: int, won: int) -> float:
    """The two-sided exact p-value of McNemar's test, for the counts of discordant pairs.

    Where neither model is better, each of them falls to either side with probability 1/2.
    Source: McNemar, Psychometrika 1947; the exact form is the binomial sign test.
    """
    pairs, fewer = lost + won, min(lost, won)
    total = math.lgamma(pairs + 1) - pairs * math.log(2)
    tail = sum(
        math.exp(total - math.lgamma(k + 1) - math.lgamma(pairs - k + 1)) for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def share_interval(count: int, samples: int) -> tuple[float, float]:
    """The 95 % interval of a share of samples, in percent (Wilson, JASA 1927).

    Unlike a bootstrap it is no single point where all samples, or none, are counted.
    """
    share, z2 = count / samples, _NORMAL_95**2
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    spread = math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    half = _NORMAL_95 * spread / (1 + z2 / samples)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def _interval(right: NDArray[np.bool_], kept: NDArray[np.bool_]) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the resampled drop, in points."""
    samples = len(right)
    lost = int(np.count_nonzero(right & ~kept))
    won = int(np.count_nonzero(~right & kept))
    shares = np.array([lost, won, samples - lost - won]) / samples
    counts = np.random.default_rng(_SEED).multinomial(samples, shares, _RESAMPLES)
    drops = 100 * (counts[:, 0] - counts[:, 1]) / samples
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)


def _percent(count: int, samples: int) -> float:
    return 100 * count / samples
