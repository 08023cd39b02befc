"""Results for people (rich tables) and for machines (JSON).

Names come from strangers' models, so they are never read as markup, and what a terminal would
obey is spelt out. Away from a terminal there are no colours, and no width to fold at.
"""

import io
import json as json_format
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxbrecq.errors import OutputError
from onnxbrecq.output import claim, write_atomically

from .command import GATE_NOT_MET, say, shown
from .search_rows import (
    FRONT_COLUMNS,
    exploration_rows,
    front_rows,
    interaction_rows,
    point_rows,
    sensitivity_table,
)

if TYPE_CHECKING:
    from onnxbrecq import Comparison, Result
    from onnxbrecq.report.result import Accuracy, Latency, LayerFacts, Parity
    from onnxbrecq.runtime.verify import Check

Rows = Iterator[tuple[str, str]]
Json = Mapping[str, Any]

_STDOUT = Path("-")
_UNFOLDED = 10_000  # columns of what is no terminal: a script sees a name in one piece
_MOST_NAMES = 8
_MOST_NODES = 3
_LABEL = 9  # columns, so that tables of different runs line up


def claim_json(path: Path | None, *, force: bool, models: Sequence[Path | None]) -> None:
    """Refuses a --json file that could not, or must not, be written when the work is done.

    Args:
        path: the file, or None.
        force: it may be replaced.
        models: files that the command reads or writes, and that it must not be.

    Raises:
        UsageError: it is one of the models.
        OutputError: something else is in the way.
    """
    if path != _STDOUT:
        _claim("json", path, force=force, models=models)


def claim_reports(
    report: Path | None,
    junit: Path | None,
    summary: Path | None,
    *,
    force: bool,
    models: Sequence[Path | None],
) -> None:
    """Refuses other files likewise; a summary is appended to what is there.

    Raises:
        UsageError: one is a model.
        OutputError: something else is in the way.
    """
    _claim("report", report, force=force, models=models)
    _claim("junit", junit, force=force, models=models)
    _claim("summary", summary, force=True, models=models)


def _claim(option: str, path: Path | None, *, force: bool, models: Sequence[Path | None]) -> None:
    if path is None:
        return
    if path.suffix == ".onnx" or path.resolve() in {m.resolve() for m in models if m}:
        raise click.UsageError(f"--{option} {path}: is the file of a model; give another")
    claim(path, force=force)


def for_ci(found: "Result", junit: Path | None, summary: Path | None) -> None:
    """Writes what continuous integration reads.

    Raises:
        OutputError: a file cannot be written.
    """
    import onnxbrecq  # noqa: PLC0415 -- a --help must not wait for it

    if junit is not None:
        write_atomically(junit, onnxbrecq.as_junit(found).encode())
    if summary is not None:
        try:
            with summary.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(onnxbrecq.as_markdown(found))
        except OSError as error:
            raise OutputError(f"{summary}: cannot be written: {error.strerror}") from error


def result(found: "Result", json: Path | None, *, quiet: bool) -> None:
    """Shows what a quantization or a validation found out."""
    if found.data is not None and found.data.made is not None:
        say("NO CALIBRATION DATA: it was made from the model itself; give real samples with -d")
    _deliver([_pairs(_result_rows(found))], found.as_json(), json, quiet=quiet)


def emission(found: Json, json: Path | None, *, quiet: bool) -> None:
    """Shows what `emit` wrote."""
    _deliver([_pairs(_emission_rows(found))], found, json, quiet=quiet)


def inspection(found: Json, json: Path | None, *, quiet: bool) -> None:
    """Shows the structure of a model, from the JSON of `inspect`."""
    if "quantized" in found:
        rows = [
            [x["name"], str(x["weight_bits"] or "float"), str(x["block_size"] or "all"),
             str(x["activation_bits"] or "float")]
            for x in found["layers"]
        ]  # fmt: skip
        columns: tuple[str, ...] = ("layer", "weight bits", "inputs a scale", "data bits")
        table = _section("Layers", columns, rows)
        _deliver([_pairs(_quantized_rows(found)), *table], found, json, quiet=quiet)
        return
    parts: list[RenderableType] = [_pairs(_model_rows(found))]
    if "data" in found:
        names = ("input", "channel", "least", "most", "mean", "deviation")
        parts += _section("Data", names, list(_channel_rows(found["data"])))
        parts.append(_pairs(_data_rows(found["data"])))
    columns = ("block and its nodes", "operator", "MACs", "parameters", "will run")
    parts += _section("Blocks", columns, list(_tree_rows(found)))
    _deliver(parts, found, json, quiet=quiet)


