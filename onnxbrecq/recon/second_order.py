"""Rounding without gradients: what one weight's rounding does to an output, the others take back.

Layer by layer through the block. With x the vector of values that an output of the layer reads in
the quantized block, and t what that output has to be for the block to stay what it was, the
least-squares weight W' and the metric of every deviation from it are

    H = E[x x^T]     W' = W + (E[t x^T] - W H) (H + damping)^-1     error(Q) = (Q - W') H (Q - W')^T

x and t are centred where the layer has a bias, which takes in the means at no cost. t is the float
layer's output; where only an Add follows (the end of a residual branch), it is the float sum less
the other operand as it is in the quantized block, so that the layer takes back what the rest of the
block, and all blocks before it, did wrong.

W' is rounded column after column, the error of each moving to those not rounded yet along the rows
of the Cholesky factor of H^-1 (OBQ, Frantar and Alistarh, 2022; in the order and the blocks of
GPTQ, Frantar et al., 2023); then, in turn, each channel's scale is fitted to its levels, and each
column gets the level that is best beside all others. Grouped convolutions are as many small
problems, solved together.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq import affine
from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.points import Layer
from onnxbrecq.plan import TensorQuant
from onnxbrecq.recon.converters.linear import explicit_pads, torch_pads
from onnxbrecq.recon.problem import BlockData, Decisions, Problem, picked
from onnxbrecq.recon.quantizers import LearnedStep

_SAMPLES = 512  # of which H is made
_BATCH = 8  # as fast as more, in less memory
_PLACES, _FEWEST = 16, 1 << 14  # outputs of which H is made: per value of x, and at least;
_VALUES = 1 << 27  # and no more values of x in all
_DAMPING = 0.05  # of the mean of H's diagonal, added to it
# Where x does not vary, H holds nothing but rounding errors; that much is added too:
_PRECISION, _TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
_TRUST = 0.8  # share of the step from W to W' that is taken: the rest fits the samples' noise
_LONGEST = 4608  # values of x in one H
_ROUNDS = 2  # of fitting scales and revisiting columns
_STRETCH = (0.5, 2.0)  # of a scale, at most in one round
_LAZY = 128  # columns rounded before the rest is told


def round_second_order(problem: Problem, data: BlockData, seed: int) -> "Rounded":
    """The block's layers, rounded one after another; activations keep their steps."""
    return _Rounding(problem, data, seed).result()


@dataclasses.dataclass(frozen=True)
class Rounded:
    """What came of it.

    Attributes:
        decisions: levels and scales of the weights, and biases.
        weights: initializer name → W', of which the levels are the rounding.
    """

    decisions: Decisions
    weights: Mapping[str, NDArray[np.float32]]


class _Moments(NamedTuple):
    """Of the values x that an output of each group reads, and what it misses: r = t - W x.

    Attributes:
        gram: covariance of x, [G, K, K].
        cross: covariance of r and x, [G, O, K].
        read: mean of x, [G, K].
        missed: mean of r, [G, O].
    """

    gram: Tensor
    cross: Tensor
    read: Tensor
    missed: Tensor

    def about_zero(self) -> "_Moments":
        """With the mean of x x^T and of r x^T in place of the covariances."""
        return self._replace(
            gram=self.gram + self.read[:, :, None] * self.read[:, None, :],
            cross=self.cross + self.missed[:, :, None] * self.read.reshape(len(self.cross), 1, -1),
        )


