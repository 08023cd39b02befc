"""onnxbrecq doctor: what this machine and its runtime can do."""

from pathlib import Path

import click

from .command import Command
from .options import common


@click.command(cls=Command)
@common
def doctor(json: Path | None, *, force: bool, quiet: bool, verbose: bool) -> None:
    """Shows versions, processor features, what they allow, and what is wrong with them."""
    import onnxbrecq  # noqa: PLC0415 -- onnxruntime takes long; --help must not wait for it

    from . import render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[])
    render.diagnosis(onnxbrecq.doctor(), json, quiet=quiet)
