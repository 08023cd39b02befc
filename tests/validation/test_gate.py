import pytest

from onnxbrecq.report.result import Accuracy, Fidelity
from onnxbrecq.validation.gate import judge


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
