"""Rounding without gradients: what one weight's rounding does to an output, the others take back.

Layer by layer through the block, on the inputs that the quantized block really delivers. With x the
vector of values that an output reads and H = E[x x^T], the squared error of an output whose weights
change by d is d^T H d. Columns are rounded one after another, and the error of each moves to those
not rounded yet along the rows of the Cholesky factor of H^-1 (OBQ, Frantar and Alistarh, 2022; in
the order and the blocks of GPTQ, Frantar et al., 2023). Grouped convolutions are as many small
problems, solved together.

What is left of the mean error goes into the bias, in closed form: with x^f the float network's
values at the same places,

    b <- b + W E[x^f] - Q E[x]
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from onnxbrecq import affine
from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.points import Layer
from onnxbrecq.plan import TensorQuant
from onnxbrecq.recon.converters.linear import explicit_pads, torch_pads
from onnxbrecq.recon.problem import BlockData, Decisions, Problem
from onnxbrecq.recon.quantizers import LearnedStep

_SAMPLES = 128  # of which H is made
_BATCH = 32
_COLUMNS, _FEWEST = 4, 4096  # places of which H is made: per value of x, and at least;
_VALUES = 1 << 25  # and no more values in all
_DAMPING = 0.01  # of the mean of H's diagonal, added to it
_LONGEST = 4096  # values of x in one H
_ROUNDS = 2  # of coordinate descent
_STRETCH = (0.5, 2.0)  # of a scale, at most in one round
_LAZY = 128  # columns rounded before the rest is told


def round_second_order(problem: Problem, data: BlockData, seed: int) -> Decisions:
    """Levels and biases of the block's layers; activations keep their steps."""
    return _Rounding(problem, data, seed).decisions()


