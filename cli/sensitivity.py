"""onnxbrecq sensitivity: what each layer loses at each of its bits."""

import os
from pathlib import Path
from typing import Any

import click

from .command import Command
from .environment import spin_briefly
from .options import PATH, bits, common, mixing, reading, recipe_of, targeted, working


@click.command(cls=Command)
@click.argument("model", type=PATH)
@targeted("ort-cpu, as this processor needs it")
@bits
@mixing
@click.option(
    "--check-output",
    is_flag=True,
    help="Also run the whole network with each layer at each of its bits: the divergence of its "
    "output. Takes long.",
)
@click.option(
    "--measure-latency",
    is_flag=True,
    help="Also time each layer in onnxruntime here: in integers, at any bits, and in float.",
)
@click.option("--html", type=PATH, metavar="FILE", help="A heat map, in one file.")
@working("MODEL's STEM.sensitivity.work")
@reading
@common
def sensitivity(
    *,
    model: Path,
    data: str | None,
    recipe: Path | None,
    check_output: bool,
    measure_latency: bool,
    html: Path | None,
    json: Path | None,
    work_dir: Path | None,
    no_resume: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Measures what each layer of MODEL loses at each of its bits, and pairs of them together.

    The file that --json writes can be given to pareto and quantize --sensitivity.
    """
    wanted = recipe_of(recipe, **options)
    spin_briefly(os.environ)

    import onnxbrecq  # noqa: PLC0415 -- torch takes seconds; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[model])
    render.claim_html(html, force=force, models=[model, json])
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        found = onnxbrecq.sensitivities(
            model,
            data,
            wanted,
            check_output=check_output,
            measure_latency=measure_latency,
            work_dir=work_dir,
            resume=not no_resume,
            progress=watch,
        )
    render.write_html(html, found.as_html)
    render.exploration(found.as_json(), json, quiet=quiet)
