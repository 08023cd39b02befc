from time import perf_counter, sleep

import numpy as np
import onnx.parser
import pytest

from onnxbrecq.runtime.latency import median_interval, paired_latency
from onnxbrecq.runtime.session import Session


class Sleeper:
    """Stands for a session of known latency, and notes the order of runs."""

    def __init__(self, name: str, milliseconds: float, calls: list[str]) -> None:
        self.name, self.milliseconds, self.calls = name, milliseconds, calls

    def run(self, feed: object) -> None:
        self.calls.append(self.name)
        sleep(self.milliseconds / 1e3)


def test_sessions_run_in_turn_and_the_ratio_is_b_over_a() -> None:
    calls: list[str] = []
    a, b = Sleeper("a", 2, calls), Sleeper("b", 20, calls)
    latency = paired_latency(a, b, {}, rounds=5)  # type: ignore[arg-type]
    runs = calls[2 * (len(calls) // 2 - 5) :]  # behind the warm-up
    assert runs == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert 2 <= latency.ms_a < latency.ms_b
    assert latency.ms_b >= 20
    assert latency.ratio > 1


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_time_is_bounded(seconds: float) -> None:
    calls: list[str] = []
    a, b = Sleeper("a", 20, calls), Sleeper("b", 20, calls)
    start = perf_counter()
    latency = paired_latency(a, b, {}, rounds=1000, seconds=seconds)  # type: ignore[arg-type]
    # 40 ms a pair: one in flight when time is up, and one that is always measured; machines stall.
    assert perf_counter() - start < seconds + 2
    assert len(calls) < 100
    assert latency.ms_a >= 20


def test_real_sessions_are_measured() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 8] x) => (float[N, 8] y) { y = Neg (x) }"""
    session = Session(onnx.parser.parse_model(text), threads=1)
    latency = paired_latency(session, session, {"x": np.zeros((1, 8), np.float32)}, rounds=5)
    assert latency.ms_a > 0
    assert latency.ms_b > 0


@pytest.mark.parametrize(
    ("count", "ranks"), [(5, None), (6, (1, 6)), (10, (2, 9)), (100, (40, 61))], ids=str
)
def test_interval_of_a_median(count: int, ranks: tuple[int, int] | None) -> None:
    """The ranks of tables of the sign test (Conover, Practical Nonparametric Statistics, A3)."""
    ordered = [float(rank) for rank in range(1, count + 1)]
    assert median_interval(ordered) == ranks
