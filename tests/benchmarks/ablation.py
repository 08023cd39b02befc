"""What each switch of `Reconstruction` is worth: one off or on at a time; run by hand.

    python tests/benchmarks/ablation.py --data DIR --settings W4A8,W2A8,W4A4 --output DIR

A switch is another value of a field: of a choice the other ones, of a rate, weight or share 0.
Each row quantizes a model with the settings of `--effort` but for one switch, and the table gives
the difference to the row without any, of the same model, setting and seed: its mean over the seeds
and the standard deviation. Of SQNR, agreement and top-1 a negative difference says that the default
is the better choice; of seconds, that it costs time. The model `all` is the mean over the models.

Models are named as in `subjects.py`, --data as in `real_models.py`. Rows are kept at once, and an
interrupted run goes on where it stopped (`rows.py`).
"""

import argparse
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_args, get_origin, get_type_hints

import real_models
import rows
from rows import Row

from onnxbrecq.recipe import EFFORTS, Recipe, Reconstruction

log = logging.getLogger("ablation")

DEFAULT = "default"
# What `switches` does not find: fields that mean something only together, and values other than 0.
SWITCHES: dict[str, dict[str, Any]] = {
    "regularizer=absolute": {"regularizer": "absolute", "regularization": 0.01},
    "iterations=0": {"iterations": 0},
    "drop=0.5": {"drop": 0.5},
    "batch_places=0": {"batch_places": 0},
}


def switches(settings: Reconstruction) -> dict[str, dict[str, Any]]:
    """Name → the fields that it changes in `settings`."""
    found: dict[str, dict[str, Any]] = {DEFAULT: {}}
    kinds = get_type_hints(Reconstruction)
    for field in fields(Reconstruction):
        value = getattr(settings, field.name)
        for other in _others(kinds[field.name], value):
            found[f"{field.name}={other}"] = {field.name: other}
    return {
        name: changed for name, changed in {**found, **SWITCHES}.items()
        if name == DEFAULT or replace(settings, **changed) != settings
    }  # fmt: skip


def _others(kind: Any, value: object) -> Iterator[object]:
    """What a field of that type can be instead; of a number, nothing but 0."""
    if kind is bool:
        yield not value
    elif get_origin(kind) is Literal:
        yield from (other for other in get_args(kind) if other != value)
    elif kind is float and value:
        yield 0.0


@dataclass(frozen=True)
class Job(real_models.Job):
    """One row: a row of `real_models.py` with a switch, and a seed."""

    switch: str
    seed: int

    def columns(self) -> Row:
        """What tells the row from all others."""
        return {**super().columns(), "switch": self.switch, "seed": self.seed}

    def recipe(self) -> Recipe:
        """The recipe of this row."""
        recipe = super().recipe()
        settings = recipe.settings()
        settings = replace(settings, **switches(settings)[self.switch])
        return replace(recipe, reconstruction=settings, seed=self.seed)


# ---- the table ------------------------------------------------------------------------------

MEASURED = ("sqnr_db", "agreement", "top1", "seconds")
COLUMNS = {
    "setting": "{}", "model": "{}", "switch": "{}", "seeds": "{}",
    **dict.fromkeys(MEASURED, "{}"),
}  # fmt: skip

Case = tuple[str, str, str]  # setting, model, switch


def markdown(found: Sequence[Row]) -> str:
    """The defaults, and the differences to them."""
    values = measured(found)
    defaults = {case: seeds for case, seeds in values.items() if case[2] == DEFAULT}
    changes = differences(values)
    failed = [row for row in found if "error" in row]
    lines = [
        "## Defaults\n", rows.table(COLUMNS, _lines(defaults, "{:.2f} ± {:.2f}")),
        "## Differences to them\n", rows.table(COLUMNS, _lines(changes, "{:+.2f} ± {:.2f}")),
        *(f"{row['setting']} {row['model']} {row['switch']} {row['seed']}: {row['error']}\n"
          for row in failed),
    ]  # fmt: skip
    return "\n".join(lines)


def measured(found: Sequence[Row]) -> dict[Case, dict[int, Row]]:
    """Case → seed → what came out."""
    values: dict[Case, dict[int, Row]] = defaultdict(dict)
    for row in found:
        if "error" not in row:
            case = row["setting"], row["model"], row["switch"]
            values[case][row["seed"]] = {**row, "top1": row["quantized"]}
    return values


def differences(values: dict[Case, dict[int, Row]]) -> dict[Case, dict[int, Row]]:
    """Those to the default with the same seed; of the model `all`, the means over the models."""
    found: dict[Case, dict[int, Row]] = defaultdict(dict)
    together: dict[Case, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for (setting, model, switch), seeds in values.items():
        for seed, row in seeds.items() if switch != DEFAULT else ():
            default = values.get((setting, model, DEFAULT), {}).get(seed)
            if default is not None:
                change = {name: _less(row[name], default[name]) for name in MEASURED}
                found[setting, model, switch][seed] = change
                together[setting, "all", switch][seed].append(change)
    for case, by_seed in together.items():
        for seed, changes in by_seed.items():
            found[case][seed] = {name: _mean([c[name] for c in changes]) for name in MEASURED}
    return found


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _lines(values: dict[Case, dict[int, Row]], form: str) -> Iterator[Row]:
    """Rows of the table: mean and standard deviation over the seeds."""
    for (setting, model, switch), seeds in sorted(values.items()):
        yield {
            "setting": setting, "model": model, "switch": switch, "seeds": len(seeds),
            **{name: _spread([row[name] for row in seeds.values()], form) for name in MEASURED},
        }  # fmt: skip


def _spread(values: Sequence[float | None], form: str) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return form.format(mean(known), stdev(known) if len(known) > 1 else float("nan"))


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Changes one switch at a time; writes one table.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA", "."))
    parser.add_argument("--models", default="residual,inverted,resnet20,mobilenet_v2")
    parser.add_argument("--settings", default="W4A8,W2A8,W4A4")
    parser.add_argument("--effort", default="balanced", choices=EFFORTS)
    parser.add_argument(
        "--switches", help="commas; all. Whatever is unknown is answered with those known"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=512, help="samples, at most")
    parser.add_argument("--evaluation", type=int, default=1000, help="samples, at most")
    arguments = rows.arguments(parser)
    default = Recipe(effort=arguments.effort).settings()
    known = switches(default)
    names = arguments.switches.split(",") if arguments.switches else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown switches {unknown}; known: {', '.join(known)}")
    reached = {name for changed in known.values() for name in changed}
    for field in fields(default):
        if field.name not in reached:
            log.info("no switch changes %s", field.name)
    jobs = [
        Job(model, "onnxbrecq", setting, arguments.effort, arguments.calibration,
            arguments.evaluation, arguments.threads, switch, seed)
        for seed in range(arguments.seeds) for model in arguments.models.split(",")
        for setting in arguments.settings.split(",")
        for switch in dict.fromkeys((DEFAULT, *names))
    ]  # fmt: skip
    for job in jobs:
        job.recipe()  # a wrong setting ends the run here, not after the first row
    rows.run(
        jobs, partial(real_models.make_row, root=arguments.data),
        partial(real_models.missing, root=arguments.data), markdown, arguments.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
