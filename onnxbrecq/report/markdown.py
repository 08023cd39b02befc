"""The result as Markdown for the summary of a CI step (GitHub's GITHUB_STEP_SUMMARY, say).

Names come from strangers' models. They stand in `<code>`, every sign that might mean something
as a character reference: neither Markdown nor HTML nor a link nor a mention is read in them.
"""

import re
from collections.abc import Iterator
from pathlib import PurePath

from onnxbrecq.report.result import Result
from onnxbrecq.report.words import in_bytes, verdict

_MARKS = {True: "✅", False: "❌", None: "ℹ️"}
_MOST_NOTES = 20


def as_markdown(found: Result) -> str:
    """The summary: a verdict, the figures, each limit, and the notes."""
    mark, name = _MARKS[found.gate.met], PurePath(found.output.path).name
    lines = [f"### {mark} {_name(name)}: {verdict(found.gate)}", ""]
    lines += ["| | float | quantized | |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(found)]
    if found.gate.checks:
        lines += ["", "| limit | asked | found | |", "| --- | ---: | ---: | --- |"]
        for check in found.gate.checks:
            figure = "" if check.found is None else f"{check.found:.6g}"
            told = _escaped(check.told)
            row = (f"{_MARKS[check.met]} {_name(check.name)}", f"{check.asked:.6g}", figure, told)
            lines.append(f"| {' | '.join(row)} |")
    if found.notes:
        lines += ["", *(f"- {_escaped(note)}" for note in found.notes[:_MOST_NOTES])]
        if len(found.notes) > _MOST_NOTES:
            lines.append(f"- and {len(found.notes) - _MOST_NOTES} more")
    return "\n".join(lines) + "\n\n"


def _rows(found: Result) -> Iterator[tuple[str, str, str, str]]:
    before, after = found.model.size_bytes, found.output.size_bytes
    yield "size", in_bytes(before), in_bytes(after), f"{100 * after / before:.1f} %"
    if found.weights_mean_bits is not None and found.activations_mean_bits is not None:
        bits = f"weights {found.weights_mean_bits:.2f}, data {found.activations_mean_bits:.2f}"
        yield "mean bits", "32", bits, ""
    if found.accuracy is not None:
        metric, (low, high) = found.accuracy, found.accuracy.interval_95
        p_value = "" if metric.p_value is None else f"; McNemar p = {metric.p_value:.3g}"
        yield (
            _escaped(metric.metric),
            f"{metric.float:.2f} %",
            f"{metric.quantized:.2f} %",
            f"drop {metric.drop:.2f} points (95 %: {low:.2f} to {high:.2f}{p_value}), "
            f"{metric.samples} samples",
        )
    if found.fidelity is not None:
        if found.fidelity.agreement is not None:
            yield "agreement", "", f"{found.fidelity.agreement:.2f} %", ""
        yield "SQNR", "", f"{found.fidelity.sqnr_db:.1f} dB", f"{found.fidelity.samples} samples"
    for execution in found.execution:
        share = f"{100 * execution.integer_macs_fraction:.1f} %"
        yield "integer MACs", "", share, _escaped(execution.provider)
        if execution.latency_ms is not None and execution.speedup is not None:
            yield (
                "latency",
                f"{execution.float_latency_ms:.3g} ms",
                f"{execution.latency_ms:.3g} ms",
                f"{execution.speedup:.2f}x as fast",
            )


def _name(text: str) -> str:
    return f"<code>{_escaped(text)}</code>"


def _escaped(text: str) -> str:
    """Text that stays what it is; on one line."""
    return re.sub(
        r"[^\w ,;%.]|_|(?<!\d)\.|\.(?!\d)", lambda c: f"&#{ord(c[0])};", " ".join(text.split())
    )
