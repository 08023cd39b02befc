"""Figures in words, as every report for people has them."""

from onnxbrecq.report.result import Gate


def in_bytes(count: float) -> str:
    """A number of bytes with its unit; a kB are 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def verdict(gate: Gate) -> str:
    """What the gate says, in a word or two."""
    if gate.met is None:
        return "no gate"
    return "gate met" if gate.met else "gate not met"