def diagnosis(found: Json, json: Path | None, *, quiet: bool) -> None:
    """Shows what `doctor` found out."""
    _deliver([_pairs(_doctor_rows(found))], found, json, quiet=quiet)


def exploration(found: Json, json: Path | None, *, quiet: bool) -> None:
    """Shows the sensitivities of a model."""
    columns, rows = sensitivity_table(found)
    parts: list[RenderableType] = [_pairs(exploration_rows(found))]
    parts += _section("Loss added to that with all layers at their finest", columns, rows)
    terms = ("layers", "bits", "loss")
    parts += _section("Largest interactions", terms, interaction_rows(found))
    _deliver(parts, found, json, quiet=quiet)


def front(found: Json, json: Path | None, *, quiet: bool) -> None:
    """Shows a Pareto front."""
    table = _section("Front", FRONT_COLUMNS, point_rows(found))
    _deliver([_pairs(front_rows(found)), *table], found, json, quiet=quiet)


def claim_html(path: Path | None, *, force: bool, models: Sequence[Path | None]) -> None:
    """Refuses an --html file that could not, or must not, be written when the work is done.

    Raises:
        UsageError: it is one of the other files.
        OutputError: something else is in the way.
    """
    if path is None:
        return
    if path.suffix == ".onnx" or path.resolve() in {m.resolve() for m in models if m}:
        raise click.UsageError(f"--html {path}: is another file of this command; give another")
    claim(path, force=force)


def write_html(path: Path | None, page: Callable[[], str]) -> None:
    """Writes the page, where it was asked for."""
    if path is not None:
        write_atomically(path, page().encode())


def comparison(found: "Comparison", json: Path | None, *, quiet: bool) -> None:
    """Shows two quantized models side by side."""
    columns = ("layer", "operator", "bits A", "bits B", "error A", "error B", "nearer")
    table = _section("Layers", columns, list(_compared_rows(found)))
    _deliver([_pairs(_side_rows(found)), *table], found.as_json(), json, quiet=quiet)


def bundled(found: Json, json: Path | None, *, quiet: bool) -> None:
    """Shows what `bundle` wrote."""
    _deliver([_pairs(_bundle_rows(found))], found, json, quiet=quiet)


def verified(folder: str, checks: "Sequence[Check]", json: Path | None, *, quiet: bool) -> None:
    """Shows what `verify` looked at."""
    rows = [("ok" if c.met else "FAIL", f"{c.what}: {c.told}") for c in checks]
    found = {
        "schema_version": 1,
        "folder": folder,
        "met": all(check.met for check in checks),
        "checks": [check._asdict() for check in checks],
    }
    _deliver([_pairs(iter(rows))], found, json, quiet=quiet)


def leave_by_checks(ctx: click.Context, checks: "Sequence[Check]") -> None:
    """Ends the command with status 3 if a bundle does not hold, naming what differs."""
    missed = [f"{check.what}: {check.told}" for check in checks if not check.met]
    if missed:
        say(f"the bundle does not hold: {'; '.join(missed)}")
        ctx.exit(GATE_NOT_MET)


def leave_by_gate(ctx: click.Context, found: "Result") -> None:
    """Ends the command with status 3 if the gate was not met, naming the figure."""
    if found.gate.met is False:
        say(f"gate not met: {found.gate.reason}")
        ctx.exit(GATE_NOT_MET)


def as_text(parts: Sequence[RenderableType], console: Console) -> str:
    """`parts` as `console` shows them, without the blanks that end a line."""
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().split("\n"))


def as_json(value: object) -> str:
    """Strict JSON; what is not finite, which JSON cannot say, is null."""
    return json_format.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _deliver(
    parts: Sequence[RenderableType], data: object, json: Path | None, *, quiet: bool
) -> None:
    """The table on stdout and JSON where it was asked for; JSON on stdout moves the table."""
    if json == _STDOUT:
        _write(sys.stdout, as_json(data))
        if not quiet:
            _write(sys.stderr, as_text(parts, _console(sys.stderr)))
        return
    if json is not None:
        write_atomically(json, as_json(data).encode())
    _write(sys.stdout, as_text(parts, _console(sys.stdout)))


