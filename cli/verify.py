"""onnxbrecq verify: a bundle, replayed on this machine's runtime."""

from pathlib import Path

import click

from .command import Command
from .options import PATH, common


@click.command(cls=Command)
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--provider", metavar="NAME", help="Of onnxruntime; default: the manifest's.")
@common
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    *,
    folder: Path,
    provider: str | None,
    json: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Replays the bundle DIR: files, provider, outputs, integer kernels; says what differs."""
    import onnxbrecq  # noqa: PLC0415 -- onnxruntime takes long; --help must not wait for it

    from . import render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[])
    checks = onnxbrecq.verify(folder, provider)
    render.verified(str(folder), checks, json, quiet=quiet)
    render.leave_by_checks(ctx, checks)
