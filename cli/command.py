"""How every command ends: an exit status, and one line on stderr when something is wrong.

Status 0: done; 1: our error; 2: wrong usage; 3: the gate was not met; 130: interrupted.
"""

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from onnxbrecq.errors import OnnxbrecqError, RecipeError

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
    if isinstance(error, OnnxbrecqError):
        more = f" (more: docs/troubleshooting.md#{error.topic})" if error.topic else ""
        return f"{error}{more}"
    if isinstance(error, MemoryError):
        return "out of memory; give fewer samples, or run where there is more"
    hint = "" if verbose else "; run with -v for the traceback"
    return f"internal error: {type(error).__name__}: {error}{hint}"


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
