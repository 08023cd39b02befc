import pytest

from onnxbrecq.recipe import Recipe
from onnxbrecq.report.result import Accuracy, Execution, Fidelity, Gate, Latency
from onnxbrecq.validation.gate import (
    Limits,
    joined,
    judge,
    judge_execution,
    judge_size,
    judge_speed,
)


def accuracy(drop: float) -> Accuracy:
    return Accuracy("top-1", 91.0, 91.0 - drop, drop, (drop - 1, drop + 1), 500)


@pytest.mark.parametrize(
    ("max_drop", "drop", "met"),
    [
        (1.0, 0.8, True),
        (1.0, 1.0, True),
        (1.0, 1.2, False),
        (0.0, -0.4, True),
        (0.3, 0.1 * 3, True),
    ],
)
def test_accuracy_decides_where_there_are_labels(max_drop: float, drop: float, met: bool) -> None:
    gate = judge(max_drop, accuracy(drop), Fidelity(50.0, 20.0, 500))
    assert gate.met is met
    assert gate.asked == {"max_drop": max_drop}
    assert (gate.reason is None) is met


def test_reason_names_the_figures() -> None:
    reason = judge(1.0, accuracy(2.4), None).reason
    assert reason is not None
    for part in ("top-1", "2.40 points", "91.00 %", "88.60 %", "at most 1 was asked for"):
        assert part in reason


@pytest.mark.parametrize(("agreement", "met"), [(99.5, True), (98.0, False)])
def test_agreement_decides_without_labels(agreement: float, met: bool) -> None:
    gate = judge(1.0, None, Fidelity(agreement, 30.0, 100))
    assert gate.met is met
    assert met or "98.00 %" in str(gate.reason)


@pytest.mark.parametrize("fidelity", [None, Fidelity(None, 30.0, 100)])
def test_what_cannot_be_measured_is_not_met(fidelity: Fidelity | None) -> None:
    gate = judge(1.0, None, fidelity)
    assert gate.met is False
    assert "nothing measures a drop" in str(gate.reason)


def test_nothing_asked_is_neither_met_nor_missed() -> None:
    gate = judge(None, accuracy(50.0), None)
    assert (gate.asked, gate.met, gate.reason) == ({}, None, None)


def _execution(share: float, *floating: str) -> Execution:
    return Execution("CPUExecutionProvider", True, share, floating, None, None, None)


def test_layers_that_run_in_float_are_named() -> None:
    found = judge_execution(0.99, _execution(0.9, "conv1", "head"))
    assert (found.asked, found.met) == ({"min_integer": 0.99}, False)
    assert found.reason is not None
    assert "0.9000 of the multiply-accumulates" in found.reason
    assert "in float: conv1, head; at least 0.99 was asked for" in found.reason
    many = judge_execution(1.0, _execution(0.0, *(f"n{i}" for i in range(10))))
    assert many.reason is not None
    assert "n7 and 2 more;" in many.reason


def test_what_runs_in_integers_passes() -> None:
    assert judge_execution(1.0, _execution(1.0)).met is True
    assert judge_execution(None, _execution(0.0, "conv")).met is None


def test_all_that_was_asked_for_must_hold() -> None:
    lost = judge(1.0, None, None)
    runs = judge_execution(0.5, _execution(1.0))
    assert joined(runs, lost).met is False
    assert joined(runs, lost).asked == {"min_integer": 0.5, "max_drop": 1.0}
    assert joined(runs, lost).reason == lost.reason
    assert joined(runs, judge(None, None, None)).met is True
    assert joined(judge(None, None, None)) == Gate({}, None, None)


def test_a_size_that_is_too_large() -> None:
    found = judge_size(1000, 1001)
    assert (found.met, found.asked) == (False, {"max_size": 1000})
    assert found.reason == "the quantized model takes 1,001 bytes; at most 1,000 was asked for"
    assert judge_size(1000, 1000).met is True
    assert judge_size(None, 10**9).met is None


def test_a_model_that_is_too_slow() -> None:
    latency = Latency(1, 1, 2.0, 3.0, 1.5, (1.4, 1.6))
    fast = Execution("CPU", True, 1.0, (), 2.0, 3.0, 1.5, (latency,))
    assert judge_speed(1.5, fast).met is True
    reason = judge_speed(1.6, fast).reason
    assert reason is not None
    assert "1.50 times as fast as the float model" in reason
    assert "(95 %: 1.40 to 1.60); at least 1.6 was asked for" in reason
    assert judge_speed(1.0, _execution(1.0)).met is False  # nothing was measured
    assert judge_speed(None, fast).met is None


def test_limits_of_a_recipe() -> None:
    recipe = Recipe(max_drop=1.0, min_integer=0.9, max_size="12.5%", min_speedup=1.2)
    assert Limits.of(recipe, 4000) == Limits(1.0, 0.9, 500.0, 1.2)
    assert Limits.of(Recipe(max_size="3MB"), 1).max_size == 3e6
    assert Limits.of(Recipe(), 1) == Limits()
    found = Limits.of(recipe, 4000).judge(accuracy(0.5), None, [_execution(1.0)], 400)
    assert [check.met for check in found.checks] == [True, True, True, False]
    assert found.met is False
