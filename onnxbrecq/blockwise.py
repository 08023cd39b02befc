"""The walk through the blocks: reconstruct one, hand its quantized outputs to the next.

A block runs on cached inputs, never on the whole prefix. Its target is what the float block makes
of float inputs; it learns on the inputs that the quantized blocks before it deliver in ONNX
Runtime's own arithmetic; and whether it got better is judged there too: a block that got worse
keeps its former decisions.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.data.dataset import Samples
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.points import Points
from onnxbrecq.parts import (
    RUN_BATCH,
    Arrays,
    Part,
    Task,
    Tensors,
    checked,
    deployed_error,
    import_part,
    row_by_row,
    run,
)
from onnxbrecq.plan import QuantPlan, TensorQuant
from onnxbrecq.progress import Progress
from onnxbrecq.recon.device import learning_device
from onnxbrecq.recon.fisher import FisherSweep
from onnxbrecq.recon.optimise import reconstruct, steps
from onnxbrecq.recon.problem import BlockData, Decisions, Problem, on_grid
from onnxbrecq.recon.resources import threads_limited
from onnxbrecq.recon.second_order import round_second_order
from onnxbrecq.report.result import BlockFacts
from onnxbrecq.runtime.cache import ActivationCache
from onnxbrecq.runtime.session import Session
from onnxbrecq.state import State

_FISHER_SAMPLES = 256
_HELD = 8  # of this many samples one judges what was learned from the others
_SLOWER = 3  # the rounding rate from one trial to the next
_STEP_SAMPLES = 128  # on which activation steps are compared
_STEP_FACTORS = ((0.92, 4), (1.08, 3))  # how much finer, coarser; how often at most
_STEP_GAIN = 0.999  # of the error: less is chance


@dataclass(frozen=True)
class Walk:
    """The learned plan, and what happened in each block."""

    plan: QuantPlan
    blocks: tuple[BlockFacts, ...]


@dataclass(frozen=True)
class _Outcome:
    """A block's decisions, what it makes with them, and how it came to them."""

    plan: QuantPlan
    outputs: Tensors
    facts: BlockFacts


def walk(task: Task, plan: QuantPlan, progress: Progress, state: State | None = None) -> Walk:
    """Improves `plan` (round-to-nearest decisions for all points) block after block.

    Blocks that `state` knows are not learned again; it is told of each that was.
    """
    with threads_limited(task.recipe.threads):
        return _walk(task, plan, progress, state)


def _walk(task: Task, plan: QuantPlan, progress: Progress, state: State | None) -> Walk:
    parts = [import_part(task, block) for block in task.blocks]
    weights = _fisher(task, parts, progress)
    floats, quantized = ActivationCache(task.data.inputs), ActivationCache(task.data.inputs)
    facts = []
    for i, part in enumerate(parts):
        progress("reconstruct", i, len(parts), part.block.name)
        data = _data(task, part, floats, quantized, weights)
        recalled = state.recall(i) if state else None
        if recalled:
            outcome = _recalled(task, part, plan, data, recalled)
        else:
            outcome = _improved(
                task, checked(task, part, data), plan, data, seed=task.recipe.seed + i
            )
        if state and not recalled:
            state.keep(i, _difference(plan, outcome.plan), dataclasses.asdict(outcome.facts))
        plan = outcome.plan
        facts.append(outcome.facts)
        needed = {name for later in parts[i + 1 :] for name in later.block.inputs}
        floats.advance(data.targets, needed)
        quantized.advance(outcome.outputs, needed)
        del data, outcome  # what only they hold makes room for the next block
    progress("reconstruct", len(parts), len(parts))
    return Walk(plan, tuple(facts))


def _data(
    task: Task, part: Part, floats: ActivationCache, quantized: ActivationCache, weights: Arrays
) -> BlockData:
    """What the block is learned from: cached inputs, and what the float block makes of them."""
    float_inputs = floats.select(part.block.inputs)
    targets = run(task, part, None, float_inputs)
    return BlockData(
        inputs=quantized.select(part.block.inputs),
        float_inputs=float_inputs,
        targets=targets,
        weights={name: weights[name] for name in targets if name in weights},
    )


