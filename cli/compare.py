"""onnxbrecq compare: two quantized models of one float model, layer by layer."""

from pathlib import Path

import click

from .command import Command
from .options import PATH, common, recipe_of


@click.command(cls=Command)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--reference", type=PATH, required=True, metavar="MODEL", help="The float model.")
@click.option(
    "-d",
    "--data",
    metavar="SOURCE",
    help="Samples, with labels if there are any; default: STEM.eval.npz or STEM.calib.npz beside "
    "MODEL.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=32,
    help="On how many of them layers are compared; default 32.",
)
@click.option("--threads", type=int, help="Of onnxruntime; default: all cores.")
@click.option("--recipe", type=PATH, metavar="FILE.toml", help="Preprocessing of image folders.")
@common
def compare(
    *,
    a: Path,
    b: Path,
    reference: Path,
    data: str | None,
    samples: int,
    threads: int | None,
    recipe: Path | None,
    json: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Shows the bits of each layer in A and B, whoever wrote them, and how far each is off."""
    wanted = recipe_of(recipe, threads=threads)

    import onnxbrecq  # noqa: PLC0415 -- onnxruntime takes long; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[a, b, reference])
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        found = onnxbrecq.compare(a, b, reference, data, wanted, samples=samples, progress=watch)
    render.comparison(found, json, quiet=quiet)
