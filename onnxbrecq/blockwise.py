"""The walk through the blocks: reconstruct one, hand its quantized outputs to the next.

A block runs on cached inputs, never on the whole prefix. Its target is what the float block makes
of float inputs; it learns on the inputs that the quantized blocks before it deliver in ONNX
Runtime's own arithmetic; and whether it got better is judged there too: a block that got worse
keeps its former decisions.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.data.dataset import Dataset
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
from onnxbrecq.recon.optimise import BlockData, reconstruct
from onnxbrecq.report.result import BlockFacts
from onnxbrecq.runtime.cache import ActivationCache
from onnxbrecq.runtime.session import Session, run_batches

Arrays = dict[str, NDArray[np.float32]]

_FISHER_SAMPLES = 256
_RUN_BATCH = 32
_SAME = 1e-3  # relative RMS error up to which torch and onnxruntime compute the same float block


@dataclass(frozen=True)
class Walk:
    """The learned plan, and what happened in each block."""

    plan: QuantPlan
    blocks: tuple[BlockFacts, ...]


@dataclass(frozen=True)
class _Part:
    """A block, as a model and in torch (or why it is an island)."""

    block: Block
    model: Model
    torch: TorchBlock | None
    reason: str | None


def walk(
    model: Model,
    blocks: Sequence[Block],
    points: Points,
    plan: QuantPlan,
    data: Dataset,
    *,
    recipe: Recipe,
    target: Target,
    progress: Progress,
) -> Walk:
    """Reconstructs block after block.

    Args:
        model: the float model.
        blocks: its partition.
        points: its quantization points.
        plan: round-to-nearest decisions for all points.
        data: calibration samples.
        recipe: the optimiser's settings.
        target: whose deployed graph the blocks are held against.
        progress: told of each block.
    """
    parts = [_import(model, block) for block in blocks]
    weights = _fisher(model, parts, data, recipe, progress)
    size = _RUN_BATCH if model.batched else 1
    floats, quantized = ActivationCache(data.inputs), ActivationCache(data.inputs)
    facts = []
    for i, part in enumerate(parts):
        progress("reconstruct", i, len(parts), part.block.name)
        started = time.perf_counter()
        needed = {n for later in parts[i + 1 :] for n in later.block.inputs}
        inputs = quantized.select(part.block.inputs)
        float_inputs = floats.select(part.block.inputs)
        targets = _run(part.model, None, float_inputs, size, recipe, target)
        outputs = _run(part.model, plan, inputs, size, recipe, target)
        before = relative_error(outputs, targets, weights)
        learned: Mapping[str, TensorQuant] = {}
        iterations, note, after = 0, part.reason, before
        if part.torch is not None and _decisions(part, plan):
            block_data = BlockData(
                _on_grid(inputs, plan, model), float_inputs, targets,
                {n: w for n, w in weights.items() if n in targets},
            )  # fmt: skip
            learned = reconstruct(
                part.torch, plan, points,
                heads=_heads(part, points, plan),
                float_weights={
                    n: np.asarray(model.initializers[n], np.float32) for n in part.block.weights
                },
                data=block_data, recipe=recipe, seed=recipe.seed + i,
            )  # fmt: skip
        if learned:
            iterations = recipe.schedule()[0]
            candidate = plan.updated(_grouped(learned, points))
            tried = _run(part.model, candidate, inputs, size, recipe, target)
            error = relative_error(tried, targets, weights)
            if error < before:
                plan, outputs, after = candidate, tried, error
            else:
                note = f"kept round-to-nearest: learning ended at loss {error:.3g}"
        facts.append(
            BlockFacts(
                part.block.name, _layers(part, points), before, after, iterations,
                time.perf_counter() - started, note,
            )
        )  # fmt: skip
        floats.advance(targets, needed)
        quantized.advance(outputs, needed)
    progress("reconstruct", len(parts), len(parts))
    return Walk(plan, tuple(facts))


def relative_error(outputs: Arrays, targets: Arrays, weights: Mapping[str, object]) -> float:
    """Weighted squared error of a block's outputs, relative to their weighted energy."""
    error = energy = 0.0
    for name, target in targets.items():
        weight = np.asarray(weights.get(name, 1.0), np.float32)
        for start in range(0, len(target), _RUN_BATCH):
            part = slice(start, start + _RUN_BATCH)
            error += float((weight * np.square(outputs[name][part] - target[part])).sum())
            energy += float((weight * np.square(target[part])).sum())
    return error / max(energy, 1e-30)


def _import(model: Model, block: Block) -> _Part:
    part = extract(model, block)
    try:
        return _Part(block, part, import_block(part), None)
    except BridgeError as error:
        return _Part(block, part, None, f"island, rounded to nearest: {error}")


def _run(
    model: Model,
    plan: QuantPlan | None,
    inputs: Mapping[str, NDArray[np.generic]],
    size: int,
    recipe: Recipe,
    target: Target,
) -> Arrays:
    """The block's outputs in onnxruntime: of the float block, or as `plan` deploys it."""
    proto = model.proto if plan is None else emit(model, plan, target)
    session = Session(proto, threads=recipe.threads)
    return run_batches(session, Dataset(inputs), size)  # type: ignore[return-value]


def _on_grid(inputs: Mapping[str, NDArray[np.generic]], plan: QuantPlan, model: Model) -> Arrays:
    """The inputs as the block's own quantizers see them: graph inputs are quantized inside."""
    found = {}
    for name, value in inputs.items():
        array = np.asarray(value, np.float32)
        if name in model.inputs and name in plan.tensors:
            quant = plan.tensors[name]
            array = affine.dequantize(affine.quantize(array, quant), quant)
        found[name] = array
    return found


def _decisions(part: _Part, plan: QuantPlan) -> bool:
    return any(name in plan.tensors for name in part.block.weights)


def _heads(part: _Part, points: Points, plan: QuantPlan) -> tuple[str, ...]:
    """The activations made in the block that own a quantizer."""
    made = [name for node in part.model.nodes for name in node.output]
    return tuple(n for n in made if n in plan.tensors and points.points[n].group == n)


def _layers(part: _Part, points: Points) -> tuple[str, ...]:
    return tuple(name for name in part.block.nodes if name in points.layers)


def _grouped(learned: Mapping[str, TensorQuant], points: Points) -> dict[str, TensorQuant]:
    """The decisions for heads handed to all tensors of their groups."""
    found = dict(learned)
    for name, point in points.points.items():
        if point.kind == "activation" and point.group in learned:
            found[name] = learned[point.group]
    return found


def _fisher(
    model: Model, parts: Sequence[_Part], data: Dataset, recipe: Recipe, progress: Progress
) -> Arrays:
    """Fisher weights of the blocks' outputs; empty for plain squared error."""
    logits = model.outputs[0]
    classes = model.shapes.get(logits, ())
    if recipe.reconstruction.loss != "fisher" or len(classes) != 2 or not model.batched:
        return {}
    if not recipe.schedule()[0]:
        return {}
    names = dict.fromkeys(n for part in parts for n in part.block.outputs)
    probe = submodel(model, list(model.nodes), model.inputs, tuple(names))
    session = Session(probe.proto, threads=recipe.threads)
    sweep = FisherSweep([part.torch for part in parts], recipe.seed)
    sample, done = data.head(_FISHER_SAMPLES), 0
    for feed in sample.batches(_RUN_BATCH):
        values = {**feed, **session.run(feed)}
        sweep.add(values, logits)  # type: ignore[arg-type]
        done = min(done + _RUN_BATCH, len(sample))
        progress("curvature", done, len(sample))
    return sweep.weights()
