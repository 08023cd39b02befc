"""What each block loses at other bits, measured on the deployed block.

The float network's activations are cached between blocks. A block is run on its float inputs, with
its layers at each combination of bits that `onnxbrecq.search.table` asks for and weights rounded by
their second moments, which all bits of a layer share; the samples on which the moments are taken
are not those on which the loss is. Activations are quantized as they will be: what is measured is
what onnxruntime makes of the emitted block.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.bits import Bits, finest
from onnxbrecq.calibrate import Calibration
from onnxbrecq.curvature import Directions, directions
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.weights import Layer
from onnxbrecq.parts import (
    RUN_BATCH,
    Part,
    Task,
    Tensors,
    checked,
    import_part,
    problem_of,
    relative_error,
    run,
)
from onnxbrecq.plan import QuantPlan
from onnxbrecq.progress import Progress
from onnxbrecq.recon.problem import BlockData, Decisions, on_grid
from onnxbrecq.recon.resources import threads_limited
from onnxbrecq.recon.second_order import round_each
from onnxbrecq.runtime.cache import ActivationCache
from onnxbrecq.search.divergence import OutputCheck
from onnxbrecq.search.table import BlockTable, Combination, Sensitivity, combinations
from onnxbrecq.state import State

_FINE = 8  # bits at which a weight is as good at its nearest levels
_DRAWS = 2  # directions of each sample: losses are known to 1 / sqrt(samples * draws / 4)

Index = NDArray[np.intp]
Choices = Mapping[str, tuple[Bits, ...]]
Decided = Mapping[tuple[str, int | None], Decisions]  # layer, bits of its weight


@dataclass(frozen=True)
class _Run:
    """What does not change from block to block.

    Attributes:
        task: with the samples that sensitivities are measured on.
        calibration: the first decision for every point at any bits.
        offered: what each layer may get.
        along: how errors reach the network's output; None for losses relative to each block's.
        check: of the network's output; None: not wanted.
    """

    task: Task
    calibration: Calibration
    offered: Choices
    along: Directions | None
    check: OutputCheck | None


def measured(
    task: Task,
    calibration: Calibration,
    data_sha256: str,
    progress: Progress,
    state: State | None = None,
    *,
    offered: Choices,
    check_output: bool = False,
) -> Sensitivity:
    """The table of all layers that are offered a choice.

    Args:
        task: the model and its samples, some of which are taken (`search_samples`).
        calibration: of its activations.
        data_sha256: digest of all samples.
        progress: told of each block.
        state: blocks it knows are not measured again; it is told of each that was.
        offered: what each layer may get.
        check_output: measure the divergence at the network's output as well, layer by layer: each
            time the whole network runs.
    """
    started = time.perf_counter()
    task = replace(task, data=_some(task.data, task.recipe.search_samples, task.model.batch or 1))
    with threads_limited(task.recipe.threads):
        parts = [import_part(task, block) for block in task.blocks]
        along, notes = _directions(task, parts, offered, progress)
        check = OutputCheck(task, calibration.plan(finest(offered))) if check_output else None
        run_ = _Run(task, calibration, offered, along, check)
        blocks = _walk(run_, parts, progress, state)
    open_ = {name for block in blocks for name in block.choices}
    unmeasured = [n for n, bits in offered.items() if len(bits) > 1 and n not in open_]
    if unmeasured:
        notes += (f"{', '.join(unmeasured)}: at their finest, as the number of outputs of their "
                  "block depends on their bits",)  # fmt: skip
    return Sensitivity(
        model_sha256=task.model.source_sha256,
        data_sha256=data_sha256,
        target=task.recipe.target or task.target.name,
        measure="relative" if along is None else "fisher",
        samples=len(task.data),
        blocks=blocks,
        fixed={name: bits[-1] for name, bits in offered.items() if name not in open_},
        output_measure=check.measure if check else None,
        output_base=check.base if check else None,
        seconds=time.perf_counter() - started,
        notes=notes,
    )


def _some(data: Dataset, count: int, together: int) -> Dataset:
    """So many samples, evenly spaced, in whole batches."""
    batches = len(data) // together
    places = np.linspace(0, batches - 1, min(batches, max(count // together, 1))).astype(np.intp)
    index = (places[:, None] * together + np.arange(together)).reshape(-1)
    return Dataset(data.part(index), None, data.origin)


def _directions(
    task: Task, parts: Sequence[Part], offered: Choices, progress: Progress
) -> tuple[Directions | None, tuple[str, ...]]:
    """Along which errors reach the output; None, and why, if those of a block do not."""
    judged = Dataset(task.data.part(_halves(len(task.data), task.model.batch)[1]))
    found = directions(task, parts, judged, _DRAWS, progress)
    for part in parts:
        chosen = any(len(offered.get(name, ())) > 1 for name in part.block.nodes)
        if chosen and not found.reach(part.block.outputs):
            note = f"no gradient of the network's output reaches block {part.block.name}"
            return None, (f"{note}: losses are relative to the energy of each block's output",)
    return found, ()


def _halves(count: int, together: int | None) -> tuple[Index, Index]:
    """The samples on which weights are rounded, and those on which losses are measured."""
    rows = np.arange(count)
    seen = (rows // (together or 1)) % 2 == 0
    return (rows[seen], rows[~seen]) if not seen.all() else (rows, rows)


def _walk(
    run_: _Run, parts: Sequence[Part], progress: Progress, state: State | None
) -> tuple[BlockTable, ...]:
    task = run_.task
    floats, found = ActivationCache(task.data.inputs), []
    for i, part in enumerate(parts):
        progress("sensitivity", i, len(parts), part.block.name)
        inputs = floats.select(part.block.inputs)
        targets = run(task, part, None, inputs)
        choices = _choices(task, part, run_.offered)
        if choices:
            recalled = _recalled(state, i, choices, checked_output=run_.check is not None)
            table = recalled or _table(run_, part, choices, BlockData(inputs, inputs, targets, {}))
            if state and table and not recalled:
                state.keep_table(f"{i:04d}", _kept(table))
            found += [table] if table else []
        floats.advance(targets, {name for later in parts[i + 1 :] for name in later.block.inputs})
    progress("sensitivity", len(parts), len(parts))
    return tuple(found)


def _choices(task: Task, part: Part, offered: Choices) -> dict[str, tuple[Bits, ...]]:
    """The block's layers that have a choice."""
    names = (name for name in part.block.nodes if name in task.points.layers)
    return {name: offered[name] for name in names if len(offered[name]) > 1}


