"""Latency of two models measured in turn, so that what disturbs the machine disturbs both."""

import math
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import numpy as np

from onnxbrecq.data.dataset import Feed
from onnxbrecq.runtime.session import Runner

_WARM_UP = 3  # the first runs allocate memory and pack weights


class PairedLatency(NamedTuple):
    """Median milliseconds of each model, and the median of b / a over the pairs of runs.

    `interval` holds that median with a probability of at least 95 %; None for fewer than 6 pairs.
    """

    ms_a: float
    ms_b: float
    ratio: float
    interval: tuple[float, float] | None


def paired_latency(
    a: Runner, b: Runner, feed: Feed, *, rounds: int = 100, seconds: float = 4.0
) -> PairedLatency:
    """The latencies of `a` and `b` for one feed, run A B, B A, A B, ... after a warm-up.

    Args:
        a: the one in question.
        b: what it is compared with.
        feed: one sample that both take.
        rounds: pairs of runs at most.
        seconds: no further pair begins after this time, warm-up included; one is always measured.

    Raises:
        ModelError: a run fails.
    """
    end = perf_counter() + seconds
    for _ in range(_WARM_UP):
        a.run(feed)
        b.run(feed)
        if perf_counter() > end:
            break
    times = []
    for i in range(max(rounds, 1)):
        if i % 2:  # neither always finds what the other left in the caches
            second, first = _timed(b.run, feed), _timed(a.run, feed)
        else:
            first, second = _timed(a.run, feed), _timed(b.run, feed)
        times.append((first, second))
        if perf_counter() > end:
            break
    pairs = np.array(times) * 1e3  # [rounds, 2]
    ms_a, ms_b = np.median(pairs, axis=0)
    ratios = np.sort(pairs[:, 1] / pairs[:, 0])
    return PairedLatency(
        float(ms_a), float(ms_b), float(np.median(ratios)), median_interval(ratios.tolist())
    )


def median_interval(ordered: list[float]) -> tuple[float, float] | None:
    """The order statistics between which the median lies with a probability of at least 95 %.

    Each independent value lies below the median with probability 1/2, whatever the distribution:
    of n, fewer than k do with P(Bin(n, 1/2) < k). The largest k with at most 2.5 % counts from both
    ends; there is none below n = 6.

    Args:
        ordered: values, ascending.
    """
    count, below = len(ordered), 0.0
    for k in range(count + 1):
        below += math.comb(count, k) / 2**count
        if below > 0.025:
            return None if k == 0 else (ordered[k - 1], ordered[count - k])
    return None


def _timed(run: Callable[[Feed], object], feed: Feed) -> float:
    start = perf_counter()
    run(feed)
    return perf_counter() - start