def _console(stream: TextIO) -> Console:
    """How `stream` shows things. It does not write there: `_write` does, and minds its errors."""
    if stream.isatty():
        return Console(file=io.StringIO(), highlight=False, force_terminal=True)
    return Console(file=io.StringIO(), highlight=False, color_system=None, width=_UNFOLDED)


def _write(stream: TextIO, text: str) -> None:
    """Writes `text`; a reader who has left (`| head`) does not change how the command ends.

    Raises:
        OutputError: the stream leads to a full disk, say.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # The interpreter flushes the stream once more at its end; now that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError as error:
        raise OutputError(f"{stream.name}: cannot be written: {error.strerror}") from error


def _pairs(rows: Rows) -> Table:
    """Two columns: what, and its value."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True, min_width=_LABEL)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(shown(value)))
    return table


def _section(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[RenderableType]:
    """A titled table below a blank line; nothing if there are no rows."""
    if not rows:
        return []
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="left")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return [Padding(Text(title, style="bold underline"), (1, 0, 0, 0)), table]


def _result_rows(found: "Result") -> Rows:
    before, after = found.model.size_bytes, found.output.size_bytes
    yield "model", found.model.path
    yield (
        "size",
        f"{_bytes(before)} -> {_bytes(after)} ({100 * after / before:.1f} %, "
        f"{before / after:.2f}x smaller)",
    )
    if found.data is not None:
        yield "data", f"{found.data.origin or 'given'}, {found.data.samples} samples"
    if found.weights_mean_bits is not None and found.activations_mean_bits is not None:
        yield (
            "mean bits",
            f"weights {found.weights_mean_bits:.2f}, "
            f"layer inputs {found.activations_mean_bits:.2f}",
        )
    yield from _quality_rows(found)
    yield from _divergence_rows(found)
    yield from _node_rows(found)
    yield from _execution_rows(found)
    yield from _search_rows(found)
    if found.gate.met is not None:
        asked = ", ".join(f"{key} {value:g}" for key, value in found.gate.asked.items())
        yield "gate", f"{'met' if found.gate.met else 'not met'} ({asked})"
    if found.blocks:
        yield "blocks", _reconstructed(found)
    yield "time", f"{found.total_seconds:.1f} s"
    yield "memory", f"{_bytes(found.peak_bytes)} at most"
    yield "output", found.output.path
    for block in found.blocks:
        if block.note:
            yield "note", f"block {block.name}: {block.note}"
    for note in found.notes:
        yield "note", note


def _search_rows(found: "Result") -> Rows:
    """How the bits of layers were chosen."""
    search = found.search
    if search is None:
        return
    gap = "" if search.gap is None else f", at most {100 * search.gap:.2g} % from the best"
    predicted = "" if search.sqnr_db is None else f", SQNR {search.sqnr_db:.1f} dB"
    yield "search", f"{search.method}: predicted loss {search.loss:.3g}{predicted}{gap}"
    counts = [layer.weight_bits or "float" for layer in found.layers]
    kinds = sorted(set(counts), key=str)
    yield "layers", ", ".join(f"{counts.count(b)} of {b} bits" for b in kinds)
    for budget in search.budgets:
        if budget.limit is not None:
            share = 100 * budget.used / budget.limit
            yield (
                "budget",
                f"{budget.key} {budget.used:,.6g} of {budget.limit:,.6g} {budget.unit} "
                f"({share:.1f} %)",
            )
    for trial in search.trials:
        verdict = "passes" if trial.passed else f"fails: {trial.figure}"
        yield "tried", f"{_bytes(trial.size_bytes)} {verdict}"


