"""A block in both runtimes: as onnxruntime runs it, float or as a plan deploys it, and in torch.

Torch may take a block over only where it computes what onnxruntime does; any other is an island.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Dataset, Samples
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import Target
from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points
from onnxbrecq.plan import QuantPlan, TensorQuant
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.bridge import BridgeError, TorchBlock, import_block
from onnxbrecq.recon.device import learning_device
from onnxbrecq.recon.problem import BlockData, Problem
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.session import Session, run_batches

Tensors = Mapping[str, Samples]  # float32, but for token ids and the like
Arrays = Mapping[str, NDArray[Any]]

RUN_BATCH = 8  # samples a run: as fast as more, in less memory
_NUMBERS = "biuf"  # kinds of numpy types; the others are text
_PROBES = 4  # samples on which torch and onnxruntime must agree about a float block
_TINY = float(np.finfo(np.float32).tiny)
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
class Part:
    """A block as a model, and in torch (None, with the reason, for an island).

    `alone`: it computes one sample at a time, not many at once. `macs`: multiply-accumulates of a
    sample in its weight layers.
    """

    block: Block
    model: Model
    torch: TorchBlock | None
    reason: str | None
    alone: bool = False
    macs: int = 0


def import_part(task: Task, block: Block) -> Part:
    """The block in torch, if it can be, and if torch computes what onnxruntime does."""
    model, inside = extract(task.model, block), frozenset(block.nodes)
    macs = sum(layer.macs for layer in weight_layers(task.model) if layer.name in inside)
    try:
        return Part(block, model, import_block(model), None, macs=macs)
    except BridgeError as error:
        layers = any(name in task.points.points for name in block.weights)
        reason = f"island, not learned: {error}" if layers else None
        return Part(block, model, None, reason, macs=macs)


def checked(task: Task, part: Part, data: BlockData) -> Part:
    """The block, as an island if torch does not compute what onnxruntime does.

    A block that does for one sample, but not for several at once, is learned one by one.
    """
    if part.torch is None:
        return part
    if not row_by_row(data):
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


def run(task: Task, part: Part, plan: QuantPlan | None, inputs: Tensors) -> Tensors:
    """The block's outputs in onnxruntime: of the float block, or as `plan` deploys it."""
    proto = part.model.proto if plan is None else emit(part.model, plan, task.target)
    session = Session(proto, threads=task.recipe.threads)
    size = task.model.batch or RUN_BATCH
    return run_batches(session, Dataset(inputs), size, task.storage)


def deployed_error(task: Task, part: Part, plan: QuantPlan, data: BlockData) -> float | None:
    """The error of the deployed block on the data, as `output_error`."""
    return output_error(run(task, part, plan, data.inputs), data.targets, data.weights)


def output_error(outputs: Tensors, targets: Tensors, weights: Arrays) -> float | None:
    """The mean of the outputs' errors, each relative to its own energy; as `relative_error` else.

    Boxes in pixels have a million times the energy of scores. Weights tell what each is worth: with
    them the errors of all are added up.
    """
    found = None if weights else energies(outputs, targets, weights)
    if found is None:
        return relative_error(outputs, targets, weights)
    total = max(sum(energy for _, energy in found), _TINY)
    return sum(error / (energy or total) for error, energy in found) / max(len(found), 1)


def relative_error(outputs: Tensors, targets: Tensors, weights: Arrays) -> float | None:
    """Weighted squared error of a block's outputs, relative to their weighted energy.

    None as of `energies`.
    """
    found = energies(outputs, targets, weights)
    if found is None:
        return None
    return sum(error for error, _ in found) / max(sum(energy for _, energy in found), _TINY)


def energies(
    outputs: Tensors, targets: Tensors, weights: Arrays
) -> list[tuple[float, float]] | None:
    """Weighted sums of squares of each output's errors, and of its target, over all samples.

    Where a target is not finite (behind a mask), nothing is compared. None if an output has another
    shape than its target: the number of boxes found, say.
    """
    found: list[tuple[float, float]] = []
    for name, target in targets.items():
        if outputs[name].shape != target.shape:
            return None
        if target.dtype.kind not in _NUMBERS:
            continue
        weight = weights.get(name, np.ones((), np.float32))
        error = energy = 0.0
        for start in range(0, len(target), RUN_BATCH):
            part = slice(start, start + RUN_BATCH)
            wanted = target[part].astype(np.float32)
            known = np.isfinite(wanted)
            wanted = np.where(known, wanted, 0)
            made = np.where(known, outputs[name][part], 0)
            error += float((weight * np.square(made - wanted, dtype=np.float64)).sum())
            energy += float((weight * np.square(wanted, dtype=np.float64)).sum())
        found.append((error, energy))
    return found


def row_by_row(data: BlockData) -> bool:
    """Whether every output has a row for each sample."""
    return all(len(target) == len(data) for target in data.targets.values())


def problem_of(task: Task, part: Part, plan: QuantPlan) -> Problem | None:
    """What the block can learn; None where there is nothing, or no wish to."""
    # A weight that is shared is learned where it is first, but each of its layers has its own bias.
    tied = task.points.tied(plan.tensors)
    planned = [name for name in part.block.weights if name in plan.tensors and name not in tied]
    weights = [name for name in planned if task.points.points[name].group == name]
    biases = [layer.bias for layer in task.points.layers.values() if layer.weight in planned]
    constants = {
        name: np.asarray(task.model.initializers[name], np.float32)
        for name in (*weights, *biases)
        if name is not None
    }
    if part.torch is None or not constants:
        return None
    heads = heads_of(part, task.points, plan)
    return Problem(
        part.torch, part.alone, plan, task.points, part.model.nodes, heads, constants,
        part.macs,
        learning_device(task.recipe.device),
    )  # fmt: skip


def heads_of(part: Part, points: Points, plan: QuantPlan) -> tuple[str, ...]:
    """The activations made in the block that own a quantizer."""
    made = [name for node in part.model.nodes for name in node.output]
    return tuple(n for n in made if n in plan.tensors and points.points[n].group == n)


def grouped(learned: Mapping[str, TensorQuant], points: Points) -> dict[str, TensorQuant]:
    """The decisions, those for the head of a group handed to all its tensors."""
    found = dict(learned)
    for name, point in points.points.items():
        if point.group in learned:
            found[name] = learned[point.group]
    return found
