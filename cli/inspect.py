"""onnxbrecq inspect: what quantization sees in a model; no data, no torch."""

from pathlib import Path

import click

from .command import Command
from .options import PATH, common


@click.command(cls=Command)
@click.argument("model", type=PATH)
@common
def inspect(model: Path, json: Path | None, *, force: bool, quiet: bool, verbose: bool) -> None:
    """Lists the blocks and layers of MODEL, what stays float, and why."""
    import onnxbrecq  # noqa: PLC0415 -- onnx takes long; --help must not wait for it

    from . import render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[model])
    render.inspection(onnxbrecq.inspect(model).as_json(), json, quiet=quiet)
