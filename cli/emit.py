"""onnxbrecq emit: a saved plan to a quantized model; no data, no torch."""

from pathlib import Path

import click

from .command import Command
from .options import PATH, common, output_and_target


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.argument("plan", type=PATH)
@output_and_target("the plan's")
@common
def emit(
    *,
    model: Path,
    plan: Path,
    output: Path | None,
    target: str | None,
    json: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Writes what PLAN (of quantize --plan) makes of MODEL, for another runtime if wanted."""
    import onnxbrecq  # noqa: PLC0415 -- onnxruntime takes long; --help must not wait for it

    from . import render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[model, plan, output])
    found = onnxbrecq.emit_plan(model, plan, target, output=output, force=force)
    render.emission(found.as_json(), json, quiet=quiet)