@dataclasses.dataclass(frozen=True)
class _Site:
    """A layer in its block.

    Attributes:
        layer: the layer.
        node: its node.
        weight: its float weight.
        wanted: the tensor whose float values it has to make,
        other: less this one's in the quantized block; None: nothing less.
    """

    layer: Layer
    node: onnx.NodeProto
    weight: Tensor
    wanted: str
    other: str | None

    @property
    def groups(self) -> int:
        """G."""
        found: int = int(attribute(self.node, "group", 1))  # type: ignore[call-overload]
        return found

    @property
    def first(self) -> Tensor:
        """The weight, output channels first."""
        return self.weight.movedim(self.layer.axis, 0)

    @property
    def matrix(self) -> Tensor:
        """The weight as [G, O, K]."""
        return self.first.reshape(self.groups, len(self.first) // self.groups, -1)

    def restored(self, matrix: Tensor) -> NDArray[Any]:
        """A tensor [G, O, K] in the weight's own shape."""
        moved = matrix.reshape(self.first.shape).movedim(0, self.layer.axis)
        return moved.contiguous().numpy()


class _Rounding:
    """One block on its way from nearest rounding to better."""

    def __init__(self, problem: Problem, data: BlockData, seed: int) -> None:
        self._problem = problem
        self._data = data
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
            layer = next((layers[n] for n in node.input if n in self._weights), None)
            if layer is not None:
                self._round(self.site(i, layer))
        biases = {name: bias.numpy() for name, bias in self._biases.items()}
        return Rounded(Decisions(dict(self._weights), biases), self._aims)

    def site(self, i: int, layer: Layer) -> _Site:
        """The layer of node `i`; with an Add behind it whose other operand stays as it is now."""
        nodes = self._problem.nodes
        weight = torch.from_numpy(np.array(self._problem.constants[layer.weight], np.float32))
        made = nodes[i].output[0]
        readers = [node for node in nodes if made in node.input]
        if made not in self._problem.block.outputs and [n.op_type for n in readers] == ["Add"]:
            others = [name for name in readers[0].input if name != made]
            if len(others) == 1 and others[0] not in self._unsettled(i):
                return _Site(layer, nodes[i], weight, readers[0].output[0], others[0])
        return _Site(layer, nodes[i], weight, made, None)

    def _unsettled(self, i: int) -> set[str]:
        """Tensors that depend on a layer from node `i` on."""
        nodes = self._problem.nodes
        found = set(nodes[i].output)
        for node in nodes[i + 1 :]:
            if any(name in self._weights or name in found for name in node.input):
                found.update(node.output)
        return found

    def _round(self, site: _Site) -> None:
        layer, matrix = site.layer, site.matrix
        moments = self._moments(site)
        if moments is None:
            return
        used = moments.about_zero() if layer.bias is None else moments
        pieces = len(used.gram) // site.groups
        quant = self._weights[layer.weight]
        levels, scale, aim = _rounded(matrix, used, quant, pieces)
        rounded = dataclasses.replace(
            quant,
            levels=site.restored(levels.to(torch.uint8)),
            scale=scale.reshape(quant.scale.shape).numpy(),
        )
        self._weights[layer.weight] = rounded
        self._aims[layer.weight] = site.restored(aim)
        if layer.bias is not None:
            made = torch.from_numpy(affine.dequantize(rounded.levels, rounded))  # type: ignore[arg-type]
            made = made.movedim(layer.axis, 0).reshape(matrix.shape)
            read = moments.read.reshape(site.groups, -1)
            bias = moments.missed + torch.einsum("gok,gk->go", matrix - made, read)
            self._biases[layer.bias] = bias.reshape(-1)

    def _moments(self, site: _Site) -> _Moments | None:
        """Means over random outputs of the layer; None where they are not finite."""
        groups, outputs, length = site.matrix.shape
        pieces = _pieces(length)
        inner = length // pieces
        count = min(max(_PLACES * length, _FEWEST), _VALUES // (length * groups))
        shapes = [
            (groups * pieces, inner, inner),
            (groups, outputs, length),
            (groups * pieces, inner),
        ]
        gram, cross, read, missed = (torch.zeros(s) for s in (*shapes, (groups, outputs)))
        seen, origin = 0, None
        for data, wanted, share in self._batches(site):
            places = _Places(site, data, max(1, round(count * share)), self._generator)
            x = places.read(data).reshape(-1, groups, length).transpose(0, 1)
            r = (
                places.made(wanted).reshape(-1, groups, outputs).transpose(0, 1)
                - x @ site.matrix.mT
            )
            if origin is None:  # about which sums lose no digits, as the mean is not far from it
                origin = x.mean(1, keepdim=True), r.mean(1, keepdim=True)
            x, r = x - origin[0], r - origin[1]
            split = _split(x, pieces)
            gram += split.mT @ split
            cross += r.mT @ x
            read += split.sum(1)
            missed += r.sum(1)
            seen += x.shape[1]
        if origin is None or not all(bool(t.isfinite().all()) for t in (gram, cross)):
            return None
        gram, cross, read, missed = (total / seen for total in (gram, cross, read, missed))
        return _Moments(
            gram - read[:, :, None] * read[:, None, :],
            cross - missed[:, :, None] * read.reshape(groups, 1, -1),
            read + _split(origin[0], pieces)[:, 0],
            missed + origin[1][:, 0],
        )

    def _batches(self, site: _Site) -> Iterator[tuple[Tensor, Tensor, float]]:
        """What the layer reads in the quantized block, what it has to make; share of samples."""
        block, data = self._problem.block, site.layer.data
        constants = {
            name: torch.from_numpy(affine.dequantize(quant.levels, quant))  # type: ignore[arg-type]
            for name, quant in self._weights.items()
        } | self._biases
        total = min(len(self._data), _SAMPLES)
        places = np.linspace(0, len(self._data) - 1, total).astype(int)
        size = 1 if self._problem.alone else _BATCH
        for start in range(0, total, size):
            index = places[start : start + size]
            feed, real = (
                {name: picked(samples, index) for name, samples in arrays.items()}
                for arrays in (self._data.inputs, self._data.float_inputs)
            )
            needed = [data] if site.other is None else [data, site.other]
            with torch.no_grad():
                have = block.run(feed, constants, self._steps, needed)
                wanted = block.run(real, outputs=[site.wanted])[site.wanted]
            if site.other is not None:
                wanted = wanted - have[site.other]
            yield have[data], wanted, len(index) / total


class _Places:
    """Random outputs of a layer: what they read, and what they are."""

    def __init__(self, site: _Site, x: Tensor, count: int, generator: torch.Generator) -> None:
        """`count` of them, of a layer whose data is like `x`."""
        self._window: tuple[Tensor, ...] | None = None
        self._pads: list[int] = []
        if site.node.op_type != "Conv":
            self._index: tuple[Tensor, ...] = (
                torch.randint(x[..., 0].numel(), (count,), generator=generator),
            )
            return
        rank = x.ndim - 2
        kernel = site.weight.shape[2:]
        steps = _integers(site.node, "strides") or [1] * rank
        spread = _integers(site.node, "dilations") or [1] * rank
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
        kind = attribute(site.node, "auto_pad", b"NOTSET")
        assert isinstance(kind, bytes)
        given = _integers(site.node, "pads")
        pads = explicit_pads(x.shape[2:], reach, steps, kind.decode(), given)
        self._pads = list(torch_pads(*pads))
        sample = torch.randint(len(x), (count,), generator=generator)
        window, outputs = [], []
        for axis, size in enumerate(kernel):
            before, after = self._pads[2 * (rank - 1 - axis) :][:2]
            length = x.shape[2 + axis] + before + after
            last = (length - reach[axis]) // steps[axis] + 1
            place = torch.randint(last, (count,), generator=generator)
            offsets = place[:, None] * steps[axis] + torch.arange(size) * spread[axis]
            outputs.append(place)
            window.append(offsets.reshape(count, 1, *[1] * axis, size, *[1] * (rank - axis - 1)))
        channels = torch.arange(x.shape[1]).reshape(1, -1, *[1] * rank)
        self._window = (sample.reshape(-1, *[1] * (rank + 1)), channels, *window)
        self._index = (sample, *outputs)

    def read(self, x: Tensor) -> Tensor:
        """The values of the layer's data that each reads, [P, values]."""
        if self._window is None:
            return x.reshape(-1, x.shape[-1])[self._index]
        return F.pad(x, self._pads)[self._window].flatten(1)

    def made(self, y: Tensor) -> Tensor:
        """The values of the layer's output, [P, channels]."""
        if self._window is None:
            return y.reshape(-1, y.shape[-1])[self._index]
        return y.movedim(1, -1)[self._index]


def _pieces(length: int) -> int:
    """Into how many equal pieces K is cut so that H stays small; correlations between are left."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= _LONGEST)


def _rounded(
    weight: Tensor, moments: _Moments, quant: TensorQuant, pieces: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels [G, O, K] and scales [G, O] of a weight [G, O, K], and W' [G, O, K].

    Each group's K is cut into `pieces`; of one piece, W' would make up for the others as well, so
    W stays then.
    """
    _, outputs, length = moments.cross.shape
    inner = length // pieces
    diagonal = torch.diagonal(moments.gram, dim1=1, dim2=2)
    order = diagonal.sum(0).argsort(descending=True)  # what matters most is rounded first
    back = order.argsort()
    damped = moments.gram[:, order][:, :, order].double()
    mean = diagonal.double().mean(dim=1)
    least = _PRECISION * moments.read.double().square().sum(dim=1) + _TINY
    damped += (_DAMPING * mean + least)[:, None, None] * torch.eye(inner, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    aim = _split(weight, pieces)[:, :, order]
    if pieces == 1:
        aim = aim + _TRUST * (moments.cross[:, :, order].double() @ inverse).float()
    offsets = affine.offsets(quant.qtype, quant.zero_point).astype(np.float32)
    scale, zero = (
        torch.from_numpy(np.broadcast_to(v, weight.shape[0] * outputs).copy())
        .reshape(-1, outputs)
        .repeat_interleave(pieces, dim=0)
        for v in (quant.scale, offsets)
    )
    grid = _Grid(scale, zero, quant.qtype.step, quant.qtype.levels - 1)
    made = _compensated(aim, factor, grid)
    metric = damped.float()
    for _ in range(_ROUNDS):
        stretch = _stretch(aim, made, metric, pieces)
        grid = grid._replace(scale=grid.scale * stretch)
        made = _descended(aim, made * stretch[..., None], metric, grid)
    levels, aims = (_joined(values[:, :, back], pieces) for values in (grid.levels(made), aim))
    return levels, grid.scale[::pieces], aims


def _split(weight: Tensor, pieces: int) -> Tensor:
    """[G, O, K] as [G * pieces, O, K / pieces]."""
    groups, outputs, length = weight.shape
    return weight.reshape(groups, outputs, pieces, length // pieces).transpose(1, 2).flatten(0, 1)


def _joined(weight: Tensor, pieces: int) -> Tensor:
    """The inverse of `_split`."""
    _, outputs, length = weight.shape
    return weight.reshape(-1, pieces, outputs, length).transpose(1, 2).flatten(2)


class _Grid(NamedTuple):
    """Where the weights [G, O, K] may lie: scale and offset [G, O], integer step, top level."""

    scale: Tensor
    offset: Tensor
    step: int
    top: int

    def nearest(self, column: Tensor) -> Tensor:
        """The nearest values of a column [G, O]."""
        level = torch.round((column / self.scale + self.offset) / self.step).clamp_(0, self.top)
        return self.scale * (level * self.step - self.offset)

    def levels(self, made: Tensor) -> Tensor:
        """The levels of values [G, O, K] on the grid."""
        ratio = made / self.scale[..., None] + self.offset[..., None]
        return torch.round(ratio / self.step).clamp_(0, self.top)


def _compensated(weight: Tensor, factor: Tensor, grid: _Grid) -> Tensor:
    """Weights on the grid, column by column, the error of each handed on along `factor`."""
    rest, made = weight.clone(), torch.empty_like(weight)
    for start, end in _columns_at_a_time(weight):
        errors = torch.empty_like(weight[:, :, start:end])
        for i in range(start, end):
            made[:, :, i] = grid.nearest(rest[:, :, i])
            error = (rest[:, :, i] - made[:, :, i]) / factor[:, i, i, None]
            rest[:, :, i:end] -= error[:, :, None] * factor[:, None, i, i:end]
            errors[:, :, i - start] = error
        rest[:, :, end:] -= errors @ factor[:, start:end, end:]
    return made


def _descended(weight: Tensor, made: Tensor, gram: Tensor, grid: _Grid) -> Tensor:
    """Each column once more at the level that is best beside all others (coordinate descent)."""
    made = made.clone()
    slope = (made - weight) @ gram
    for start, end in _columns_at_a_time(weight):
        moves = torch.empty_like(weight[:, :, start:end])
        for i in range(start, end):
            best = grid.nearest(made[:, :, i] - slope[:, :, i] / gram[:, i, i, None])
            move = best - made[:, :, i]
            slope[:, :, i:end] += move[:, :, None] * gram[:, None, i, i:end]
            made[:, :, i] = best
            moves[:, :, i - start] = move
        slope[:, :, end:] += moves @ gram[:, start:end, end:]
    return made


def _stretch(weight: Tensor, made: Tensor, gram: Tensor, pieces: int) -> Tensor:
    """The factor [G, O] on each output's scale that brings `made` nearest to `weight`."""
    moved = made @ gram
    along, length = (
        (moved * other).sum(-1).reshape(-1, pieces, weight.shape[1]).sum(1)
        for other in (weight, made)
    )
    found = torch.where(length > 0, along / length, 1).clamp_(*_STRETCH)
    return found.repeat_interleave(pieces, dim=0)


def _columns_at_a_time(weight: Tensor) -> Iterator[tuple[int, int]]:
    length = weight.shape[-1]
    return ((start, min(start + _LAZY, length)) for start in range(0, length, _LAZY))


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    value = attribute(node, name, ())
    assert isinstance(value, Sequence)
    return [int(item) for item in value]