def _improved(task: Task, part: Part, plan: QuantPlan, data: BlockData, *, seed: int) -> _Outcome:
    """The block with learned decisions, or with its former ones if those are better."""
    started = time.perf_counter()
    seen, held = _parted(data, task.model.batch or 1)
    before = after = deployed_error(task, part, plan, held)
    note, iterations = part.reason, 0
    settings = task.recipe.settings()
    problem = None if before is None else _problem(task, part, plan)
    if problem is not None and before is not None:
        iterations = steps(problem, settings)
        ends = []
        for candidate in _learned(task, problem, seen, seed):
            error = deployed_error(task, part, candidate, held)
            ends.append("another number of outputs" if error is None else f"loss {error:.3g}")
            if error is not None and after is not None and error < after:
                plan, after = candidate, error
        if after == before and ends:
            note = f"kept round-to-nearest: learning ended at {ends[-1]}"
    if settings.step_search and before is not None:
        candidate = _with_better_steps(task, part, plan, seen)
        error = deployed_error(task, part, candidate, held)
        if error is not None and after is not None and error < after:
            plan, after = candidate, error
    outputs = run(task, part, plan, data.inputs)
    layers = tuple(name for name in part.block.nodes if name in task.points.layers)
    seconds = time.perf_counter() - started
    facts = BlockFacts(part.block.name, layers, before, after, iterations, seconds, note)
    return _Outcome(plan, outputs, facts)


