"""onnxbrecq quantize: float ONNX in, quantized ONNX out."""

import os
from pathlib import Path
from typing import Any

import click

from onnxbrecq import BLOCK_SIZES, Recipe

from .command import Command
from .environment import spin_briefly
from .options import (
    PATH,
    SENSITIVITY,
    bits,
    budgeted,
    common,
    judging,
    measuring,
    mixing,
    output_and_target,
    recipe_of,
    working,
)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@output_and_target("ort-cpu, as this processor needs it")
@click.option(
    "-w",
    "--weights",
    type=int,
    metavar="BITS",
    help=f"2, 3, 4 or 8; default {Recipe.weights}.",
)
@bits
@click.option(
    "--block-size",
    type=int,
    metavar="INPUTS",
    help=f"Weight-only: a scale for every {', '.join(map(str, BLOCK_SIZES))} inputs of a Gemm or "
    "MatMul; default: one for each output.",
)
@mixing
@budgeted
@SENSITIVITY
@click.option("--effort", metavar="fast|balanced|best", help=f"Default {Recipe.effort}.")
@click.option(
    "--plan",
    type=PATH,
    metavar="FILE",
    help="Also keep the decisions (safetensors), for emit: the same model, or for another target.",
)
@working("OUTPUT.work")
@measuring
@judging
@common
@click.pass_context
def quantize(
    ctx: click.Context,
    /,
    *,
    model: Path,
    output: Path | None,
    data: str | None,
    evaluation: str | None,
    metric: str | None,
    detections: str | None,
    recipe: Path | None,
    json: Path | None,
    report: Path | None,
    junit: Path | None,
    summary: Path | None,
    plan: Path | None,
    sensitivity: Path | None,
    work_dir: Path | None,
    no_resume: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Quantizes MODEL, a float ONNX file, validates what comes out, and writes it."""
    wanted = recipe_of(recipe, **options)
    spin_briefly(os.environ)

    import onnxbrecq  # noqa: PLC0415 -- torch takes seconds; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    models = [model, output, plan, sensitivity]
    render.claim_json(json, force=force, models=models)
    render.claim_reports(report, junit, summary, force=force, models=models)
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        result = onnxbrecq.quantize(
            model,
            data,
            wanted,
            evaluation=evaluation,
            metric=metric,
            detections=detections,
            output=output,
            plan=plan,
            sensitivity=sensitivity,
            report=report,
            work_dir=work_dir,
            resume=not no_resume,
            force=force,
            progress=watch,
        )
    render.result(result, json, quiet=quiet)
    render.for_ci(result, junit, summary)
    render.leave_by_gate(ctx, result)
