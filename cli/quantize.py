"""onnxbrecq quantize: float ONNX in, quantized ONNX out."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import click

from onnxbrecq import BLOCK_SIZES, Recipe

from .command import Command
from .options import (
    FLOAT,
    PATH,
    bits_or_float,
    common,
    measuring,
    output_and_target,
    recipe_of,
)

# Threads of torch wait for each other in a loop, by default for about a millisecond. On a processor
# that others use too, a quantization takes 412 s so, and 63 s with this count; alone 32 and 35 s
# (2 cores, libgomp of torch 2.13). It is read when torch is loaded.
_SPINS = "1000"

_ACTIVATIONS = FLOAT if Recipe.activations is None else Recipe.activations


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
@click.option(
    "-a",
    "--activations",
    callback=bits_or_float,
    metavar="BITS",
    help=f"2, 3, 4, 8, {FLOAT} (weight-only), or 16 (qnn); default {_ACTIVATIONS}.",
)
@click.option(
    "--block-size",
    type=int,
    metavar="INPUTS",
    help=f"Weight-only: a scale for every {', '.join(map(str, BLOCK_SIZES))} inputs of a Gemm or "
    "MatMul; default: one for each output.",
)
@click.option(
    "--first-last",
    type=int,
    metavar="BITS",
    help=f"Of the first and the last weight layer; default {Recipe.first_last}.",
)
@click.option("--effort", metavar="fast|balanced|best", help=f"Default {Recipe.effort}.")
@click.option(
    "--plan",
    type=PATH,
    metavar="FILE",
    help="Also keep the decisions (safetensors), for emit: the same model, or for another target.",
)
@click.option("--seed", type=int, help=f"Of every random choice; default {Recipe.seed}.")
@click.option(
    "--work-dir",
    type=PATH,
    metavar="DIR",
    help="Finished blocks are kept here until the output is written; default: OUTPUT.work.",
)
@click.option("--no-resume", is_flag=True, help="Start afresh, whatever the work-dir holds.")
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="Activations beyond it go to disk: 4GiB, 500MB; default: half of what is free.",
)
@click.option("--device", metavar="auto|cpu|cuda", help=f"Default {Recipe.device}.")
@measuring
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
    recipe: Path | None,
    json: Path | None,
    plan: Path | None,
    work_dir: Path | None,
    no_resume: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Quantizes MODEL, a float ONNX file, writes it, and validates what was written."""
    wanted = recipe_of(recipe, **options)
    spin_briefly(os.environ)

    import onnxbrecq  # noqa: PLC0415 -- torch takes seconds; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[model, output, plan])
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        result = onnxbrecq.quantize(
            model,
            data,
            wanted,
            evaluation=evaluation,
            output=output,
            plan=plan,
            work_dir=work_dir,
            resume=not no_resume,
            force=force,
            progress=watch,
        )
    render.result(result, json, quiet=quiet)
    render.leave_by_gate(ctx, result)


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Edits the environment: OpenMP's threads soon sleep while waiting, unless told otherwise."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