def _emission_rows(found: Json) -> Rows:
    size, bits = found["size"], found["bits"]
    yield "model", found["model"]["path"]
    yield "target", f"{found['target']}, opset {found['output']['opset']}"
    yield (
        "size",
        f"{_bytes(size['float_bytes'])} -> {_bytes(size['quantized_bytes'])} "
        f"({100 * size['ratio']:.1f} %)",
    )
    if bits["weights_mean"] is not None:
        yield (
            "mean bits",
            f"weights {bits['weights_mean']:.2f}, layer inputs {bits['activations_mean']:.2f}",
        )
    yield "output", found["output"]["path"]
    for note in found["notes"]:
        yield "note", note


def _side_rows(found: "Comparison") -> Rows:
    reference = found.reference
    yield "reference", f"{reference.path}, {_bytes(reference.size_bytes)}"
    for name, side in (("A", found.a), ("B", found.b)):
        yield name, f"{side.file.path}, {_bytes(side.file.size_bytes)}"
        if side.weights_mean_bits is not None and side.activations_mean_bits is not None:
            yield (
                "mean bits",
                f"weights {side.weights_mean_bits:.2f}, layer inputs "
                f"{side.activations_mean_bits:.2f}",
            )
        if side.accuracy is not None:
            yield (
                "accuracy",
                f"{side.accuracy.metric} {side.accuracy.float:.2f} % -> "
                f"{side.accuracy.quantized:.2f} %, drop {side.accuracy.drop:.2f} points",
            )
        if side.fidelity is not None:
            same = side.fidelity.agreement
            agreement = "" if same is None else f"top-1 agreement {same:.2f} %, "
            yield "fidelity", f"{agreement}SQNR {side.fidelity.sqnr_db:.1f} dB"
    pairs = [(t.a, t.b) for t in found.tensors if t.a is not None and t.b is not None]
    nearer = sum(a < b for a, b in pairs)
    yield (
        "tensors",
        f"A is nearer to the float model in {nearer}, B in {sum(a > b for a, b in pairs)} of "
        f"{len(pairs)} ({found.samples} samples)",
    )


def _compared_rows(found: "Comparison") -> Iterator[tuple[str, ...]]:
    for first, second, tensor in found.layers():
        a, b = (tensor.a, tensor.b) if tensor else (None, None)
        nearer = "" if a is None or b is None or a == b else ("A" if a < b else "B")
        yield first.name, first.op, _of_bits(first), _of_bits(second), _noise(a), _noise(b), nearer


def _of_bits(layer: "LayerFacts") -> str:
    weight, data = (str(b or "float") for b in (layer.weight_bits, layer.activation_bits))
    return f"W{weight} A{data}" if weight != data or weight != "float" else "float"


def _noise(error: float | None) -> str:
    """A relative squared error in decibels below the signal."""
    if error is None:
        return ""
    return "exact" if error <= 0 else f"{10 * math.log10(error):.1f} dB"


def _bundle_rows(found: Json) -> Rows:
    samples, integer = found["samples"], found["integer"]
    yield "bundle", found["folder"]
    yield "model", f"{found['model']['file']}, target {found['target'] or 'unknown'}"
    yield "samples", f"{samples['count']} of {samples['origin']}"
    yield (
        "promised",
        f"{100 * integer['macs_fraction']:.1f} % of the MACs in integer kernels of "
        f"{integer['provider']}",
    )
    yield "provider", f"{found['provider']}, where it will run"
    for output in samples["outputs"]:
        told = (
            f"not compared: {output['note']}"
            if output["tolerance_steps"] is None
            else f"within {output['tolerance_steps']:g} steps of {output['step']:.4g}"
        )
        yield "output", f"{output['name']}: {told}"
    yield "check", f"python {found['folder']}/verify.py"


def _quality_rows(found: "Result") -> Rows:
    accuracy, fidelity, parity = found.accuracy, found.fidelity, found.parity
    if accuracy is not None:
        low, high = accuracy.interval_95
        yield (
            "accuracy",
            f"{accuracy.metric} {accuracy.float:.2f} % -> {accuracy.quantized:.2f} %, "
            f"drop {accuracy.drop:.2f} points (95 %: {low:.2f} to {high:.2f}; "
            f"{accuracy.samples} samples{_uneven(accuracy)})",
        )
    if fidelity is not None:
        agreement = (
            "" if fidelity.agreement is None else f"top-1 agreement {fidelity.agreement:.2f} %, "
        )
        yield (
            "fidelity",
            f"{agreement}SQNR {fidelity.sqnr_db:.1f} dB ({fidelity.samples} samples)",
        )
    if parity is not None and parity.mismatched_fraction is not None:
        yield (
            "parity",
            f"{100 * parity.mismatched_fraction:.2f} % of the outputs differ between optimised "
            f"and unoptimised sessions, by {parity.max_steps} steps at most",
        )


