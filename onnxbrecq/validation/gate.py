"""The gate: whether the quantized model is as accurate, as small and as fast as was asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxbrecq.recipe import Recipe
from onnxbrecq.report.result import Accuracy, Check, Execution, Fidelity, Gate

_ROUND_OFF = 1e-9  # points; a drop is a quotient of two integers times 100
_MOST_NAMES = 8  # in one line


@dataclass(frozen=True)
class Limits:
    """What a quantized model has to keep to; None: no limit.

    Attributes:
        max_drop: points of the metric, or without labels of the agreement.
        min_integer: share of the multiply-accumulates in integer kernels.
        max_size: bytes of the written files.
        min_speedup: times as fast as the float model, one sample and one thread.
    """

    max_drop: float | None = None
    min_integer: float | None = None
    max_size: float | None = None
    min_speedup: float | None = None

    @staticmethod
    def of(recipe: Recipe, float_bytes: int) -> "Limits":
        """Those of the recipe, for a float model of so many bytes."""
        size = recipe.size_limit(float_bytes)
        return Limits(
            recipe.max_drop, recipe.min_integer, None if math.isinf(size) else size,
            recipe.min_speedup,
        )  # fmt: skip

    def judge(
        self,
        accuracy: Accuracy | None,
        fidelity: Fidelity | None,
        executions: Sequence[Execution],
        size_bytes: int,
    ) -> Gate:
        """The verdict on all of them; what has to run in integers, has to in every runtime."""
        return joined(
            judge(self.max_drop, accuracy, fidelity),
            *(judge_execution(self.min_integer, execution) for execution in executions),
            judge_size(self.max_size, size_bytes),
            *(judge_speed(self.min_speedup, execution) for execution in executions[:1]),
        )


def joined(*gates: Gate) -> Gate:
    """One verdict: met where all that was asked for is; the reasons of what is not."""
    return _gate(*(check for gate in gates for check in gate.checks))


def judge(max_drop: float | None, accuracy: Accuracy | None, fidelity: Fidelity | None) -> Gate:
    """The verdict on `max_drop` points: of accuracy, or without labels of agreement.

    Where nothing measures a drop, a gate that was asked for is not met.
    """
    if max_drop is None:
        return _gate()
    if accuracy is not None:
        low, high = accuracy.interval_95
        found = accuracy.drop
        told = (
            f"{accuracy.metric} falls by {found:.2f} points (95 %: {low:.2f} to {high:.2f}), from "
            f"{accuracy.float:.2f} % to {accuracy.quantized:.2f} %"
        )
    elif fidelity is not None and fidelity.agreement is not None:
        found = 100 - fidelity.agreement
        told = (
            f"top-1 agreement with the float model is {fidelity.agreement:.2f} %, "
            f"{found:.2f} points short of 100 %"
        )
    else:
        told = "nothing measures a drop: no labels, no class scores"
        return _gate(Check("max_drop", max_drop, None, False, told))
    met = found <= max_drop + _ROUND_OFF
    return _gate(Check("max_drop", max_drop, found, met, _asked(told, f"at most {max_drop:g}")))


def judge_execution(min_integer: float | None, execution: Execution) -> Gate:
    """The verdict on the share of multiply-accumulates that must run in integer kernels."""
    if min_integer is None:
        return _gate()
    found = execution.integer_macs_fraction
    told = f"{found:.4f} of the multiply-accumulates run in integer kernels"
    if execution.float_nodes:
        named = ", ".join(execution.float_nodes[:_MOST_NAMES])
        more = len(execution.float_nodes) - _MOST_NAMES
        told += f", in float: {named}" + (f" and {more} more" * (more > 0))
    met = found >= min_integer - _ROUND_OFF
    return _gate(
        Check("min_integer", min_integer, found, met, _asked(told, f"at least {min_integer:g}"))
    )


def judge_size(max_size: float | None, size_bytes: int) -> Gate:
    """The verdict on the bytes of the written files."""
    if max_size is None:
        return _gate()
    told = f"the quantized model takes {size_bytes:,} bytes"
    met = size_bytes <= max_size
    return _gate(
        Check("max_size", max_size, size_bytes, met, _asked(told, f"at most {max_size:,.0f}"))
    )


def judge_speed(min_speedup: float | None, execution: Execution) -> Gate:
    """The verdict on the speed, with one sample and one thread, in turn with the float model."""
    if min_speedup is None:
        return _gate()
    found = execution.speedup
    if found is None:
        return _gate(Check("min_speedup", min_speedup, None, False, "nothing measures the speed"))
    told = f"{found:.2f} times as fast as the float model, at batch 1 with one thread"
    bounds = execution.latencies[0].interval_95 if execution.latencies else None
    if bounds:
        told += f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})"
    met = found >= min_speedup
    return _gate(
        Check("min_speedup", min_speedup, found, met, _asked(told, f"at least {min_speedup:g}"))
    )


def _asked(told: str, limit: str) -> str:
    return f"{told}; {limit} was asked for"


def _gate(*checks: Check) -> Gate:
    """The verdict on some limits; None where there are none."""
    missed = [check.told for check in checks if not check.met]
    return Gate(
        {check.name: check.asked for check in checks},
        not missed if checks else None,
        "; ".join(missed) or None,
        checks,
    )
