"""The gate: whether the quantized model lost no more than was allowed."""

from onnxbrecq.report.result import Accuracy, Fidelity, Gate

_ROUND_OFF = 1e-9  # points; a drop is a quotient of two integers times 100


def judge(max_drop: float | None, accuracy: Accuracy | None, fidelity: Fidelity | None) -> Gate:
    """The verdict on `max_drop` points: of accuracy, or without labels of agreement.

    Where nothing measures a drop, a gate that was asked for is not met.
    """
    if max_drop is None:
        return Gate(asked={}, met=None, reason=None)
    asked = {"max_drop": max_drop}
    if accuracy is not None:
        drop = accuracy.drop
        figure = (
            f"{accuracy.metric} falls by {drop:.2f} points, from {accuracy.float:.2f} % to "
            f"{accuracy.quantized:.2f} %"
        )
    elif fidelity is not None and fidelity.agreement is not None:
        drop = 100 - fidelity.agreement
        figure = (
            f"top-1 agreement with the float model is {fidelity.agreement:.2f} %, "
            f"{drop:.2f} points short of 100 %"
        )
    else:
        return Gate(asked, met=False, reason="nothing measures a drop: no labels, no class scores")
    if drop <= max_drop + _ROUND_OFF:
        return Gate(asked, met=True, reason=None)
    return Gate(asked, met=False, reason=f"{figure}; at most {max_drop:g} was asked for")
