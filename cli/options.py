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
FLOAT, FREE = "float", "free"

_ACTIVATIONS = FLOAT if Recipe.activations is None else Recipe.activations


def bits_or(word: str) -> Callable[[click.Context, click.Parameter, str | None], int | str | None]:
    """A click callback: the number of bits, the word, or None."""

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | str | None:
        if value is None or value == word:
            return value
        try:
            return int(value)
        except ValueError as error:
            raise click.BadParameter(
                f"{value!r} is neither a number of bits nor {word!r}"
            ) from error

    return read


def _several(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """A click callback: numbers of bits."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of bits such as 2,4,8") from error


def _pins(
    _ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> dict[str, int | str] | None:
    """A click callback: pattern → bits."""
    found: dict[str, int | str] = {}
    for value in values:
        pattern, _, bits_ = value.rpartition("=")
        if not pattern or not (bits_ == FLOAT or bits_.isdigit()):
            raise click.BadParameter(f"{value!r}: want GLOB=BITS, such as 'head*=8'")
        found[pattern] = FLOAT if bits_ == FLOAT else int(bits_)
    return found or None


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


def targeted(default: str) -> Callable[[F], F]:
    """What adds the option of the target; `default` in words."""
    return click.option(
        "--target",
        metavar="NAME",
        help=f"The runtime: {', '.join(TARGETS[:-1])} or {TARGETS[-1]}; default: {default}.",
    )


def output_and_target(default: str) -> Callable[[F], F]:
    """What adds the options of commands that write a model; `default`: of the target, in words."""
    written = click.option(
        "-o", "--output", type=PATH, help="Default: STEM.quant.onnx beside MODEL."
    )
    return lambda function: written(targeted(default)(function))


def bits(function: F) -> F:
    """Adds the bits of activations, and of the first and the last layer."""
    for option in (
        click.option(
            "--first-last",
            metavar="BITS",
            callback=bits_or(FREE),
            help=f"Of the first and the last weight layer; default {Recipe.first_last}; {FREE}: as "
            "all others.",
        ),
        click.option(
            "-a",
            "--activations",
            callback=bits_or(FLOAT),
            metavar="BITS",
            help=f"2, 3, 4, 8, {FLOAT} (weight-only), or 16 (qnn); default {_ACTIVATIONS}.",
        ),
    ):
        function = option(function)
    return function


def mixing(function: F) -> F:
    """Adds what mixed precision has to choose from."""
    for option in (
        click.option(
            "--pin",
            "pinned",
            multiple=True,
            metavar="GLOB=BITS",
            callback=_pins,
            help=f"Layers that keep so many bits, or {FLOAT}: not quantized. Repeatable.",
        ),
        click.option(
            "--offer-activations",
            "offered_activations",
            metavar="BITS,...",
            callback=_several,
            help="Mixed precision: bits of what layers read to choose from; default: as -a.",
        ),
        click.option(
            "--offer",
            "offered",
            metavar="BITS,...",
            callback=_several,
            help="Mixed precision: bits of weights to choose from; default "
            f"{','.join(map(str, Recipe.offered))}.",
        ),
    ):
        function = option(function)
    return function


def budgeted(function: F) -> F:
    """Adds what the model may cost, and how bits are chosen for it."""
    for option in (
        click.option(
            "--latency",
            metavar="FILE.csv|systolic",
            help="What a budget of latency means: a table of layers, or a systolic array.",
        ),
        click.option(
            "--search",
            metavar="exact|genetic",
            help="Mixed precision: how bits are chosen; default exact.",
        ),
        click.option(
            "--budget",
            multiple=True,
            metavar="KEY=VALUE",
            help="size=3MB, size=12% (of the float file), bitops=40G or latency=5ms: bits are "
            "chosen layer by layer. Repeatable: all hold.",
        ),
    ):
        function = option(function)
    return function


SENSITIVITY = click.option(
    "--sensitivity",
    type=PATH,
    metavar="FILE.json",
    help="What `sensitivity --json` wrote, so that it is not measured again.",
)


def working(default: str) -> Callable[[F], F]:
    """What adds the options of long work; `default`: of the folder, in words."""

    def add(function: F) -> F:
        for option in (
            click.option("--device", metavar="auto|cpu|cuda", help=f"Default {Recipe.device}."),
            click.option(
                "--max-memory",
                metavar="SIZE",
                help="Activations beyond it go to disk: 4GiB, 500MB; default: half of what is "
                "free.",
            ),
            click.option(
                "--no-resume", is_flag=True, help="Start afresh, whatever the work-dir holds."
            ),
            click.option(
                "--work-dir",
                type=PATH,
                metavar="DIR",
                help=f"Finished blocks are kept here until all is done; default: {default}.",
            ),
            click.option(
                "--seed", type=int, help=f"Of every random choice; default {Recipe.seed}."
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
    """Adds the options of commands that run models on data, and judge them."""
    for option in (
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
    ):
        function = option(function)
    return reading(evaluated(function))


def evaluated(function: F) -> F:
    """Adds evaluation data."""
    return click.option(
        "-e",
        "--eval",
        "evaluation",
        metavar="SOURCE",
        help="Labelled evaluation data, as --data; default: STEM.eval.npz beside MODEL.",
    )(function)


def reading(function: F) -> F:
    """Adds data, recipe and threads."""
    for option in (
        click.option("--threads", type=int, help="Of torch and onnxruntime; default: all cores."),
        click.option("--recipe", type=PATH, metavar="FILE.toml", help="These options, and more."),
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


def judging(function: F) -> F:
    """Adds what is judged besides, by what metric, and where the verdict goes."""
    for option in (
        click.option(
            "--summary",
            type=PATH,
            metavar="FILE",
            help="The result as Markdown, appended: to $GITHUB_STEP_SUMMARY, say.",
        ),
        click.option(
            "--junit",
            type=PATH,
            metavar="FILE",
            help="The gate as JUnit XML, a test for each limit.",
        ),
        click.option(
            "--report", type=PATH, metavar="FILE.html", help="The report for people, one page."
        ),
        click.option(
            "--detections",
            metavar="MODULE:FUNCTION",
            help="For mAP: makes boxes, scores and classes of a run's outputs; default: the model "
            "gives them.",
        ),
        click.option(
            "--metric",
            metavar="NAME",
            help="mAP, mAP50, or module:function, called with outputs and samples; default: mAP "
            "of data with boxes, top-1 of data with labels.",
        ),
        click.option(
            "--min-speedup",
            type=float,
            metavar="FACTOR",
            help="Fail with status 3 if it is less than so many times as fast as the float model.",
        ),
        click.option(
            "--max-size",
            metavar="SIZE",
            help="Fail with status 3 if it takes more: 3MB, or 12% of the float model.",
        ),
    ):
        function = option(function)
    return function


def recipe_of(file: Path | None, **given: Any) -> Recipe:
    """The recipe of `file`, if any, in which the options that were given win.

    Raises:
        RecipeError: an option or a key of the file is unknown or out of range.
    """
    overrides = {key: value for key, value in given.items() if value not in (None, ())}
    if file is None:
        return Recipe.from_table({}, **overrides)
    return Recipe.from_toml(file, **overrides)
