"""Rounding without gradients: what one weight's rounding does to an output, the others take back.

Layer by layer through the block. With x the vector of values that an output of the layer reads in
the quantized block, and t what that output has to be for the block to stay what it was, the
least-squares weight W' and the metric of every deviation from it are

    H = E[x x^T]     W' = W + (E[t x^T] - W H) (H + damping)^-1     error(Q) = (Q - W') H (Q - W')^T

x and t are centred where the layer has a bias, which takes in the means at no cost. t is the float
layer's output; where only an Add follows (the end of a residual branch), it is the float sum less
the other operand as it is in the quantized block, so that the layer takes back what the rest of the
block, and all blocks before it, did wrong.

W' is rounded input by input, errors moving to those not rounded yet (`recon/rounding.py`), on each
of a few grids (`recon/grids.py`); each channel, or block of one, keeps the one of least error (at 2
bits that is 5 to 20 % less than on the grid of least weight error, in a tenth more time). Then, in
turn, each scale is fitted to its levels, and each input is revisited. A grouped convolution is as
many small problems, solved together.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq import affine
from onnxbrecq.graph.weights import Layer
from onnxbrecq.plan import TensorQuant
from onnxbrecq.recon.device import Rows, placed
from onnxbrecq.recon.grids import best, best_in_blocks, grid_of, stored, stretch, stretch_in_blocks
from onnxbrecq.recon.moments import Batch, Moments, Site, Statistics, gather, places_wanted, split
from onnxbrecq.recon.problem import BlockData, Decisions, Problem
from onnxbrecq.recon.quantizers import LearnedStep
from onnxbrecq.recon.rounding import Grid, compensated, descended, handed_on

_SAMPLES = (128, 512)  # of which H is made: at least, at most;
_SPREAD = 8  # between, so many that one place of so many is looked at
_BATCH = 8  # as fast as more, in less memory
_DAMPING = 0.2  # of the mean of H's diagonal, added to it
# Where x does not vary, H holds nothing but rounding errors; that much is added too:
_PRECISION, _TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
_DAMPINGS = (0.02, 0.1, 0.5)  # tried for the step from W to W'
_UNKNOWNS = 4  # values of x for each output that is known, at most: more cannot be fitted
_FINE = 8  # bits of a grid that is as good as any other; below are tried
_LONG = 2048  # values of x, from which on 8-bit weights are rounded to nearest: more gains nothing
_ROUNDS = 2  # of fitting scales and revisiting columns


def round_second_order(problem: Problem, data: BlockData, seed: int) -> "Rounded":
    """The block's layers, rounded one after another; activations keep their steps."""
    return _Rounding(problem, data, seed).result()


def round_each(
    problem: Problem, data: BlockData, seed: int, offers: Mapping[str, Sequence[TensorQuant]]
) -> dict[str, list["Decisions"]]:
    """Weight → it alone decided as each of its offers is, and its bias, all else as planned.

    Offers share the moments of what the layer reads. Nothing is taken back that other layers do
    wrong; a layer whose moments are not finite keeps its offers as they are.
    """
    return _Rounding(problem, data, seed).each(offers)


@dataclasses.dataclass(frozen=True)
class Rounded:
    """What came of it.

    Attributes:
        decisions: levels and scales of the weights, and biases.
        weights: initializer name → W', of which the levels are the rounding.
    """

    decisions: Decisions
    weights: Mapping[str, NDArray[np.float32]]


