"""The walk through the blocks: reconstruct one, hand its quantized outputs to the next.

A block runs on cached inputs, never on the whole prefix. Its target is what the float block makes
of float inputs; it learns on the inputs that the quantized blocks before it deliver in ONNX
Runtime's own arithmetic; and whether it got better is judged there too: a block that got worse
keeps its former decisions.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.data.dataset import Dataset, Index, Samples
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import Target
from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.extract import extract, submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points
from onnxbrecq.plan import QuantPlan, TensorQuant
from onnxbrecq.progress import Progress
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.bridge import BridgeError, TorchBlock, import_block
from onnxbrecq.recon.fisher import FisherSweep
from onnxbrecq.recon.optimise import reconstruct, steps
from onnxbrecq.recon.problem import BlockData, Decisions, Problem
from onnxbrecq.recon.resources import threads_limited
from onnxbrecq.recon.second_order import round_second_order
from onnxbrecq.report.result import BlockFacts
from onnxbrecq.runtime.cache import ActivationCache, Storage
from onnxbrecq.runtime.session import Session, run_batches
from onnxbrecq.state import State

Tensors = Mapping[str, Samples]  # float32, but for token ids and the like
Arrays = Mapping[str, NDArray[Any]]

_FISHER_SAMPLES = 256
_RUN_BATCH = 8  # as fast as more, in less memory
_HELD = 8  # of this many samples one judges what was learned from the others
_NUMBERS = "biuf"  # kinds of numpy types; the others are text
_STEP_SAMPLES = 128  # on which activation steps are compared
_STEP_FACTORS = ((0.92, 4), (1.08, 3))  # how much finer, coarser; how often at most
_STEP_GAIN = 0.999  # of the error: less is chance
_PROBES = 4  # samples on which torch and onnxruntime must agree about a float block
_SAME = 1e-6  # their largest squared error relative to the energy: float32 sums of some 10^4 terms


@dataclass(frozen=True)
class Task:
    """What does not change during the walk.

    Attributes:
        model: the float model.
        blocks: its partition.
        points: its quantization points.
        data: calibration samples.
        recipe: the optimiser's settings.
        target: whose deployed graph the blocks are held against.
        storage: where activations are kept between blocks.
    """

    model: Model
    blocks: Sequence[Block]
    points: Points
    data: Dataset
    recipe: Recipe
    target: Target
    storage: Storage = field(default_factory=Storage)


@dataclass(frozen=True)
class Walk:
    """The learned plan, and what happened in each block."""

    plan: QuantPlan
    blocks: tuple[BlockFacts, ...]


@dataclass(frozen=True)
class _Part:
    """A block as a model, and in torch (None, with the reason, for an island).

    `alone`: it computes one sample at a time, not many at once.
    """

    block: Block
    model: Model
    torch: TorchBlock | None
    reason: str | None
    alone: bool = False


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
    parts = [_import(task, block) for block in task.blocks]
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
                task, _checked(task, part, data), plan, data, seed=task.recipe.seed + i
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
    task: Task, part: _Part, floats: ActivationCache, quantized: ActivationCache, weights: Arrays
) -> BlockData:
    """What the block is learned from: cached inputs, and what the float block makes of them."""
    float_inputs = floats.select(part.block.inputs)
    targets = _run(task, part, None, float_inputs)
    return BlockData(
        inputs=quantized.select(part.block.inputs),
        float_inputs=float_inputs,
        targets=targets,
        weights={name: weights[name] for name in targets if name in weights},
    )


def relative_error(outputs: Tensors, targets: Tensors, weights: Arrays) -> float | None:
    """Weighted squared error of a block's outputs, relative to their weighted energy.

    Where a target is not finite (behind a mask), nothing is compared. None if an output has another
    shape than its target: the number of boxes found, say.
    """
    error = energy = 0.0
    for name, target in targets.items():
        if outputs[name].shape != target.shape:
            return None
        if target.dtype.kind not in _NUMBERS:
            continue
        weight = weights.get(name, np.ones((), np.float32))
        for start in range(0, len(target), _RUN_BATCH):
            part = slice(start, start + _RUN_BATCH)
            wanted = target[part].astype(np.float32)
            known = np.isfinite(wanted)
            wanted = np.where(known, wanted, 0)
            made = np.where(known, outputs[name][part], 0)
            error += float((weight * np.square(made - wanted, dtype=np.float64)).sum())
            energy += float((weight * np.square(wanted, dtype=np.float64)).sum())
    return error / max(energy, float(np.finfo(np.float32).tiny))


def _improved(task: Task, part: _Part, plan: QuantPlan, data: BlockData, *, seed: int) -> _Outcome:
    """The block with learned decisions, or with its former ones if those are better."""
    started = time.perf_counter()
    seen, held = _parted(data, task.model.batch or 1)
    before = after = _error(task, part, plan, held)
    note, iterations = part.reason, 0
    settings = task.recipe.settings()
    problem = None if before is None else _problem(task, part, plan)
    if problem is not None and before is not None:
        iterations = steps(problem, settings)
        ends = []
        for candidate in _learned(task, problem, seen, seed):
            error = _error(task, part, candidate, held)
            ends.append("another number of outputs" if error is None else f"loss {error:.3g}")
            if error is not None and after is not None and error < after:
                plan, after = candidate, error
        if after == before and ends:
            note = f"kept round-to-nearest: learning ended at {ends[-1]}"
    if settings.step_search and before is not None:
        candidate = _with_better_steps(task, part, plan, seen)
        error = _error(task, part, candidate, held)
        if error is not None and after is not None and error < after:
            plan, after = candidate, error
    outputs = _run(task, part, plan, data.inputs)
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
    if len(batches) < _HELD**2 or not _row_by_row(data):
        return data, data
    held = batches % _HELD == _HELD - 1
    return data.at(_rows(batches[~held], together)), data.at(_rows(batches[held], together))


def _row_by_row(data: BlockData) -> bool:
    """Whether every output has a row for each sample."""
    return all(len(target) == len(data) for target in data.targets.values())


def _rows(batches: NDArray[np.intp], together: int) -> NDArray[np.intp]:
    """The samples of the batches."""
    return (batches[:, None] * together + np.arange(together)).reshape(-1)


def _error(task: Task, part: _Part, plan: QuantPlan, data: BlockData) -> float | None:
    """The error of the deployed block on the data."""
    return relative_error(_run(task, part, plan, data.inputs), data.targets, data.weights)


def _with_better_steps(task: Task, part: _Part, plan: QuantPlan, data: BlockData) -> QuantPlan:
    """The plan with activation steps that suit the block's output rather than their own tensor.

    Each quantizer that the block owns is tried a little finer and a little coarser, as long as the
    deployed block's error on some samples falls.
    """
    together = task.model.batch or 1
    batches = len(data) // together
    spread = np.linspace(0, batches - 1, min(batches, max(_STEP_SAMPLES // together, 1)))
    some = data.at(_rows(spread.astype(int), together))
    # Not rows of the targets: an output need not have one for each sample.
    some = dataclasses.replace(some, targets=_run(task, part, None, some.float_inputs))
    best = _error(task, part, plan, some)
    for head in _heads(part, task.points, plan):
        ceiling, start = task.points.points[head].ceiling, best
        for factor, most in _STEP_FACTORS:
            for _ in range(most if best is not None and best == start else 0):
                quant = affine.rescaled(plan.tensors[head], factor, ceiling)
                tried = plan.updated(_grouped({head: quant}, task.points), {})
                error = _error(task, part, tried, some)
                if error is None or best is None or error >= best * _STEP_GAIN:
                    break
                best, plan = error, tried
    return plan


def _recalled(
    task: Task,
    part: _Part,
    plan: QuantPlan,
    data: BlockData,
    recalled: tuple[QuantPlan, Mapping[str, Any]],
) -> _Outcome:
    """The outcome of a block that was learned in a former run."""
    decisions, facts = recalled
    plan = plan.updated(decisions.tensors, decisions.biases)
    told = BlockFacts(**{**facts, "layers": tuple(facts["layers"])})
    return _Outcome(plan, _run(task, part, plan, data.inputs), told)


def _difference(former: QuantPlan, plan: QuantPlan) -> QuantPlan:
    """The decisions of `plan` that `former` does not hold."""
    return QuantPlan(
        {n: quant for n, quant in plan.tensors.items() if former.tensors.get(n) is not quant},
        {n: bias for n, bias in plan.biases.items() if former.biases.get(n) is not bias},
    )


def _problem(task: Task, part: _Part, plan: QuantPlan) -> Problem | None:
    """What the block can learn; None where there is nothing, or no wish to."""
    weights = [name for name in part.block.weights if name in plan.tensors]
    if part.torch is None or not weights:
        return None
    biases = [layer.bias for layer in task.points.layers.values() if layer.weight in weights]
    constants = {
        name: np.asarray(task.model.initializers[name], np.float32)
        for name in (*weights, *biases)
        if name is not None
    }
    heads = _heads(part, task.points, plan)
    return Problem(part.torch, part.alone, plan, task.points, part.model.nodes, heads, constants)


def _learned(task: Task, problem: Problem, data: BlockData, seed: int) -> Iterator[QuantPlan]:
    """Plans with what the block learned: by second-order rounding, by gradients from there on.

    An output that is infinite somewhere (a mask) teaches nothing.
    """
    finite = {name: target for name, target in data.targets.items() if _is_finite(target)}
    if not finite:
        return
    inputs = _on_grid(task.model, problem.plan, data.inputs)
    on_grid = dataclasses.replace(data, inputs=inputs, targets=finite)
    settings = task.recipe.settings()
    if settings.start == "second-order":
        found = round_second_order(problem, on_grid, seed)
        plan = _told(problem.plan, found.decisions, task.points)
        yield plan
        constants = {**problem.constants, **found.decisions.biases, **found.weights}
        problem = dataclasses.replace(problem, plan=plan, constants=constants)
    if settings.iterations:
        yield _told(problem.plan, reconstruct(problem, on_grid, task.recipe, seed), task.points)


def _is_finite(samples: Samples) -> bool:
    """Whether no value is NaN or infinite."""
    starts = range(0, len(samples), _RUN_BATCH)
    return samples.dtype.kind != "f" or all(
        np.isfinite(samples[start : start + _RUN_BATCH]).all() for start in starts
    )


def _told(plan: QuantPlan, decisions: Decisions, points: Points) -> QuantPlan:
    """The plan with a block's decisions; those for the head of a group hold for all its tensors."""
    return plan.updated(_grouped(decisions.tensors, points), decisions.biases)


