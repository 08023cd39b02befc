"""Progress on stderr: a bar for each stage on a terminal, else a plain line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from .command import shown

Watch = Callable[..., None]

LINE_SECONDS = 5.0  # between plain lines within a stage


@contextlib.contextmanager
def watching(*, quiet: bool, verbose: bool) -> Iterator[Watch]:
    """What the library is to call while it works; a log and a bar do not mix, so -v has lines."""
    if quiet:
        yield _unseen
    elif verbose or not sys.stderr.isatty():
        yield Lines(_to_stderr)
    else:
        with _bars(Console(stderr=True)) as display:
            yield Bars(display)


class Lines:
    """A line at the end of a stage, and within it one each `LINE_SECONDS`."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._begin = self._last = clock()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Tells of a step, if it is time."""
        now = self._clock()
        if done < total and now - self._last < LINE_SECONDS:
            return
        self._last = now
        words = [stage, f"{done}/{total}", detail, f"({now - self._begin:.0f} s)"]
        self._write(shown(" ".join(word for word in words if word)))


class Bars:
    """A bar for each stage."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Moves the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self._display.add_task(shown(stage), total=total, detail="")
        self._display.update(self._tasks[stage], completed=done, total=total, detail=shown(detail))


def _bars(console: Console) -> Progress:
    """The display that `Bars` moves; names may hold brackets, so nothing is markup."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
    )


def _to_stderr(line: str) -> None:
    # Where nobody reads any more, the work goes on unseen.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _unseen(stage: str, done: int, total: int, detail: str = "") -> None:
    """Shows nothing."""
