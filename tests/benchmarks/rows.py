"""A table whose rows take long: each is made in a process of its own and kept at once.

OUTPUT/results.json holds the rows and OUTPUT/results.md is the table for reading. An interrupted
run goes on where it stopped; rows that failed are made again.
"""

import argparse
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from onnxbrecq.output import write_atomically

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Job(Protocol):
    """A row to make."""

    def columns(self) -> Row:
        """What tells the row from all others."""


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with what every benchmark of rows takes; what is logged goes to stderr."""
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, required=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return parser.parse_args()


def run(
    jobs: Sequence[Job],
    make: Callable[[Any], Row],
    missing: Callable[[Any], str | None],
    markdown: Callable[[Sequence[Row]], str],
    folder: Path,
) -> None:
    """Makes the rows that are not there yet and writes them all.

    Args:
        jobs: the rows.
        make: what makes one; a function that another process can import.
        missing: why a row cannot be made, or None.
        markdown: the table of all rows.
        folder: OUTPUT.
    """
    rows = [row for row in kept(folder) if "error" not in row]
    for job in jobs:
        names = job.columns()
        title = " ".join(map(str, names.values()))
        there = any(names == {name: row.get(name) for name in names} for row in rows)
        reason = "already there" if there else missing(job)
        if reason:
            log.info("%s: skipped: %s", title, reason)
            continue
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                row = {**names, **pool.submit(make, job).result()}
            except Exception as error:  # noqa: BLE001, RUF100  one failed row must not end the table
                log.exception("%s failed", title)
                row = {**names, "error": f"{type(error).__name__}: {error}"}
        rows.append(row)
        keep(folder, rows, markdown(rows))
        log.info("%s: %s", title, row.get("error", "done"))


def kept(folder: Path) -> list[Row]:
    """The rows of former runs."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def keep(folder: Path, rows: Sequence[Row], text: str) -> None:
    """Writes the rows, and the table made of them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.json", (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(folder / "results.md", text.encode())


def table(columns: Mapping[str, str], rows: Iterable[Row]) -> str:
    """A Markdown table: `columns` are names in the rows and how their values are written."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for row in rows:
        cells = [
            form.format(row[name]) if row.get(name) is not None else "–"
            for name, form in columns.items()
        ]
        if "error" in row:
            cells[3:] = [str(row["error"]), *[""] * (len(cells) - 4)]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"