def _uneven(accuracy: "Accuracy") -> str:
    """McNemar's test, where there is one."""
    if accuracy.p_value is None:
        return ""
    return f"; {accuracy.lost} lost, {accuracy.won} won, McNemar p = {accuracy.p_value:.2g}"


def _divergence_rows(found: "Result") -> Rows:
    parting = found.parity.divergence if found.parity is not None else None
    if parting is None or parting.last is None:
        return
    first = parting.first
    where = f"from {first.name or first.op} on" if first else "nowhere"
    yield (
        "parting",
        f"optimised and unoptimised sessions part {where}; at {parting.last.name}, the last of "
        f"{parting.nodes} nodes, {100 * parting.last.mismatched_fraction:.2f} % of the values "
        f"differ, by {parting.last.max_steps} steps at most",
    )


def _node_rows(found: "Result") -> Rows:
    nodes = found.parity.nodes if found.parity is not None else None
    if nodes is None or not nodes.nodes:
        return
    beyond = [node.name or node.op for node in nodes.beyond_one_step]
    further = f"; more than one step: {_names(beyond)}" if beyond else ""
    yield (
        "exactness",
        f"{100 * (1 - nodes.mismatched_fraction):.3f} % of what {nodes.nodes} nodes compute equals "
        f"integer arithmetic, the rest is off by {nodes.max_steps} steps at most{further}",
    )


def _execution_rows(found: "Result") -> Rows:
    for execution in found.execution:
        floating = f"; float: {_names(execution.float_nodes)}" if execution.float_nodes else ""
        yield (
            "kernels",
            f"{100 * execution.integer_macs_fraction:.1f} % of the MACs in integer kernels of "
            f"{execution.provider}{floating}",
        )
        if execution.speedup is not None:
            yield (
                "latency",
                f"{execution.float_latency_ms:.3g} ms -> {execution.latency_ms:.3g} ms a sample, "
                f"{execution.speedup:.2f}x as fast{_within(execution.latencies[:1])}",
            )
        for latency in execution.latencies[1:]:
            threads = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
            yield (
                "",
                f"batch {latency.batch}, {threads}: {latency.float_latency_ms:.3g} ms -> "
                f"{latency.latency_ms:.3g} ms, {latency.speedup:.2f}x as fast{_within([latency])}",
            )
        if execution.parity is not None:
            yield from _apart_rows(execution.parity)
        longest = sorted(execution.nodes, key=lambda node: -node.ms)[:_MOST_NODES]
        for node in longest:
            yield (
                "nodes" if node is longest[0] else "",
                f"{100 * node.share:.1f} % {node.name}: {node.op}, {node.arithmetic}, "
                f"{node.ms:.3g} ms",
            )


def _apart_rows(parity: "Parity") -> Rows:
    """How far a runtime is from onnxruntime's CPU provider."""
    text = [] if parity.agreement is None else [f"{parity.agreement:.1f} % the same class"]
    if parity.max_steps is not None and parity.mismatched_fraction is not None:
        text.append(
            f"{100 * parity.mismatched_fraction:.2f} % of the outputs differ, by "
            f"{parity.max_steps} steps at most"
        )
    first = parity.divergence.first if parity.divergence is not None else None
    if first is not None:
        text.append(f"they part at {first.name} ({first.op}), by up to {first.max_steps} steps")
    yield "to onnxruntime", "; ".join(text) or "not compared"


def _within(latencies: Sequence["Latency"]) -> str:
    """Where the speedup lies, as far as that is known."""
    bounds = latencies[0].interval_95 if latencies else None
    return f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""


def _reconstructed(found: "Result") -> str:
    ratios = [
        block.loss_after / block.loss_before
        for block in found.blocks
        if block.loss_before and block.loss_after is not None
    ]
    better = [ratio for ratio in ratios if ratio < 1]
    text = f"{len(better)} of {len(found.blocks)} improved by reconstruction"
    if not better:
        return text
    return f"{text}, their loss to {100 * statistics.median(better):.0f} % (median)"


