"""onnxbrecq bundle: the hand-over of a quantized model."""

from pathlib import Path

import click

from .command import Command
from .options import PATH, common, recipe_of


@click.command(cls=Command)
@click.argument("quantized", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="DIR", help="The folder to make.")
@click.option(
    "-d",
    "--data",
    metavar="SOURCE",
    help="Samples that go with it; default: STEM.eval.npz or STEM.calib.npz beside QUANTIZED, else "
    "random numbers.",
)
@click.option("--samples", type=click.IntRange(min=1), default=4, help="How many; default 4.")
@click.option(
    "--provider",
    default="CPUExecutionProvider",
    metavar="NAME",
    help="Of onnxruntime, where it will run; default: CPUExecutionProvider.",
)
@click.option("--recipe", type=PATH, metavar="FILE.toml", help="Preprocessing of image folders.")
@common
def bundle(
    *,
    quantized: Path,
    output: Path,
    data: str | None,
    samples: int,
    provider: str,
    recipe: Path | None,
    json: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Makes a folder to deploy: model, manifest, samples with outputs, checksums, verify.py."""
    preprocess = recipe_of(recipe).preprocess

    import onnxbrecq  # noqa: PLC0415 -- onnxruntime takes long; --help must not wait for it

    from . import render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[quantized])
    made = onnxbrecq.bundle(
        quantized,
        output,
        data,
        samples=samples,
        provider=provider,
        preprocess=preprocess,
        force=force,
    )
    render.bundled(made.as_json(), json, quiet=quiet)
