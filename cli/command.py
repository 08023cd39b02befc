"""How every command ends: an exit status, and one line on stderr when something is wrong.

Status 0: done; 1: our error; 2: wrong usage; 3: the gate was not met; 130: interrupted.
"""

import contextlib
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import click

from onnxbrecq.errors import OnnxbrecqError, RecipeError, is_memory

FAILED, USAGE, GATE_NOT_MET, INTERRUPTED = 1, 2, 3, 130


class Command(click.Command):
    """A command whose exceptions become an exit status; a traceback is shown only with -v."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; leaves by `ctx.exit` if it fails."""
        verbose = bool(ctx.params.get("verbose"))
        try:
            with _logging(verbose=verbose):
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(INTERRUPTED)
        except Exception as error:
            if verbose:
                traceback.print_exc()
            say(_told(error, verbose=verbose))
            ctx.exit(USAGE if isinstance(error, RecipeError) else FAILED)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the context SIGINT and SIGTERM raise KeyboardInterrupt, the first of them alone.

    A second one would cut the cleaning up.
    """
    signals = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        signals = []  # only the main thread may
    before = {number: signal.getsignal(number) for number in signals}

    def interrupt(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(message: str) -> None:
    """Writes one line to stderr, whatever the message holds."""
    click.echo(f"onnxbrecq: {shown(' '.join(message.split()))}", err=True)


def shown(text: str) -> str:
    """`text` with what a terminal would obey instead of print (escape sequences) spelt out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def _told(error: Exception, *, verbose: bool) -> str:
    if is_memory(error):
        where = f" ({error})" if str(error) else ""
        return (
            f"out of memory{where}; give fewer samples or --max-memory, or run where there is more"
        )
    if isinstance(error, OnnxbrecqError):
        more = f" (more: docs/troubleshooting.md#{error.topic})" if error.topic else ""
        return f"{error}{more}"
    if isinstance(error, OSError) and error.strerror:
        told = f"{error.filename or 'a file'} cannot be read or written: {error.strerror}"
        return str(OnnxbrecqError(told))  # which is of no more than some hundred characters
    hint = "" if verbose else "; run with -v for the traceback"
    return f"{OnnxbrecqError(f'internal error: {type(error).__name__}: {error}')}{hint}"


@contextlib.contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    """The library's log on stderr while a verbose command runs."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger("onnxbrecq"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