class _Rounding:
    """One block on its way from nearest rounding to better."""

    def __init__(self, problem: Problem, data: BlockData, seed: int) -> None:
        self._problem = problem
        self._count = len(data)
        self._fed, self._real = (
            Rows(samples, problem.device) for samples in (data.inputs, data.float_inputs)
        )
        self._generator = torch.Generator().manual_seed(seed)
        plan, points = problem.plan, problem.points.points
        self._weights = {
            name: plan.tensors[name] for name in problem.constants if name in plan.tensors
        }
        self._biases = {
            name: torch.from_numpy(np.array(value))
            for name, value in problem.constants.items()
            if name not in plan.tensors
        }
        self._aims: dict[str, NDArray[np.float32]] = {}
        self._steps = {
            name: LearnedStep(plan.tensors[name], points[name].ceiling).eval()
            for name in problem.heads
        }

    def result(self) -> Rounded:
        """Rounds layer after layer, in the order of execution."""
        layers = {layer.weight: layer for layer in self._problem.points.layers.values()}
        for i, node in enumerate(self._problem.nodes):
            layer = next((layers[n] for n in node.input if n in layers), None)
            if layer is not None and layer.weight in self._weights:
                self._round(self.site(i, layer))
            elif layer is not None and layer.bias in self._biases:
                self._shift(self.site(i, layer))
        biases = {name: bias.numpy() for name, bias in self._biases.items()}
        return Rounded(Decisions(dict(self._weights), biases), self._aims)

    def each(self, offers: Mapping[str, Sequence[TensorQuant]]) -> dict[str, list[Decisions]]:
        """Decides each layer for each of its offers, and goes on with the plan's decision."""
        layers = {layer.weight: layer for layer in self._problem.points.layers.values()}
        decided = {}
        for i, node in enumerate(self._problem.nodes):
            layer = next((layers[n] for n in node.input if n in offers), None)
            if layer is not None:
                decided[layer.weight] = self._each(self.site(i, layer), offers[layer.weight])
        return decided

    def _each(self, site: Site, offers: Sequence[TensorQuant]) -> list[Decisions]:
        found = self._gathered(site)
        if found is None:
            return [Decisions({site.layer.weight: quant}, {}) for quant in offers]
        decided = [_decided(site, found, quant, site.matrix) for quant in offers]
        return [
            Decisions(
                {site.layer.weight: quant},
                {} if bias is None or site.layer.bias is None else {site.layer.bias: bias.numpy()},
            )
            for quant, bias in decided
        ]

    def site(self, i: int, layer: Layer) -> Site:
        """The layer of node `i`; with an Add behind it whose other operand stays as it is now."""
        nodes = self._problem.nodes
        known = self._problem.constants.get(layer.weight)
        shared = self._problem.block.constant
        weight = shared(layer.weight) if known is None else torch.from_numpy(np.array(known))
        made = nodes[i].output[0]
        readers = [node for node in nodes if made in node.input]
        if made not in self._problem.block.outputs and [n.op_type for n in readers] == ["Add"]:
            others = [name for name in readers[0].input if name != made]
            if len(others) == 1 and others[0] not in self._unsettled(i):
                return Site(layer, nodes[i], weight, readers[0].output[0], others[0])
        return Site(layer, nodes[i], weight, made, None)

    def _unsettled(self, i: int) -> set[str]:
        """Tensors that depend on a layer from node `i` on."""
        nodes = self._problem.nodes
        found = set(nodes[i].output)
        for node in nodes[i + 1 :]:
            if any(name in self._weights or name in found for name in node.input):
                found.update(node.output)
        return found

    def _gathered(self, site: Site) -> Statistics | None:
        """The layer's moments as it is to be rounded with; None where they are not known."""
        if not site.readable:
            return None
        with placed(self._problem.block, self._problem.device):
            return gather(site, self._batches(site), self._generator)

    def _round(self, site: Site) -> None:
        layer = site.layer
        found = self._gathered(site)
        if found is None:
            return
        aim = _aim(site.matrix, found.about_zero() if layer.bias is None else found)
        rounded, bias = _decided(site, found, self._weights[layer.weight], aim)
        self._weights[layer.weight] = rounded
        self._aims[layer.weight] = site.restored(aim)
        if layer.bias is not None and bias is not None:
            self._biases[layer.bias] = bias

    def _shift(self, site: Site) -> None:
        """Fits the bias of a layer whose weight is decided elsewhere."""
        found = self._gathered(site)
        if found is not None and site.layer.bias is not None:
            made = self._made()[site.layer.weight].cpu()
            self._biases[site.layer.bias] = _bias(site, found, made)

    def _made(self) -> dict[str, Tensor]:
        """The block's weights as they are decided now."""
        decided = {
            name: torch.from_numpy(affine.dequantize(quant.levels, quant))  # type: ignore[arg-type]
            for name, quant in self._weights.items()
        }
        return self._problem.with_others(decided)

    def _samples(self, site: Site) -> int:
        """How many samples the layer is looked at on: fewer where each has many places."""
        one = self._real.at(np.zeros(1, np.intp))
        with torch.no_grad():
            made = self._problem.block.run(one, outputs=[site.wanted])[site.wanted]
        groups, outputs, _ = site.matrix.shape
        places = made.numel() / (groups * outputs)
        return int(np.clip(_SPREAD * places_wanted(site) / places, *_SAMPLES))

    def _batches(self, site: Site) -> Iterator[Batch]:
        """What the layer reads in the quantized block, what it has to make; share of samples."""
        block, data = self._problem.block, site.layer.data
        device = self._problem.device
        made = {**self._made(), **self._biases}
        constants = {name: value.to(device) for name, value in made.items()}
        total = min(self._count, self._samples(site))
        chosen = np.linspace(0, self._count - 1, total).astype(int)
        size = 1 if self._problem.alone else min(_BATCH, -(-total // 2))
        for start in range(0, total, size):
            index = chosen[start : start + size]
            feed, real = self._fed.at(index), self._real.at(index)
            needed = [data] if site.other is None else [data, site.other]
            with torch.no_grad():
                have = block.run(feed, constants, self._steps, needed)
                wanted = block.run(real, outputs=[site.wanted])[site.wanted]
            if site.other is not None:
                wanted = wanted - have[site.other]
            yield have[data], wanted, len(index) / total


def _decided(
    site: Site, found: Statistics, quant: TensorQuant, aim: Tensor
) -> tuple[TensorQuant, Tensor | None]:
    """The weight on a grid near that of `quant`, as near to `aim` as outputs tell; its bias [C]."""
    layer = site.layer
    used = found.about_zero() if layer.bias is None else found
    levels, grid = _rounded(aim, used.whole, quant)
    rounded = dataclasses.replace(quant, levels=site.restored(levels.to(torch.uint8)))
    if quant.axis is not None:
        rounded = dataclasses.replace(rounded, scale=stored(grid.scale, quant))
    if quant.axis is not None and quant.qtype.grid != "signed":
        zero_point = stored(grid.offset, quant).astype(np.int32)
        rounded = dataclasses.replace(rounded, zero_point=zero_point)
    if layer.bias is None:
        return rounded, None
    made = torch.from_numpy(affine.dequantize(rounded.levels, rounded))  # type: ignore[arg-type]
    return rounded, _bias(site, found, made)


def _bias(site: Site, found: Statistics, made: Tensor) -> Tensor:
    """The bias [C] that takes in the mean of what the layer misses with the weight `made`."""
    read = found.whole.read.reshape(site.groups, -1)
    missed = torch.einsum("gok,gk->go", site.matrix - site.as_matrix(made), read)
    return (found.whole.missed + missed).reshape(-1)


def _aim(weight: Tensor, found: Statistics) -> Tensor:
    """W' [G, O, K] of a weight [G, O, K].

    The step that fits one half of the samples is taken as far as it serves the other, with the
    damping that serves best; W where none does, where few outputs are known for the values that
    each reads, or where x is cut into pieces, each of which would make up for all others.
    """
    if found.halves is None or len(found.whole.gram) > len(weight):
        return weight
    if _UNKNOWNS * found.places < weight.shape[2]:
        return weight
    fitted, held = found.halves
    best = (0.0, 0.0, 0.0)  # gain, share of the step, damping
    for damping in _DAMPINGS:
        step = _step(fitted, damping)
        along = float((step * held.cross).sum(dtype=torch.float64))
        length = float(((step @ held.gram) * step).sum(dtype=torch.float64))
        share = min(max(along / length, 0.0), 1.0) if length > 0 else 0.0
        best = max(best, (share * (2 * along - share * length), share, damping))
    gain, share, damping = best
    return weight + share * _step(found.whole, damping) if gain > 0 else weight


def _step(moments: Moments, damping: float) -> Tensor:
    """From W to the weight of least squared error, [G, O, K]."""
    factor = torch.linalg.cholesky(_damped(moments, damping))
    return torch.cholesky_solve(moments.cross.mT.double(), factor).mT.float()


def _damped(moments: Moments, damping: float) -> Tensor:
    """H with `damping` times the mean of its diagonal added, [G, K, K] in float64."""
    gram = moments.gram.double()
    mean = torch.diagonal(gram, dim1=1, dim2=2).mean(dim=1)
    least = _PRECISION * moments.read.double().square().sum(dim=1) + _TINY
    unit = torch.eye(gram.shape[-1], dtype=torch.float64)
    return gram + (damping * mean + least)[:, None, None] * unit


def _rounded(aim: Tensor, moments: Moments, quant: TensorQuant) -> tuple[Tensor, Grid]:
    """Levels [G, O, K] and their grid for W' [G, O, K]; each group may be cut into pieces.

    One scale for all channels stays as it is.
    """
    groups, outputs, length = aim.shape
    grid, block = grid_of(quant, groups, outputs), quant.block_size
    fine, pieces = quant.qtype.bits >= _FINE, len(moments.gram) // groups
    if (fine and length > _LONG) or (block and pieces > 1 and length // pieces % block):
        return torch.from_numpy(grid.levels(aim.mT.numpy())).mT, grid
    signed = quant.qtype.grid == "signed"
    diagonal = torch.diagonal(moments.gram, dim1=1, dim2=2)
    order = diagonal.sum(0).argsort(descending=True)  # what matters most is rounded first
    back = order.argsort()
    metric, wanted = _damped(moments, _DAMPING), split(aim, pieces).mT
    grid = _in_pieces(grid, pieces)
    if block and not fine:
        grid = best_in_blocks(wanted, metric, grid, block, signed=signed)
    metric, wanted = metric[:, order][:, :, order], wanted[:, order].contiguous()
    grid = grid.rows(order.numpy())
    factor, metric = handed_on(metric), metric.float()
    free = quant.axis is not None
    if not block and not fine and free:
        grid = best(wanted, factor, metric, grid, signed=signed, pieces=pieces)
    made = compensated(wanted, factor, grid)
    for _ in range(_ROUNDS):
        if block:
            factors = stretch_in_blocks(wanted, made, metric, torch.split(back, block))
        elif free:
            factors = stretch(wanted, made, metric, pieces)
        else:
            factors = torch.ones(grid.scale.shape)
        grid = grid._replace(scale=grid.scale * factors.numpy())
        made = descended(wanted, made * factors, metric, grid)
    levels = torch.from_numpy(grid.levels(made.numpy()))[:, back]
    return _joined(levels.mT, pieces), _whole(grid.rows(back.numpy()), pieces)


def _in_pieces(grid: Grid, pieces: int) -> Grid:
    """The grid of each piece: the same for all, or its own rows."""
    whole, rows, outputs = grid.scale.shape
    if rows == 1:
        scale, offset = (v.repeat(pieces, axis=0) for v in (grid.scale, grid.offset))
    else:
        shape = (whole * pieces, rows // pieces, outputs)
        scale, offset = (v.reshape(shape) for v in (grid.scale, grid.offset))
    return grid._replace(scale=scale, offset=offset)


def _whole(grid: Grid, pieces: int) -> Grid:
    """The inverse of `_in_pieces`."""
    many, rows, outputs = grid.scale.shape
    if rows == 1:
        return grid._replace(scale=grid.scale[::pieces], offset=grid.offset[::pieces])
    shape = (many // pieces, rows * pieces, outputs)
    return grid._replace(scale=grid.scale.reshape(shape), offset=grid.offset.reshape(shape))


def _joined(weight: Tensor, pieces: int) -> Tensor:
    """The inverse of `split`."""
    _, outputs, length = weight.shape
    return weight.reshape(-1, pieces, outputs, length).transpose(1, 2).flatten(2)
