"""Mixed precision against uniform bits at the same size, and what its predictions are worth.

    python tests/benchmarks/mixed_precision.py --output DIR [--data ROOT] [--models NAME ...]
        [--effort fast|balanced] [--first-last BITS|free] [--calibration N] [--only KIND ...]
        [--plot FILE.svg]

Models are those of `subjects.py`. For each there are rows of these kinds:

- *size*: uniform W3 and W4, and mixed precision within the size of each of the two files. A 3-bit
  weight takes 4 bits in a file; *dense W3* is the size that 3 bits would have without that. Uniform
  models have their first and last layer at 8 bits, mixed ones as --first-last says.
- *sensitivity*: seconds of the table, and of CPU time.
- *search*: 20 budgets by the exact and by the genetic search: predicted losses and seconds.
- *ranking*: 20 allocations drawn at random, each quantized: Spearman's rank correlation of the
  noise at the output with the predicted loss, with interactions and without.
- *front*: the predicted front, and five of its points quantized.

OUTPUT/NAME.sensitivity.json (NAME.free.sensitivity.json) is measured once and used by all rows.
--plot draws the fronts.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rows
import subjects
from scipy.stats import spearmanr

from onnxbrecq.bits import Allocation, Bits, uniform_bits
from onnxbrecq.blockwise import walk
from onnxbrecq.emission import emitted
from onnxbrecq.graph.write import contents
from onnxbrecq.mixed import Space, chosen, explored, menu_of
from onnxbrecq.preparation import Clock, Prepared, prepared
from onnxbrecq.progress import silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.search.allocate import Limit, exact, least
from onnxbrecq.search.findings import predicted_db
from onnxbrecq.search.front import front
from onnxbrecq.search.genetic import genetic
from onnxbrecq.search.table import Sensitivity
from onnxbrecq.validation.validate import measure

BUDGETS = ALLOCATIONS = 20
VERIFIED = 5
SIZES = ("W3", "W4", "size of W3", "size of W4", "size of dense W3")
KINDS = ("sensitivity", "size", "search", "ranking", "front")

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all rows share."""

    root: Path
    output: Path
    effort: str
    first_last: int | None
    calibration: int
    evaluation: int
    threads: int


@dataclass(frozen=True)
class Job:
    """A row to make."""

    model: str
    kind: str
    setting: str
    settings: Settings

    def columns(self) -> Row:
        """What tells the row from all others."""
        names = {"model": self.model, "kind": self.kind, "setting": self.setting}
        keys = ("effort", "first_last", "calibration")
        return {**names, **{key: getattr(self.settings, key) for key in keys}}