def _model_rows(found: Json) -> Rows:
    model = found["model"]
    yield "model", f"{model['path']}, opset {model['opset']}, {_bytes(model['size_bytes'])}"
    for kind in ("inputs", "outputs"):
        for name, shape in model[kind].items():
            dims = ", ".join("any" if dim is None else str(dim) for dim in shape)
            yield kind.removesuffix("s"), f"{name} [{dims}]"
    blocks, layers = found["blocks"], found["layers"]
    yield "structure", f"{len(blocks)} blocks, {len(layers)} weight layers"
    yield "MACs", f"{_count(sum(layer['macs'] for layer in layers))} per sample"
    yield "parameters", _count(sum(layer["parameters"] for layer in layers))
    quantized = [layer for layer in layers if layer["quantized"]]
    macs, total = (sum(layer["macs"] for layer in part) for part in (quantized, layers))
    yield (
        "integer",
        f"{len(quantized)} of {len(layers)} weight layers, {100 * macs / max(total, 1):.1f} % of "
        "the MACs",
    )
    for note in model["notes"]:
        yield "note", note


def _channel_rows(data: Json) -> Iterator[tuple[str, ...]]:
    for one in data["inputs"]:
        shape = ", ".join(str(size) for size in one["shape"])
        for i, channel in enumerate(one["channels"]):
            values = (f"{channel[key]:.4g}" for key in ("low", "high", "mean", "std"))
            which = "all" if one["axis"] is None else str(i)
            yield f"{one['name']} [{shape}]" if i == 0 else "", which, *values


def _data_rows(data: Json) -> Rows:
    yield "data", f"{data['origin']}, {data['samples']} samples"
    for warning in data["warnings"]:
        yield "warning", warning
    if not data["warnings"]:
        yield "warnings", "none"


def _quantized_rows(found: Json) -> Rows:
    model, told = found["model"], found["quantized"]
    yield "model", f"{model['path']}, opset {model['opset']}, {_bytes(model['size_bytes'])}"
    yield "quantized", f"by onnxbrecq {told['version']} for target {told['target']}"
    yield "source", f"sha256 {told['source_sha256'] or 'unknown'}"
    yield "data", f"sha256 {told['data_sha256'] or 'unknown'}"
    asked = (f"{key} {value}" for key, value in told["recipe"].items() if value is not None)
    yield "recipe", ", ".join(asked)


def _tree_rows(found: Json) -> Iterator[tuple[str, ...]]:
    """A row for each block; below it its weight layers and what stays float, in their order."""
    layers = {layer["name"]: layer for layer in found["layers"]}
    floating = {node["name"]: node for node in found["float_nodes"]}
    for block in found["blocks"]:
        island = ", island" if block["name"] in found["islands"] else ""
        yield (
            block["name"],
            f"block of {len(block['nodes'])}{island}",
            _count(block["macs"]),
            _count(block["parameters"]),
            "",
        )
        told = [name for name in block["nodes"] if name in layers or name in floating]
        for name in told:
            branch = "└─" if name == told[-1] else "├─"
            layer, node = layers.get(name), floating.get(name)
            costs = [_count(layer[key]) if layer else "" for key in ("macs", "parameters")]
            how = f"float: {node['reason']}" if node else "in integers"
            yield f"{branch} {name}", (layer or node or {})["op"], *costs, how


def _doctor_rows(found: Json) -> Rows:
    processor, runtime = found["processor"], found["onnxruntime"]
    yield "system", f"{found['platform']}, Python {found['python']}"
    yield "processor", f"{processor['name']}, {processor['cores']} cores"
    yield "features", " ".join(processor["features"]) or "none that matter"
    yield (
        "onnxruntime",
        f"{runtime['version']}, opset up to {runtime['max_opset']}, {_names(runtime['providers'])}",
    )
    for name, version in found["packages"].items():
        if name != "onnxruntime":
            yield name, version or "not installed"
    for name, able in found["capabilities"].items():
        yield name.replace("_", " "), "yes" if able else "no"
    for problem in found["problems"]:
        yield "problem", f"{problem['what']}: {problem['do']}"
    if not found["problems"]:
        yield "problems", "none"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
