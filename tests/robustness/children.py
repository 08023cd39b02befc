"""The command line in forked children, each within bounds of time and memory.

A process that has everything imported forks one child a run: a run costs milliseconds, not the
seconds of its imports, and none can spoil the next. Requests and answers are lines of JSON on its
stdin and stdout.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MEMORY = 3 << 30  # bytes of address space that a child may add to what it was born with
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: its exit status; negative: the signal that ended it.
        err: its stderr.
        timed_out: it got the signal for taking too long.
        peak_bytes: the most memory it held.
        seconds: how long it took.
    """

    status: int
    err: str
    timed_out: bool
    peak_bytes: int
    seconds: float


class Children:
    """The server, and runs by it."""

    def __init__(self) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }  # fmt: skip
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=_ROOT,
        )  # fmt: skip

    def run(
        self,
        *arguments: object,
        folder: Path,
        seconds: float = 60,
        ended_by: int = signal.SIGKILL,
        limits: Mapping[int, int] | None = None,
        cgroup: Path | None = None,
    ) -> Ended:
        """Runs the command line with `arguments` in `folder`.

        Args:
            arguments: of the command line.
            folder: its working directory.
            seconds: after so many it gets the signal `ended_by`.
            ended_by: the number of the signal.
            limits: resource (RLIMIT_...) → what is allowed, beside those of every child.
            cgroup: the folder of a control group that it runs in.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"arguments": [str(a) for a in arguments], "folder": str(folder),
                   "seconds": seconds, "ended_by": int(ended_by),
                   "limits": list((limits or {}).items()),
                   "cgroup": str(cgroup or "")}  # fmt: skip
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return Ended(**json.loads(self._server.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()


def _serve() -> None:
    """Answers requests until there are no more."""
    _import_all()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a child's stdout is none of the answers
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(**request)), file=answers, flush=True)


def _import_all() -> None:
    """Imports what `quantize` does, so that children need not."""
    from onnxbrecq_cli import guard, progress, render  # noqa: PLC0415

    import onnxbrecq  # noqa: PLC0415 -- only the server needs it
    from onnxbrecq.recon import bridge  # noqa: PLC0415

    bridge._registry()  # a tenth of a second that each child would spend
    _ = onnxbrecq.quantize, guard, progress, render


def _answer(  # noqa: PLR0917 -- called with what a request holds, by name
    arguments: Sequence[str],
    folder: str,
    seconds: float,
    ended_by: int,
    limits: Sequence[tuple[int, int]],
    cgroup: str,
) -> dict[str, object]:
    read, write = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(read)
        _become(arguments, folder, write, limits, cgroup)
    os.close(write)
    timed_out = False
    with _signalled_after(child, seconds, ended_by) as signalled, os.fdopen(read, "rb") as pipe:
        err = pipe.read().decode(errors="replace")
        _, status, usage = os.wait4(child, 0)
        timed_out = bool(signalled)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "err": err,
        "timed_out": timed_out,
        "peak_bytes": usage.ru_maxrss * 1024,
        "seconds": time.monotonic() - started,
    }


@contextlib.contextmanager
def _signalled_after(child: int, seconds: float, number: int) -> Iterator[list[int]]:
    """Within the context, the child gets a signal once it is late; the list then holds it."""
    signalled: list[int] = []

    def late(*_: object) -> None:
        signalled.append(child)
        os.kill(child, number)

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield signalled
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _become(
    arguments: Sequence[str],
    folder: str,
    err: int,
    limits: Sequence[tuple[int, int]],
    cgroup: str,
) -> None:
    """Makes this process a run of the command line; does not return."""
    # As in a terminal: what a shell starts in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDWR)
    for stream, target in ((0, null), (1, null), (2, err)):
        os.dup2(target, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limited, allowed in limits:
        most = allowed + (virtual if limited == resource.RLIMIT_AS else 0)
        resource.setrlimit(limited, (most, most))
    from onnxbrecq_cli.guard import main  # noqa: PLC0415 -- as in _import_all

    sys.argv = ["onnxbrecq", *arguments]
    status = 70
    try:
        os.chdir(folder)
        if cgroup:
            (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
        status = main()
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
