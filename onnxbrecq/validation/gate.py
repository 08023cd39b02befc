"""The gate: whether the quantized model lost no more than was allowed, and runs as promised."""

from onnxbrecq.report.result import Accuracy, Execution, Fidelity, Gate

_ROUND_OFF = 1e-9  # points; a drop is a quotient of two integers times 100
_MOST_NAMES = 8  # in one line


def joined(*gates: Gate) -> Gate:
    """One verdict: met where all that was asked for is; the reasons of what is not."""
    asked = {key: value for gate in gates for key, value in gate.asked.items()}
    verdicts = [gate.met for gate in gates if gate.met is not None]
    reasons = [gate.reason for gate in gates if gate.reason is not None]
    return Gate(asked, all(verdicts) if verdicts else None, "; ".join(reasons) or None)


def judge_execution(min_integer: float | None, execution: Execution) -> Gate:
    """The verdict on the share of multiply-accumulates that must run in integer kernels."""
    if min_integer is None:
        return Gate(asked={}, met=None, reason=None)
    share, asked = execution.integer_macs_fraction, {"min_integer": min_integer}
    if share >= min_integer - _ROUND_OFF:
        return Gate(asked, met=True, reason=None)
    named = ", ".join(execution.float_nodes[:_MOST_NAMES])
    more = len(execution.float_nodes) - _MOST_NAMES
    return Gate(
        asked,
        met=False,
        reason=f"{share:.4f} of the multiply-accumulates run in integer kernels, at least "
        f"{min_integer:g} was asked for; in float: {named}" + (f" and {more} more" * (more > 0)),
    )


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