def _import(task: Task, block: Block) -> _Part:
    """The block in torch, if it can be, and if torch computes what onnxruntime does."""
    model = extract(task.model, block)
    try:
        return _Part(block, model, import_block(model), None)
    except BridgeError as error:
        layers = any(name in task.points.points for name in block.weights)
        return _Part(block, model, None, f"island, not learned: {error}" if layers else None)


def _checked(task: Task, part: _Part, data: BlockData) -> _Part:
    """The block, as an island if torch does not compute what onnxruntime does.

    A block that does for one sample, but not for several at once, is learned one by one.
    """
    if part.torch is None:
        return part
    if not _row_by_row(data):
        reason = "island, not learned: its outputs do not have a row for each sample"
        return dataclasses.replace(part, torch=None, reason=reason)
    reason = ""
    # As many samples as the graph is fixed to would tell nothing of other numbers.
    for count in (_PROBES + (task.model.batch == _PROBES), 1):
        try:
            made = part.torch.arrays({n: a[:count] for n, a in data.float_inputs.items()})
        except BridgeError as refusal:
            reason = f"island, not learned: {refusal}"
            continue
        targets = {name: array[:count] for name, array in data.targets.items()}
        error = relative_error(made, targets, {})
        if error is not None and error <= _SAME:
            return dataclasses.replace(part, alone=count == 1)
        off = "in shape" if error is None else f"by {error:.1g} of the energy"
        reason = f"island, not learned: torch differs from onnxruntime {off}"
    return dataclasses.replace(part, torch=None, reason=reason)


