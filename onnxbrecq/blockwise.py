"""The walk through the blocks: reconstruct one, hand its quantized outputs to the next.

A block runs on cached inputs, never on the whole prefix. Its target is what the float block makes
of float inputs; it learns on the inputs that the quantized blocks before it deliver in ONNX
Runtime's own arithmetic; and whether it got better is judged there too: a block that got worse
keeps its former decisions.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.arising import first_nan, origin
from onnxbrecq.curvature import fisher_weights
from onnxbrecq.data.dataset import Samples
from onnxbrecq.emit import saturation
from onnxbrecq.parts import (
    RUN_BATCH,
    Arrays,
    Part,
    Task,
    Tensors,
    checked,
    deployed_error,
    grouped,
    heads_of,
    import_part,
    problem_of,
    row_by_row,
    run,
)
from onnxbrecq.plan import QType, QuantPlan, TensorQuant
from onnxbrecq.progress import Progress
from onnxbrecq.recon.optimise import reconstruct, steps
from onnxbrecq.recon.problem import BlockData, Decisions, Problem, on_grid
from onnxbrecq.recon.resources import threads_limited
from onnxbrecq.recon.second_order import round_second_order
from onnxbrecq.report.result import BlockFacts
from onnxbrecq.runtime.cache import ActivationCache
from onnxbrecq.state import State

_FISHER_SAMPLES = 256
_HELD = 8  # of this many samples one judges what was learned from the others
_SLOWER = 3  # the rounding rate from one trial to the next
_STEP_SAMPLES = (16, 128)  # on which activation steps are compared: at least, at most; between,
_STEP_MACS = 16e9  # so many multiply-accumulates: each comparison runs the block
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
    # What depends on no input is constant, and nothing to learn.
    parts = [import_part(task, block) for block in task.blocks if block.inputs]
    weights = _fisher_weights(task, parts, progress)
    floats, quantized = ActivationCache(task.data.inputs), ActivationCache(task.data.inputs)
    facts = []
    lineage = _lineage(parts, plan)
    for i, part in enumerate(parts):
        progress("reconstruct", i, len(parts), part.block.name)
        data = _data(task, part, floats, quantized, weights)
        recalled = state.recall(f"{i:04d}-{lineage[i]}") if state else None
        if recalled:
            outcome = _recalled(task, part, plan, data, recalled)
        else:
            outcome = _improved(
                task, checked(task, part, data), plan, data, seed=task.recipe.seed + i
            )
        if state and not recalled:
            state.keep(
                f"{i:04d}-{lineage[i]}",
                _difference(plan, outcome.plan),
                dataclasses.asdict(outcome.facts),
            )
        plan = outcome.plan
        facts.append(outcome.facts)
        needed = {name for later in parts[i + 1 :] for name in later.block.inputs}
        floats.advance(data.targets, needed)
        quantized.advance(outcome.outputs, needed)
        del data, outcome  # what only they hold makes room for the next block
    progress("reconstruct", len(parts), len(parts))
    return Walk(plan, tuple(facts))


def _lineage(parts: Sequence[Part], plan: QuantPlan) -> list[str]:
    """Of each block, what stands for its bits and those of all blocks that its inputs come from.

    Where it is the same, so are the inputs and what the block learns from them.
    """
    found: list[str] = []
    makers: dict[str, str] = {}  # tensor → what stands for the block that made it
    for part in parts:
        names = {name for node in part.model.nodes for name in (*node.input, *node.output)}
        bits = {name: plan.tensors[name].qtype.bits for name in names if name in plan.tensors}
        before = [makers.get(name, "") for name in part.block.inputs]
        text = json.dumps([part.block.nodes, sorted(bits.items()), before])
        found.append(hashlib.sha256(text.encode()).hexdigest()[:16])
        makers.update(dict.fromkeys(part.block.outputs, found[-1]))
    return found


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
    note, iterations = part.reason or _unusable(task, part, data), 0
    settings = task.recipe.settings()
    problem = None if before is None or note else problem_of(task, part, plan)
    if problem is not None and before is not None:
        iterations = steps(problem, settings)
        ends = []
        for candidate in _learned(task, problem, seen, seed):
            if candidate is None:
                ends.append("numbers beyond float32")
                continue
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


def _spread(batches: int, together: int, macs: int) -> NDArray[np.intp]:
    """Which of the batches, of so many samples each, activation steps are compared on."""
    samples = int(np.clip(_STEP_MACS / max(macs, 1), *_STEP_SAMPLES))
    return np.linspace(0, batches - 1, min(batches, max(samples // together, 1))).astype(np.intp)


def _with_better_steps(task: Task, part: Part, plan: QuantPlan, data: BlockData) -> QuantPlan:
    """The plan with activation steps that suit the block's output rather than their own tensor.

    Each quantizer that the block owns is tried a little finer and a little coarser, as long as the
    deployed block's error on some samples falls.
    """
    together = task.model.batch or 1
    some = data.at(_rows(_spread(len(data) // together, together, part.macs), together))
    # Not rows of the targets: an output need not have one for each sample.
    some = dataclasses.replace(some, targets=run(task, part, None, some.float_inputs))
    best = deployed_error(task, part, plan, some)
    for head in heads_of(part, task.points, plan):
        ceiling, start = task.points.points[head].ceiling, best
        for factor, most in _STEP_FACTORS:
            for _ in range(most if best is not None and best == start else 0):
                quant = affine.rescaled(plan.tensors[head], factor, ceiling)
                tried = plan.updated(grouped({head: quant}, task.points), {})
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


def _learned(
    task: Task, problem: Problem, data: BlockData, seed: int
) -> Iterator[QuantPlan | None]:
    """Plans with what the block learned: by second-order rounding, by gradients from there on.

    An output that is infinite somewhere (a mask) teaches nothing. None: what was learned is no
    number, as squares of 1e20 are not in float32.
    """
    finite = {name: target for name, target in data.targets.items() if _is_finite(target)}
    if not finite:
        return
    inputs = on_grid(task.model, problem.plan, data.inputs)
    quantized = dataclasses.replace(data, inputs=inputs, targets=finite)
    settings = task.recipe.settings()
    if settings.start == "second-order":
        found = round_second_order(problem, quantized, seed)
        if _is_sound(found.decisions):
            plan = _told(task, problem.plan, found.decisions)
            yield plan
            constants = {**problem.constants, **found.decisions.biases, **found.weights}
            problem = dataclasses.replace(problem, plan=plan, constants=constants)
        else:
            yield None
    rate = settings.rounding_rate
    for trial in range(settings.trials if settings.iterations else 0):
        tried = dataclasses.replace(settings, rounding_rate=rate / _SLOWER**trial)
        recipe = dataclasses.replace(task.recipe, reconstruction=tried)
        learned = reconstruct(problem, quantized, recipe, seed)
        yield _told(task, problem.plan, learned) if _is_sound(learned) else None


def _is_sound(decisions: Decisions) -> bool:
    """Whether every scale and bias is a number."""
    scales = (quant.scale for quant in decisions.tensors.values())
    return all(bool(np.isfinite(values).all()) for values in (*scales, *decisions.biases.values()))


def _unusable(task: Task, part: Part, data: BlockData) -> str | None:
    """Why no output of the block teaches anything; None where one does."""
    if any(_is_finite(target) for target in data.targets.values()):
        return None
    name, target = next(iter(data.targets.items()))
    sample = first_nan(target)
    if sample is None:
        return f"not learned: its output {name!r} is infinite for some samples"
    feed = {n: np.asarray(values[sample : sample + 1]) for n, values in data.float_inputs.items()}
    where = origin(part.model, feed, threads=task.recipe.threads)
    return f"not learned: on sample {sample} {where}"


def _is_finite(samples: Samples) -> bool:
    """Whether no value is NaN or infinite."""
    starts = range(0, len(samples), RUN_BATCH)
    return samples.dtype.kind != "f" or all(
        np.isfinite(samples[start : start + RUN_BATCH]).all() for start in starts
    )


def _told(task: Task, plan: QuantPlan, decisions: Decisions) -> QuantPlan:
    """The plan with a block's decisions; those for the head of a group hold for all its tensors."""
    found = {
        name: quant if quant.levels is None else _without_overflow(task, plan, name, quant)
        for name, quant in decisions.tensors.items()
    }
    return plan.updated(grouped(found, task.points), decisions.biases)


def _without_overflow(task: Task, plan: QuantPlan, weight: str, quant: TensorQuant) -> TensorQuant:
    """The learned weight, whose sums fit 16 bits wherever those of `plan` did."""
    former = plan.tensors[weight]
    if former.qtype != QType(8, "signed"):
        return quant
    nodes = {node.name: node for node in task.model.nodes}
    for layer in task.points.layers.values():
        data = plan.tensors.get(layer.data)
        if layer.integer and data and task.points.points[layer.weight].group == weight:
            top = data.qtype.levels - 1
            if saturation.fits(nodes[layer.node], former, top):
                quant = saturation.fitted(nodes[layer.node], quant, top)
    return quant


def _fisher_weights(task: Task, parts: Sequence[Part], progress: Progress) -> Arrays:
    """Fisher weights of the blocks' outputs; empty for plain squared error."""
    settings = task.recipe.settings()
    if settings.loss != "fisher" or not task.model.batched or settings.iterations == 0:
        return {}
    return fisher_weights(task, parts, _FISHER_SAMPLES, progress)
