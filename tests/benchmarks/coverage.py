"""What comes through, of many models: one table and the reasons of what does not; run by hand.

    python tests/benchmarks/coverage.py --models DIR [--models DIR2 ...] --output DIR \
        [--only TEXT] [--redo] [--no-quantize] [--table docs/coverage.md]

Each .onnx file is loaded, partitioned and imported into torch block by block, the blocks are run in
torch and in onnxruntime on noise, and the model is quantized to 8 bits on eight samples at effort
`fast`: all in a process of its own, with limits on time and memory (`coverage_row.py`).
`export_torchvision.py` and `export_transformers.py` make models. OUTPUT/results.json is written
after each model, and what is there already is not measured again; the table is written at the end.
"""

import argparse
import json
import logging
import os
import re
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("coverage")

Row = dict[str, Any]

_CHILD = Path(__file__).with_name("coverage_row.py")
_GIB = 2**30
COLUMNS = (
    "model", "exporter", "opset", "blocks", "weights in differentiable blocks", "parity",
    "against the file", "W8A8", "SQNR, dB", "integer MACs",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a child may use, and what it is to do."""

    seconds: int
    gib: int
    threads: int
    quantize: bool

    def arguments(self) -> list[str]:
        """For the child's command line."""
        return ["--threads", str(self.threads), *([] if self.quantize else ["--no-quantize"])]


def measure(model: Path, scratch: Path, limits: Limits) -> Row:
    """The row of one model; where its process ended early, with how."""
    scratch.unlink(missing_ok=True)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limits.gib * _GIB, limits.gib * _GIB))

    command = [sys.executable, str(_CHILD), str(model), str(scratch), *limits.arguments()]
    ended = ""
    try:
        done = subprocess.run(
            command, timeout=limits.seconds, capture_output=True, text=True, check=False,
            preexec_fn=limited,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            ended = f"process ended with {done.returncode}: {last}"
    except subprocess.TimeoutExpired:
        ended = f"not finished after {limits.seconds} s"
    row: Row = {"model": model.stem, "stage": "start"}
    if scratch.exists():
        row = json.loads(scratch.read_text(encoding="utf-8"))
        scratch.unlink()
    if ended:
        stage = {"start": "load", "load": "load", "blocks": "blocks"}.get(row["stage"], "quantize")
        row[f"{stage}_error"] = ended
    return {"file": model.name, **row}


def table(rows: Sequence[Row]) -> str:
    """The Markdown document: all models, then what fails and what is an island, by cause."""
    lines = [
        "# Coverage", "",
        "Written by `tests/benchmarks/coverage.py`; weights of torchvision's architectures, "
        "and of Hugging Face's transformers (`hf_`, two layers each, any number of tokens), are "
        "random, and inputs are noise. *Differentiable*: the share of the elements of Conv, Gemm "
        "and MatMul weights in blocks that torch takes over and sends gradients through; the rest "
        "is rounded to nearest. *Parity*: the largest difference of a block's outputs, torch "
        "against onnxruntime, relative to the output's largest value. *Against the file*: the "
        "same for the chain of all blocks against the file as it came; detections of nearly equal "
        "scores may change places, which tells as a large one. *W8A8*: quantized on eight samples "
        "at effort `fast`, opened and run by onnxruntime.", "",
        _line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(_cells(row)) for row in rows), "",
    ]  # fmt: skip
    for title, causes in (("Failures", failures(rows)), ("Islands", islands(rows))):
        lines += [f"## {title}", ""]
        for cause, names in sorted(causes.items(), key=lambda item: (-len(item[1]), item[0])):
            lines.append(f"- {cause}: {', '.join(dict.fromkeys(names))}")
        lines += ["" if causes else "None.\n"]
    return "\n".join(lines).rstrip() + "\n"


def failures(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Stage and cause → the files that it stops."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for stage in ("load", "blocks", "quantize"):
            if f"{stage}_error" in row:
                found[f"{stage}: {_general(row[f'{stage}_error'], row)}"].append(_name(row))
    return found


def islands(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Cause → the files with islands that hold weights."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for island in row.get("islands", ()):
            if island["weights"]:
                found[_general(island["reason"], row)].append(_name(row))
    return found


def _general(message: str, row: Row) -> str:
    """The message without the names of nodes, tensors and files, so that like causes meet."""
    text = re.sub(r"\S*" + re.escape(row["file"]), "FILE", message)
    text = re.sub(r"\bnode \S+", "node …", text)
    text = re.sub(r"'[^']*[/.~_][^']*'", "'…'", text)
    return text.replace("|", "\\|")[:240]


def _name(row: Row) -> str:
    exporter = row.get("exporter", "")
    return f"{row['model']} ({exporter})" if exporter in ("torchscript", "dynamo") else row["model"]


def _cells(row: Row) -> list[str]:
    if "load_error" in row:
        return [row["model"], row.get("exporter", "–"), str(row.get("opset", "–")),
                f"**{_general(row['load_error'], row)}**", *[""] * (len(COLUMNS) - 4)]  # fmt: skip
    error = row.get("quantize_error")
    through = f"**{_general(error, row)}**" if error else "yes" if "sqnr_db" in row else "–"
    chain = row.get("chain")
    return [
        row["model"], row["exporter"], str(row["opset"]),
        _number(row.get("blocks"), "d"),
        _number(row.get("differentiable"), ".1%"),
        _number(row.get("parity"), ".0e"),
        chain if isinstance(chain, str) else _number(chain, ".0e"),
        through,
        _number(row.get("sqnr_db"), ".1f"),
        _number(row.get("integer_macs"), ".1%"),
    ]  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def keep(path: Path, text: str) -> None:
    """Writes a file by renaming a finished one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def run(models: Sequence[Path], output: Path, limits: Limits, *, redo: bool) -> list[Row]:
    """The rows of all models, those of former runs included."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    known = {row["file"]: row for row in rows}
    for model in models:
        if model.name in known and not redo:
            continue
        row = known[model.name] = measure(model, output / "row.json", limits)
        keep(path, json.dumps([known[name] for name in sorted(known)], indent=1))
        log.info("%s", _line([model.name, *_cells(row)[1:]]))
    return [known[name] for name in sorted(known)]


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Tries many models; writes one table.")
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--only", default="", help="files whose name holds one of these, commas")
    parser.add_argument("--redo", action="store_true", help="measure again what is there")
    parser.add_argument("--no-quantize", action="store_true")
    parser.add_argument("--seconds", type=int, default=900, help="limit for one model")
    parser.add_argument("--gib", type=int, default=16, help="address space for one model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = arguments.only.split(",")
    models = [
        path for folder in arguments.models for path in sorted(folder.glob("*.onnx"))
        if any(text in path.name for text in wanted)
    ]  # fmt: skip
    limits = Limits(arguments.seconds, arguments.gib, arguments.threads, not arguments.no_quantize)
    rows = run(models, arguments.output, limits, redo=arguments.redo)
    keep(arguments.table, table(rows))


if __name__ == "__main__":
    main()
