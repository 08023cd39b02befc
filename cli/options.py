"""Options that several commands share, and the recipe they amount to.

An option that was not given is None: defaults stand in `Recipe` alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxbrecq import PRESETS, TARGETS, Recipe

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
FLOAT = "float"


def bits_or_float(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> int | str | None:
    """A click callback: the number of bits, FLOAT, or None."""
    if value is None or value == FLOAT:
        return value
    try:
        return int(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a number of bits nor {FLOAT!r}") from error


def common(function: F) -> F:
    """Adds what every command has: --json, --force, -q and -v."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Log, and tracebacks of errors."),
        click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
        click.option("--force", is_flag=True, help="Replace existing files."),
        click.option("--json", type=PATH, metavar="FILE|-", help="The result for machines."),
    ):
        function = option(function)
    return function


def output_and_target(default: str) -> Callable[[F], F]:
    """What adds the options of commands that write a model; `default`: of the target, in words."""

    def add(function: F) -> F:
        for option in (
            click.option(
                "--target",
                metavar="NAME",
                help=f"The runtime: {', '.join(TARGETS[:-1])} or {TARGETS[-1]}; "
                f"default: {default}.",
            ),
            click.option(
                "-o", "--output", type=PATH, help="Default: STEM.quant.onnx beside MODEL."
            ),
        ):
            function = option(function)
        return function

    return add


def of_images(function: F) -> F:
    """Adds --preprocess."""
    return click.option(
        "--preprocess",
        "preset",
        metavar="PRESET",
        help=f"Of a folder of images: {', '.join(PRESETS)}; the recipe says more.",
    )(function)


def measuring(function: F) -> F:
    """Adds the options of commands that run models on data."""
    for option in (
        click.option("--threads", type=int, help="Of torch and onnxruntime; default: all cores."),
        click.option("--recipe", type=PATH, metavar="FILE.toml", help="These options, and more."),
        of_images,
        click.option(
            "--max-drop",
            type=float,
            metavar="POINTS",
            help="Fail with status 3 if top-1 (agreement without labels) drops further.",
        ),
        click.option(
            "--min-integer",
            type=float,
            metavar="SHARE",
            help="Fail with status 3 if less of the weight layers' multiply-accumulates, from 0 "
            "to 1, runs in integer kernels.",
        ),
        click.option(
            "-e",
            "--eval",
            "evaluation",
            metavar="SOURCE",
            help="Labelled evaluation data, as --data; default: STEM.eval.npz beside MODEL.",
        ),
        click.option(
            "-d",
            "--data",
            metavar="SOURCE",
            help="Calibration data: .npz, .npy, a folder of images or of .npy files, or "
            "module:function; default: STEM.calib.npz beside MODEL, else made from MODEL itself.",
        ),
    ):
        function = option(function)
    return function


def recipe_of(file: Path | None, **given: Any) -> Recipe:
    """The recipe of `file`, if any, in which the options that were given win.

    Raises:
        RecipeError: an option or a key of the file is unknown or out of range.
    """
    overrides = {key: value for key, value in given.items() if value is not None}
    if overrides.get("activations") == FLOAT:
        overrides["activations"] = None
    if file is None:
        return Recipe.from_table({}, **overrides)
    return Recipe.from_toml(file, **overrides)