def main() -> None:
    """Makes the rows that are not there yet, and the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared")
    parser.add_argument("--models", nargs="+", default=["residual", "inverted", "resnet20"])
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--first-last", default="8", choices=("2", "3", "4", "8", "free"))
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--evaluation", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--plot", type=Path)
    given = rows.arguments(parser)
    first_last = None if given.first_last == "free" else int(given.first_last)
    settings = Settings(
        given.data, given.output, given.effort, first_last, given.calibration, given.evaluation,
        given.threads,
    )  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(model, kind, setting, settings)
        for model in given.models
        for kind in KINDS
        if kind in given.only
        for setting in (SIZES if kind == "size" else ("",))
    ]
    rows.run(jobs, make, missing, markdown, given.output)
    if given.plot:
        plot([row for row in rows.kept(given.output) if row["kind"] == "front"], given.plot)


def missing(job: Job) -> str | None:
    """Why the row cannot be made, or None."""
    return subjects.absent(job.model, job.settings.root)


def make(job: Job) -> Row:
    """The row."""
    ready = _ready(job)
    if job.kind == "sensitivity":
        return _timed(job, ready)
    space = _space(job, ready)
    return {"size": _size, "search": _search, "ranking": _ranking, "front": _front}[job.kind](
        job, ready, space
    )


def _ready(job: Job) -> Prepared:
    settings = job.settings
    seen, judged = subjects.samples(
        job.model, settings.root, calibration=settings.calibration, evaluation=settings.evaluation
    )
    recipe = Recipe(
        search="exact",
        effort=settings.effort,  # type: ignore[arg-type]
        first_last=settings.first_last,
        threads=settings.threads,
    )
    return prepared(
        subjects.source(job.model, settings.root), recipe, data=seen, evaluation=judged,
        folder=settings.output / "work", clock=Clock(), progress=silent,
    )  # fmt: skip


def _space(job: Job, ready: Prepared) -> Space:
    """The space of choices; the table is measured where no row has done so yet."""
    path = _table_of(job)
    table = Sensitivity.from_json(json.loads(path.read_bytes())) if path.exists() else None
    menu = menu_of(ready.task, ready.calibration, ready.target, ready.data_sha256)
    space = explored(menu, silent, table=table)
    if table is None:
        path.write_text(json.dumps(space.table.as_json()))
    return space


def _table_of(job: Job) -> Path:
    free = ".free" if job.settings.first_last is None else ""
    return job.settings.output / f"{job.model}{free}.sensitivity.json"


def _timed(job: Job, ready: Prepared) -> Row:
    started = time.process_time()
    _table_of(job).unlink(missing_ok=True)
    table = _space(job, ready).table
    return {
        "layers": len(table.choices),
        "samples": table.samples,
        "seconds": table.seconds,
        "cpu_seconds": time.process_time() - started,
    }


def _made(ready: Prepared, bits: Allocation) -> Row:
    """The model at these bits, quantized and measured."""
    started = time.process_time()
    task, plan = ready.at(bits)
    learned = walk(task, plan, silent).plan
    proto = emitted(task.model, learned, ready.target)
    accuracy, nearness, _ = measure(
        emitted(task.model, learned, task.target), ready.original, samples=task.data,
        labelled=ready.labelled, threads=task.recipe.threads,
    )  # fmt: skip
    assert nearness is not None
    return {
        "bytes": sum(len(part) for file in contents(proto, "m").values() for part in file),
        "sqnr_db": nearness.sqnr_db,
        "agreement": nearness.agreement,
        "drop": accuracy.drop if accuracy else None,
        "cpu_seconds": time.process_time() - started,
    }


def _uniform(ready: Prepared, width: int) -> dict[str, Bits]:
    return uniform_bits(ready.task.points, Recipe(weights=width))


def _size(job: Job, ready: Prepared, space: Space) -> Row:
    """A uniform model, or the best mixed one of its size."""
    if job.setting.startswith("W"):
        return _made(ready, _uniform(ready, int(job.setting[1:])))
    two, three, four = (space.menu.sizes.of(_uniform(ready, width)) for width in (2, 3, 4))
    budget = {"size of W3": three, "size of W4": four}.get(job.setting, (two + four) / 2)
    found = chosen(space, [Limit(space.menu.size, budget)])
    row = _made(ready, space.menu.all_bits(found.bits))
    counts = [bits.weight for bits in found.bits.values()]
    return {
        **row,
        "budget": budget,
        "used": row["bytes"] / budget,
        "predicted_db": predicted_db(space.table, found.loss),
        "gap": found.gap,
        "layers_of": {str(width): counts.count(width) for width in sorted(set(counts), key=str)},
    }


def _search(job: Job, ready: Prepared, space: Space) -> Row:
    """Exact against genetic at 20 budgets between the smallest and the largest model."""
    low = least(space.problem, space.menu.size)
    high = space.menu.size.base + sum(max(costs) for costs in space.menu.size.layers.values())
    ratios, seconds, genetic_seconds, gaps = [], [], [], []
    for budget in np.linspace(low, high, BUDGETS).tolist():
        limits = [Limit(space.menu.size, budget)]
        best, other = exact(space.problem, limits), genetic(space.problem, limits, 0)
        ratios.append(other.loss / best.loss)
        seconds.append(best.seconds)
        genetic_seconds.append(other.seconds)
        gaps.append(best.gap)
    return {
        "never_worse": min(ratios) >= 1 - 1e-9,
        "genetic_loss_median": float(np.median(ratios)),
        "genetic_loss_most": max(ratios),
        "exact_seconds_most": max(seconds),
        "genetic_seconds_most": max(genetic_seconds),
        "gap_most": max(gaps),
        "layers": len(space.table.choices),
    }


def _ranking(job: Job, ready: Prepared, space: Space) -> Row:
    """Predicted losses of random allocations against the noise they make."""
    random = np.random.default_rng(0)
    noise, alone, together = [], [], []
    for _ in range(ALLOCATIONS):
        bits = {n: c[int(random.integers(len(c)))] for n, c in space.table.choices.items()}
        together.append(space.table.loss(bits))
        alone.append(space.table.loss(bits, interactions=False))
        noise.append(10 ** (-_made(ready, space.menu.all_bits(bits))["sqnr_db"] / 10))
    return {
        "spearman": float(spearmanr(together, noise).statistic),
        "spearman_without_interactions": float(spearmanr(alone, noise).statistic),
        "predicted": together,
        "without_interactions": alone,
        "measured": noise,
    }


def _front(job: Job, ready: Prepared, space: Space) -> Row:
    found = front(space.problem, space.menu.size)
    picked = set(np.linspace(0, len(found) - 1, VERIFIED).round().astype(int).tolist())
    measured = [
        _made(ready, space.menu.all_bits(f.bits)) for i, f in enumerate(found) if i in picked
    ]
    return {
        "predicted": [[f.costs["size"], predicted_db(space.table, f.loss)] for f in found],
        "measured": [[row["bytes"], row["sqnr_db"]] for row in measured],
        "uniform": [
            [row["bytes"], row["sqnr_db"], width]
            for width in (2, 3, 4, 8)
            for row in [_made(ready, _uniform(ready, width))]
        ],
        "float_bytes": ready.original.source_bytes,
    }


_FORMS = {
    "size": {
        "model": "{}", "setting": "{}", "effort": "{}", "first_last": "{}", "bytes": "{:,}",
        "used": "{:.4f}", "sqnr_db": "{:.1f}", "predicted_db": "{:.1f}", "agreement": "{:.1f}",
        "drop": "{:.1f}", "layers_of": "{}", "gap": "{:.1g}", "cpu_seconds": "{:.0f}",
    },
    "sensitivity": {
        "model": "{}", "layers": "{}", "samples": "{}", "seconds": "{:.0f}",
        "cpu_seconds": "{:.0f}",
    },
    "search": {
        "model": "{}", "layers": "{}", "never_worse": "{}", "genetic_loss_median": "{:.3f}",
        "genetic_loss_most": "{:.3f}", "exact_seconds_most": "{:.2f}",
        "genetic_seconds_most": "{:.2f}", "gap_most": "{:.1g}",
    },
    "ranking": {
        "model": "{}", "effort": "{}", "calibration": "{}", "spearman": "{:.3f}",
        "spearman_without_interactions": "{:.3f}",
    },
}  # fmt: skip


def markdown(made: Sequence[Row]) -> str:
    """The tables of all kinds."""
    return "\n".join(_tables(made))


def _tables(made: Sequence[Row]) -> Iterator[str]:
    for kind, forms in _FORMS.items():
        chosen_ = [row for row in made if row["kind"] == kind]
        if chosen_:
            yield f"## {kind}\n\n{rows.table(forms, chosen_)}"


def plot(fronts: Sequence[Row], path: Path) -> None:
    """The fronts side by side, and uniform bits beside them."""
    import matplotlib as mpl  # noqa: PLC0415 -- the only one who needs it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "onnxbrecq"  # the same bytes again
    figure, axes = plt.subplots(1, len(fronts), figsize=(4.5 * len(fronts), 3.6), squeeze=False)
    for axis, row in zip(axes[0], fronts, strict=True):
        whole = row["float_bytes"]
        for key, style, label in (
            ("predicted", "-", "mixed, predicted"), ("measured", "D", "mixed, measured"),
            ("uniform", "x", "uniform, measured"),
        ):  # fmt: skip
            sizes = [100 * point[0] / whole for point in row[key]]
            axis.plot(sizes, [point[1] for point in row[key]], style, label=label)
        for size, quality, width in row["uniform"]:
            axis.annotate(f"W{width}", (100 * size / whole, quality), (4, -11),
                          textcoords="offset points")  # fmt: skip
        axis.set(title=row["model"], xlabel="size, % of the float file", ylabel="SQNR, dB")
        axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
