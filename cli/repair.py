"""onnxbrecq repair: another tool's quantized model, rounded anew."""

import os
from pathlib import Path
from typing import Any

import click

from onnxbrecq import Recipe

from .command import Command
from .environment import spin_briefly
from .options import PATH, common, measuring, recipe_of, working


@click.command(cls=Command)
@click.argument("quantized", type=PATH)
@click.option("--reference", type=PATH, required=True, metavar="MODEL", help="The float model.")
@click.option("-o", "--output", type=PATH, help="Default: STEM.repaired.onnx beside QUANTIZED.")
@click.option("--effort", metavar="fast|balanced|best", help=f"Default {Recipe.effort}.")
@working("OUTPUT.work")
@measuring
@common
@click.pass_context
def repair(
    ctx: click.Context,
    /,
    *,
    quantized: Path,
    reference: Path,
    output: Path | None,
    data: str | None,
    evaluation: str | None,
    recipe: Path | None,
    json: Path | None,
    work_dir: Path | None,
    no_resume: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Learns the rounding and the steps of QUANTIZED, a QDQ model of another tool, anew.

    Its nodes, their placement and types stay as they are: only values of constants change.
    """
    wanted = recipe_of(recipe, **options)
    spin_briefly(os.environ)

    import onnxbrecq  # noqa: PLC0415 -- torch takes seconds; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[quantized, reference, output])
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        result = onnxbrecq.repair(
            quantized,
            reference,
            data,
            wanted,
            evaluation=evaluation,
            output=output,
            work_dir=work_dir,
            resume=not no_resume,
            force=force,
            progress=watch,
        )
    render.result(result, json, quiet=quiet)
    render.leave_by_gate(ctx, result)