class _Moments(NamedTuple):
    """Of the values [G, K] that one output of each group reads.

    Attributes:
        gram: mean of x x^T in the quantized block, [G, K, K].
        quantized: mean of x there, [G, K].
        real: mean of x in the float block, at the same places.
    """

    gram: Tensor
    quantized: Tensor
    real: Tensor


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
        self._steps = {
            name: LearnedStep(plan.tensors[name], points[name].ceiling).eval()
            for name in problem.heads
        }

    def decisions(self) -> Decisions:
        """Rounds layer after layer, in the order of execution."""
        layers = {layer.weight: layer for layer in self._problem.points.layers.values()}
        for node in self._problem.nodes:
            layer = next((layers[n] for n in node.input if n in self._weights), None)
            if layer is not None:
                self._round(layer, node)
        biases = {name: bias.numpy() for name, bias in self._biases.items()}
        return Decisions(dict(self._weights), biases)

    def _round(self, layer: Layer, node: onnx.NodeProto) -> None:
        quant = self._weights[layer.weight]
        weight = torch.from_numpy(np.array(self._problem.constants[layer.weight]))
        groups = int(attribute(node, "group", 1))  # type: ignore[call-overload]
        first = weight.movedim(layer.axis, 0)  # output channels first
        matrix = first.reshape(groups, len(first) // groups, -1)
        pieces = _pieces(matrix.shape[-1])
        moments = self._moments(layer, node, weight, groups * pieces)
        if moments is None:
            return
        levels, scale = _rounded(_split(matrix, pieces), moments.gram, quant, pieces)
        levels = _joined(levels, pieces)
        ordered = levels.reshape(first.shape).movedim(0, layer.axis).contiguous()
        self._weights[layer.weight] = rounded = dataclasses.replace(
            quant,
            levels=ordered.to(torch.uint8).numpy(),
            scale=scale.reshape(quant.scale.shape).numpy(),
        )
        if layer.bias is not None:
            made = torch.from_numpy(affine.dequantize(rounded.levels, rounded))  # type: ignore[arg-type]
            made = made.movedim(layer.axis, 0).reshape(matrix.shape)
            real, quantized = (m.reshape(groups, -1) for m in (moments.real, moments.quantized))
            shift = torch.einsum("gok,gk->go", matrix, real)
            shift = shift - torch.einsum("gok,gk->go", made, quantized)
            self._biases[layer.bias] = self._biases[layer.bias] + shift.reshape(-1)

    def _moments(
        self, layer: Layer, node: onnx.NodeProto, weight: Tensor, groups: int
    ) -> _Moments | None:
        """Sums over batches of what the layer reads, at random places."""
        inputs = weight.numel() // weight.shape[layer.axis]
        if node.op_type == "Conv":
            inputs *= int(attribute(node, "group", 1))  # type: ignore[call-overload]
        length = inputs // groups
        count = min(max(_COLUMNS * length, _FEWEST), _VALUES // inputs)
        gram, means = torch.zeros(groups, length, length), torch.zeros(2, groups, length)
        seen = 0
        for pair, share in self._reads(layer):
            picked = _columns(pair, node, weight, max(1, round(count * share)), self._generator)
            x, real = (p.reshape(p.shape[0], groups, length).transpose(0, 1) for p in picked)
            gram += x.transpose(1, 2) @ x
            means += torch.stack([x.sum(1), real.sum(1)])
            seen += x.shape[1]
        if not seen or not bool(torch.isfinite(gram).all()):
            return None
        return _Moments(gram / seen, *(means / seen))

    def _reads(self, layer: Layer) -> Iterator[tuple[tuple[Tensor, Tensor], float]]:
        """What the layer reads in the quantized and in the float block; the share of samples."""
        constants = {
            name: torch.from_numpy(affine.dequantize(quant.levels, quant))  # type: ignore[arg-type]
            for name, quant in self._weights.items()
        } | self._biases
        total = min(len(self._data), _SAMPLES)
        places = np.linspace(0, len(self._data) - 1, total).astype(int)
        size = 1 if self._problem.alone else _BATCH
        for start in range(0, total, size):
            index = places[start : start + size]
            yield (
                (
                    self._read(layer, self._data.inputs, index, constants, self._steps),
                    self._read(layer, self._data.float_inputs, index, {}, {}),
                ),
                len(index) / total,
            )

    def _read(
        self, layer: Layer, inputs: Mapping[str, np.ndarray], index: np.ndarray,
        constants: Mapping[str, Tensor], steps: Mapping[str, LearnedStep],
    ) -> Tensor:  # fmt: skip
        feed = {
            name: torch.from_numpy(np.ascontiguousarray(a[index])) for name, a in inputs.items()
        }
        if layer.data in feed:
            return feed[layer.data]
        found: list[Tensor] = []

        def keep(value: Tensor) -> Tensor:
            value = steps[layer.data](value) if layer.data in steps else value
            found.append(value)
            return value

        with torch.no_grad():
            self._problem.block.run(feed, constants, {**steps, layer.data: keep})
        return found[0]


def _columns(
    pair: Sequence[Tensor], node: onnx.NodeProto, weight: Tensor, count: int,
    generator: torch.Generator,
) -> list[Tensor]:  # fmt: skip
    """What `count` random outputs of the layer read, [P, values], the same of both tensors."""
    x = pair[0]
    if node.op_type != "Conv":
        rows = [value.reshape(-1, value.shape[-1]) for value in pair]
        index = torch.randint(len(rows[0]), (count,), generator=generator)
        return [value[index] for value in rows]
    rank = x.ndim - 2
    steps = _integers(node, "strides") or [1] * rank
    spread = _integers(node, "dilations") or [1] * rank
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    kind = attribute(node, "auto_pad", b"NOTSET")
    assert isinstance(kind, bytes)
    pads = explicit_pads(x.shape[2:], reach, steps, kind.decode(), _integers(node, "pads"))
    padded = [F.pad(value, torch_pads(*pads)) for value in pair]
    where: list[Tensor] = []
    for axis, (step, gap, size) in enumerate(zip(steps, spread, weight.shape[2:], strict=True)):
        outputs = (padded[0].shape[2 + axis] - reach[axis]) // step + 1
        first = torch.randint(outputs, (count, 1), generator=generator) * step
        shape = [count, 1, *[1] * axis, size, *[1] * (rank - axis - 1)]
        where.append((first + torch.arange(size) * gap).reshape(shape))
    sample = torch.randint(len(x), (count,), generator=generator).reshape(-1, *[1] * (rank + 1))
    channel = torch.arange(x.shape[1]).reshape(1, -1, *[1] * rank)
    return [value[(sample, channel, *where)].reshape(count, -1) for value in padded]


def _pieces(length: int) -> int:
    """Into how many equal pieces K is cut so that H stays small; correlations between are left."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= _LONGEST)


def _split(weight: Tensor, pieces: int) -> Tensor:
    """[G, O, K] as [G * pieces, O, K / pieces]."""
    groups, outputs, _ = weight.shape
    return weight.reshape(groups, outputs, pieces, -1).transpose(1, 2).flatten(0, 1)


def _joined(weight: Tensor, pieces: int) -> Tensor:
    """The inverse of `_split`."""
    _, outputs, length = weight.shape
    return weight.reshape(-1, pieces, outputs, length).transpose(1, 2).flatten(2)


def _rounded(weight: Tensor, gram: Tensor, quant: TensorQuant, pieces: int) -> tuple[Tensor, Tensor]:
    """Levels [G, O, K] and scales of the weights of G groups, whose inputs have `gram` [G, K, K].

    `pieces` groups in a row belong to the same output channels.
    """
    groups, outputs, length = weight.shape
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)
    order = diagonal.sum(0).argsort(
        descending=True
    )  # the values that matter most are rounded first
    damped = gram[:, order][:, :, order].double()
    mean = diagonal.double().mean(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    damped += (_DAMPING * mean)[:, None, None] * torch.eye(length, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    offsets = affine.offsets(quant.qtype, quant.zero_point).astype(np.float32)
    scale, zero = (
        torch.from_numpy(np.broadcast_to(v, groups // pieces * outputs).copy())
        .reshape(-1, outputs)
        .repeat_interleave(pieces, dim=0)
        for v in (quant.scale, offsets)
    )
    grid = _Grid(scale, zero, quant.qtype.step, quant.qtype.levels - 1)
    ordered = weight[:, :, order]
    made = _compensated(ordered, factor, grid)
    metric = damped.float()
    for _ in range(_ROUNDS):
        stretch = _stretch(ordered, made, metric, pieces)
        grid = grid._replace(scale=grid.scale * stretch)
        made = _descended(ordered, made * stretch[..., None], metric, grid)
    return grid.levels(made)[:, :, order.argsort()], grid.scale.reshape(-1, pieces, outputs)[:, 0]


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
