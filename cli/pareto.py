"""onnxbrecq pareto: the least predicted loss at each cost."""

import os
from pathlib import Path
from typing import Any

import click

from .command import Command
from .environment import spin_briefly
from .options import (
    PATH,
    SENSITIVITY,
    bits,
    budgeted,
    common,
    evaluated,
    mixing,
    reading,
    recipe_of,
    targeted,
    working,
)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@targeted("ort-cpu, as this processor needs it")
@bits
@mixing
@budgeted
@SENSITIVITY
@click.option("--cost", metavar="size|bitops|latency", default="size", help="Default size.")
@click.option("--points", type=click.IntRange(2), help="Budgets, evenly spaced; default 33.")
@click.option(
    "--verify",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Really quantize so many of the points, evenly spaced, and measure them.",
)
@click.option("--effort", metavar="fast|balanced|best", help="Of --verify.")
@click.option("--html", type=PATH, metavar="FILE", help="A plot, in one file.")
@working("MODEL's STEM.pareto.work")
@evaluated
@reading
@common
def pareto(
    *,
    model: Path,
    data: str | None,
    evaluation: str | None,
    recipe: Path | None,
    sensitivity: Path | None,
    cost: str,
    points: int | None,
    verify: int,
    html: Path | None,
    json: Path | None,
    work_dir: Path | None,
    no_resume: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Finds the best bits of MODEL's layers at each of many budgets."""
    wanted = recipe_of(recipe, **options)
    if cost not in ("size", "bitops", "latency"):
        raise click.UsageError(f"--cost {cost}: choose size, bitops or latency")
    spin_briefly(os.environ)

    import onnxbrecq  # noqa: PLC0415 -- torch takes seconds; --help must not wait for it

    from . import progress, render  # noqa: PLC0415 -- likewise rich

    render.claim_json(json, force=force, models=[model, sensitivity])
    render.claim_html(html, force=force, models=[model, sensitivity, json])
    many = {} if points is None else {"points": points}
    with progress.watching(quiet=quiet, verbose=verbose) as watch:
        found = onnxbrecq.pareto(
            model,
            data,
            wanted,
            cost=cost,
            verify=verify,
            evaluation=evaluation,
            sensitivity=sensitivity,
            work_dir=work_dir,
            resume=not no_resume,
            progress=watch,
            **many,
        )
    render.write_html(html, found.as_html)
    render.front(found.as_json(), json, quiet=quiet)