def _kept(table: BlockTable) -> dict[str, Any]:
    losses = [[list(key), loss] for key, loss in table.losses.items()]
    return {"losses": losses, "outputs": {n: list(v) for n, v in table.outputs.items()}}


def _recalled(
    state: State | None, block: int, choices: Choices, *, checked_output: bool
) -> BlockTable | None:
    """What a former run measured, if it is all that is wanted."""
    found = state.recall_table(f"{block:04d}") if state else None
    if found is None:
        return None
    losses = {tuple(key): float(loss) for key, loss in found["losses"]}
    outputs = {name: tuple(values) for name, values in found["outputs"].items()}
    if set(losses) != set(combinations(choices)) or (checked_output and not outputs):
        return None
    return BlockTable(next(iter(choices)), dict(choices), losses, outputs)


def _table(run_: _Run, part: Part, choices: Choices, data: BlockData) -> BlockTable | None:
    """What the block loses; None where its deployed outputs cannot be compared."""
    task = run_.task
    learned, judged = (data.at(half) for half in _halves(len(data), task.model.batch))
    decided = _decided(run_, checked(task, part, data), learned)
    losses: dict[Combination, float] = {}
    for combination in combinations(choices):
        bits = {n: choices[n][i] for n, i in zip(choices, combination, strict=True)}
        loss = _loss(run_, part, _plan(run_, part, bits, decided), judged)
        if loss is None:
            return None
        losses[combination] = loss
    outputs = {}
    if run_.check is not None:
        for name, offers in choices.items():
            plans = (_plan(run_, part, {name: bits}, decided) for bits in offers)
            outputs[name] = tuple(run_.check.divergence(plan) for plan in plans)
    return BlockTable(next(iter(choices)), dict(choices), losses, outputs)