def _run(task: Task, part: _Part, plan: QuantPlan | None, inputs: Tensors) -> Tensors:
    """The block's outputs in onnxruntime: of the float block, or as `plan` deploys it."""
    proto = part.model.proto if plan is None else emit(part.model, plan, task.target)
    session = Session(proto, threads=task.recipe.threads)
    size = task.model.batch or _RUN_BATCH
    return run_batches(session, Dataset(inputs), size, task.storage)


def _on_grid(model: Model, plan: QuantPlan, inputs: Tensors) -> Tensors:
    """The inputs as the block's quantizers leave them: graph inputs are quantized inside."""
    found = dict(inputs)
    for name in inputs:
        if name in model.inputs and name in plan.tensors:
            found[name] = _OnGrid(inputs[name], plan.tensors[name])
    return found


@dataclass(frozen=True)
class _OnGrid:
    """Samples that are quantized when they are read."""

    samples: Samples
    quant: TensorQuant

    @property
    def shape(self) -> tuple[int, ...]:
        return self.samples.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Index) -> NDArray[Any]:
        return affine.dequantize(affine.quantize(self.samples[index], self.quant), self.quant)


def _heads(part: _Part, points: Points, plan: QuantPlan) -> tuple[str, ...]:
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


def _fisher(task: Task, parts: Sequence[_Part], progress: Progress) -> Arrays:
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
    sweep = FisherSweep([part.torch for part in parts], task.recipe.seed)
    count, done = min(len(task.data), _FISHER_SAMPLES), 0
    for feed in task.data.batches(_RUN_BATCH, count):
        sweep.add({**feed, **session.run(feed)}, outputs)
        done = min(done + _RUN_BATCH, count)
        progress("curvature", done, count)
    return sweep.weights()