def _parted(data: BlockData, together: int) -> tuple[BlockData, BlockData]:
    """The samples that a block learns from, and those that judge what it has learned.

    What fits the samples at hand may fit them alone: only what helps on others is kept. Of few
    samples, or of outputs without a row for each, all do both; as many as go `together` stay so.
    """
    batches = np.arange(len(data) // together)
    if len(batches) < _HELD**2 or not row_by_row(data):
        return data, data
    held = batches % _HELD == _HELD - 1
    return data.at(_rows(batches[~held], together)), data.at(_rows(batches[held], together))


def _rows(batches: NDArray[np.intp], together: int) -> NDArray[np.intp]:
    """The samples of the batches."""
    return (batches[:, None] * together + np.arange(together)).reshape(-1)


def _with_better_steps(task: Task, part: Part, plan: QuantPlan, data: BlockData) -> QuantPlan:
    """The plan with activation steps that suit the block's output rather than their own tensor.

    Each quantizer that the block owns is tried a little finer and a little coarser, as long as the
    deployed block's error on some samples falls.
    """
    together = task.model.batch or 1
    batches = len(data) // together
    spread = np.linspace(0, batches - 1, min(batches, max(_STEP_SAMPLES // together, 1)))
    some = data.at(_rows(spread.astype(int), together))
    # Not rows of the targets: an output need not have one for each sample.
    some = dataclasses.replace(some, targets=run(task, part, None, some.float_inputs))
    best = deployed_error(task, part, plan, some)
    for head in _heads(part, task.points, plan):
        ceiling, start = task.points.points[head].ceiling, best
        for factor, most in _STEP_FACTORS:
            for _ in range(most if best is not None and best == start else 0):
                quant = affine.rescaled(plan.tensors[head], factor, ceiling)
                tried = plan.updated(_grouped({head: quant}, task.points), {})
                error = deployed_error(task, part, tried, some)
                if error is None or best is None or error >= best * _STEP_GAIN:
                    break
                best, plan = error, tried
    return plan


def _recalled(
    task: Task,
    part: Part,
    plan: QuantPlan,
    data: BlockData,
    recalled: tuple[QuantPlan, Mapping[str, Any]],
) -> _Outcome:
    """The outcome of a block that was learned in a former run."""
    decisions, facts = recalled
    plan = plan.updated(decisions.tensors, decisions.biases)
    told = BlockFacts(**{**facts, "layers": tuple(facts["layers"])})
    return _Outcome(plan, run(task, part, plan, data.inputs), told)


def _difference(former: QuantPlan, plan: QuantPlan) -> QuantPlan:
    """The decisions of `plan` that `former` does not hold."""
    return QuantPlan(
        {n: quant for n, quant in plan.tensors.items() if former.tensors.get(n) is not quant},
        {n: bias for n, bias in plan.biases.items() if former.biases.get(n) is not bias},
    )


def _problem(task: Task, part: Part, plan: QuantPlan) -> Problem | None:
    """What the block can learn; None where there is nothing, or no wish to."""
    # A weight with one scale for all its channels is rounded to nearest: learning goes by channels.
    tied = task.points.tied(plan.tensors)
    planned = [n for n in part.block.weights if n in plan.tensors and n not in tied]
    weights = [name for name in planned if plan.tensors[name].axis is not None]
    if part.torch is None or not weights:
        return None
    biases = [layer.bias for layer in task.points.layers.values() if layer.weight in weights]
    constants = {
        name: np.asarray(task.model.initializers[name], np.float32)
        for name in (*weights, *biases)
        if name is not None
    }
    heads = _heads(part, task.points, plan)
    return Problem(
        part.torch, part.alone, plan, task.points, part.model.nodes, heads, constants,
        learning_device(task.recipe.device),
    )  # fmt: skip


def _learned(task: Task, problem: Problem, data: BlockData, seed: int) -> Iterator[QuantPlan]:
    """Plans with what the block learned: by second-order rounding, by gradients from there on.

    An output that is infinite somewhere (a mask) teaches nothing.
    """
    finite = {name: target for name, target in data.targets.items() if _is_finite(target)}
    if not finite:
        return
    inputs = on_grid(task.model, problem.plan, data.inputs)
    quantized = dataclasses.replace(data, inputs=inputs, targets=finite)
    settings = task.recipe.settings()
    if settings.start == "second-order":
        found = round_second_order(problem, quantized, seed)
        plan = _told(problem.plan, found.decisions, task.points)
        yield plan
        constants = {**problem.constants, **found.decisions.biases, **found.weights}
        problem = dataclasses.replace(problem, plan=plan, constants=constants)
    rate = settings.rounding_rate
    for trial in range(settings.trials if settings.iterations else 0):
        tried = dataclasses.replace(settings, rounding_rate=rate / _SLOWER**trial)
        recipe = dataclasses.replace(task.recipe, reconstruction=tried)
        yield _told(problem.plan, reconstruct(problem, quantized, recipe, seed), task.points)


def _is_finite(samples: Samples) -> bool:
    """Whether no value is NaN or infinite."""
    starts = range(0, len(samples), RUN_BATCH)
    return samples.dtype.kind != "f" or all(
        np.isfinite(samples[start : start + RUN_BATCH]).all() for start in starts
    )


def _told(plan: QuantPlan, decisions: Decisions, points: Points) -> QuantPlan:
    """The plan with a block's decisions; those for the head of a group hold for all its tensors."""
    return plan.updated(_grouped(decisions.tensors, points), decisions.biases)


def _heads(part: Part, points: Points, plan: QuantPlan) -> tuple[str, ...]:
    """The activations made in the block that own a quantizer."""
    made = [name for node in part.model.nodes for name in node.output]
    return tuple(n for n in made if n in plan.tensors and points.points[n].group == n)


def _grouped(learned: Mapping[str, TensorQuant], points: Points) -> dict[str, TensorQuant]:
    """The decisions, those for the head of a group handed to all its tensors."""
    found = dict(learned)
    for name, point in points.points.items():
        if point.kind == "activation" and point.group in learned:
            found[name] = learned[point.group]
    return found


def _fisher(task: Task, parts: Sequence[Part], progress: Progress) -> Arrays:
    """Fisher weights of the blocks' outputs; empty for plain squared error."""
    settings = task.recipe.settings()
    if settings.loss != "fisher" or not task.model.batched or settings.iterations == 0:
        return {}
    floats = [n for n in task.model.outputs if task.model.dtypes.get(n) == onnx.TensorProto.FLOAT]
    first = task.model.outputs[:1]
    outputs = first if len(task.model.shapes.get(first[0], ())) == 2 else tuple(floats)
    names = tuple(dict.fromkeys(name for part in parts for name in part.block.outputs))
    probe = submodel(task.model, list(task.model.nodes), task.model.inputs, names)
    session = Session(probe.proto, threads=task.recipe.threads)
    device = learning_device(task.recipe.device)
    sweep = FisherSweep([part.torch for part in parts], task.recipe.seed, device)
    count, done = min(len(task.data), _FISHER_SAMPLES), 0
    for feed in task.data.batches(RUN_BATCH, count):
        sweep.add({**feed, **session.run(feed)}, outputs)
        done = min(done + RUN_BATCH, count)
        progress("curvature", done, count)
    return sweep.weights()