def _plan(run_: _Run, part: Part, bits: Mapping[str, Bits], decided: Decided) -> QuantPlan:
    """All at their finest but the block's layers, which are at `bits`, as it was decided."""
    everything = {**finest(run_.offered), **bits}
    plan = run_.calibration.plan(everything)
    for name in part.block.nodes:
        found = decided.get((name, everything[name].weight)) if name in everything else None
        if found is not None:
            plan = plan.updated(found.tensors, found.biases)
    return plan


def _loss(run_: _Run, part: Part, plan: QuantPlan, data: BlockData) -> float | None:
    """The loss of the deployed block, a sample."""
    made = run(run_.task, part, plan, data.inputs)
    if run_.along is None:
        return relative_error(made, data.targets, {})
    if any(made[name].shape != target.shape for name, target in data.targets.items()):
        return None
    moved = [_moved(draw, made, data.targets) for draw in run_.along.draws]
    return float(np.square(moved).mean() / run_.along.energy)


def _moved(draw: Tensors, made: Tensors, targets: Tensors) -> NDArray[np.float64]:
    """How far each sample's error moves the network's output along what was drawn, [N]."""
    found = np.zeros(len(next(iter(targets.values()))))
    for name in targets.keys() & draw.keys():
        for start in range(0, len(found), RUN_BATCH):
            rows = slice(start, start + RUN_BATCH)
            wanted = targets[name][rows]
            error = np.where(np.isfinite(wanted), made[name][rows] - wanted, 0)
            products = (draw[name][rows] * error).reshape(len(error), -1)
            found[rows] += products.sum(axis=1, dtype=np.float64)
    return found


def _decided(run_: _Run, part: Part, data: BlockData) -> Decided:
    """Each layer of the block rounded to each of its bits below 8, with all else at its finest.

    What torch does not take over, or has one scale for all channels, stays at its nearest levels.
    """
    task, plan = run_.task, run_.calibration.plan(finest(run_.offered))
    problem = problem_of(task, part, plan)
    if problem is None:
        return {}
    finite = {n: t for n, t in data.targets.items() if t.dtype.kind == "f"}
    layers = {
        name: task.points.layers[name] for name in part.block.nodes
        if name in task.points.layers and task.points.layers[name].weight in problem.constants
    }  # fmt: skip
    widths = {name: _below(run_.offered[name]) for name in layers}
    offers = {
        layer.weight: [_offer(run_, layer, width, plan) for width in widths[name]]
        for name, layer in layers.items()
        if widths[name]
    }
    inputs = on_grid(task.model, plan, data.inputs)
    rounded = round_each(
        problem, replace(data, inputs=inputs, targets=finite), task.recipe.seed, offers
    )
    return {
        (name, width): decisions
        for name, layer in layers.items()
        for width, decisions in zip(widths[name], rounded.get(layer.weight, ()), strict=False)
    }


def _offer(run_: _Run, layer: Layer, width: int, plan: QuantPlan) -> Any:
    """The layer's weight at so many bits, at its nearest levels."""
    return run_.calibration.weight(layer, width, plan.tensors)


def _below(bits: Sequence[Bits]) -> list[int]:
    """The weight's bits that are worth deciding."""
    return sorted({b.weight for b in bits if b.weight is not None and b.weight < _FINE})
