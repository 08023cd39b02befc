"""onnxbrecq inspect: what quantization sees in a model, and in data for it; no torch."""

from pathlib import Path

import click

from .command import Command
from .options import PATH, common, of_images, recipe_of


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.option(
    "-d",
    "--data",
    metavar="SOURCE",
    help="Also look at this data, as of quantize: its ranges, and what is probably wrong with it.",
)
@click.option("--recipe", type=PATH, metavar="FILE.toml", help="Its [data.preprocess] counts.")
@of_images
@common
def inspect(
    *,
    model: Path,
    data: str | None,
    recipe: Path | None,
    preset: str | None,
    json: Path | None,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Lists the blocks and layers of MODEL, what stays float, and why."""
    wanted = recipe_of(recipe, preset=preset)

    import onnxbrecq  # noqa: PLC0415 -- onnx takes long; --help must not wait for it

    from . import render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[model])
    found = onnxbrecq.inspect(model).as_json()
    if data is not None and "quantized" in found:
        raise click.UsageError(f"{model} is quantized: --data is for float models")
    if data is not None:
        found["data"] = onnxbrecq.preview(model, data, wanted).as_json()
    render.inspection(found, json, quiet=quiet)
