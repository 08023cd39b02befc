"""onnxbrecq validate: a quantized model beside the float model it came from."""

from pathlib import Path
from typing import Any

import click

from .command import Command
from .options import PATH, common, judging, measuring, recipe_of


@click.command(cls=Command)
@click.argument("quantized", type=PATH)
@click.option("--reference", type=PATH, required=True, metavar="MODEL", help="The float model.")
@measuring
@judging
@common
@click.pass_context
def validate(
    ctx: click.Context,
    /,
    *,
    quantized: Path,
    reference: Path,
    data: str | None,
    evaluation: str | None,
    metric: str | None,
    detections: str | None,
    recipe: Path | None,
    json: Path | None,
    report: Path | None,
    junit: Path | None,
    summary: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Compares QUANTIZED with its float model: accuracy, integer coverage, parity, latency."""
    wanted = recipe_of(recipe, **options)

    import onnxbrecq  # noqa: PLC0415 -- torch takes seconds; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    models = [quantized, reference]
    render.claim_json(json, force=force, models=models)
    render.claim_reports(report, junit, summary, force=force, models=models)
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        result = onnxbrecq.validate(
            quantized,
            reference,
            data,
            evaluation,
            wanted,
            metric=metric,
            detections=detections,
            report=report,
            force=force,
            progress=watch,
        )
    render.result(result, json, quiet=quiet)
    render.for_ci(result, junit, summary)
    render.leave_by_gate(ctx, result)
