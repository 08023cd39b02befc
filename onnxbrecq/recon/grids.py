"""Scales and zero points of the grid that a weight is rounded on, by the error of the output.

A scale holds for an output, all whose rows (inputs) share it, or for a block of its rows. Weights
[G, K, O], metric H [G, K, K] and grids are those of `onnxbrecq.recon.rounding`. Where K was cut
into pieces, each a group of its own, those of an output share its scale; blocks lie within one.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnxbrecq import affine
from onnxbrecq.plan import TensorQuant
from onnxbrecq.recon.rounding import Array, Grid, compensated, handed_on

_FACTORS, _SHIFTS = (1.0, 0.8, 0.6, 1.2), (0, -1, 1)  # of the scale, and steps of the zero point
_TRIED = 1 << 26  # values rounded at a time
_STRETCH = (0.5, 2.0)  # of a scale, at most in one round


def grid_of(quant: TensorQuant, groups: int, outputs: int) -> Grid:
    """The grid of a weight [G, K, O]; rows differ where it has blocks."""
    offsets = affine.offsets(quant.qtype, quant.zero_point).astype(np.float32)
    step, top = quant.qtype.step, quant.qtype.levels - 1
    if quant.block_size is None or quant.levels is None:
        whole = (groups, 1, outputs)
        scale, offset = (
            np.broadcast_to(v, groups * outputs).reshape(whole) for v in (quant.scale, offsets)
        )
        return Grid(scale, offset, step, top)
    shape = quant.levels.shape
    along = [affine.along(v, quant, shape) for v in (quant.scale, offsets)]
    scale, offset = (v.T[None] if quant.axis == 0 else v[None] for v in along)
    return Grid(scale, offset, step, top)


def stored(values: Array, quant: TensorQuant) -> Array:
    """Scales or offsets [G, 1 or K, O] of a grid, in the shape of the decision's own."""
    if quant.block_size is not None:
        blocks = values[0, :: quant.block_size]
        values = blocks.T if quant.axis == 0 else blocks
    return np.ascontiguousarray(values).reshape(quant.scale.shape)


def best(
    wanted: Tensor, factor: Tensor, metric: Tensor, grid: Grid, *, signed: bool, pieces: int = 1
) -> Grid:
    """The grids near `grid` on which rounding W' [G, K, O] errs least, output by output.

    Args:
        wanted: W', input by input.
        factor: of the metric (`handed_on`).
        metric: H.
        grid: where the search starts, with one row.
        signed: the zero point stays.
        pieces: into which each group of the layer was cut.
    """
    near = list(itertools.product(_FACTORS, (0,) if signed else _SHIFTS))
    least = np.full(grid.scale.shape, np.inf, np.float32)
    found = grid
    together = max(1, _TRIED // wanted.numel())
    for start in range(0, len(near), together):
        grids = [grid.moved(stretch, shift) for stretch, shift in near[start : start + together]]
        many = wanted.repeat(1, 1, len(grids))
        side_by_side = grid._replace(
            scale=np.concatenate([g.scale for g in grids], axis=2),
            offset=np.concatenate([g.offset for g in grids], axis=2),
        )
        miss = compensated(many, factor, side_by_side) - many
        errors = ((metric @ miss) * miss).sum(1).reshape(-1, pieces, miss.shape[2]).sum(1)
        errors = errors.repeat_interleave(pieces, dim=0)[:, None]
        for tried, error in zip(grids, np.split(errors.numpy(), len(grids), axis=2), strict=True):
            better = error < least
            least = np.where(better, error, least)
            found = found._replace(
                scale=np.where(better, tried.scale, found.scale),
                offset=np.where(better, tried.offset, found.offset),
            )
    return found


def best_in_blocks(
    wanted: Tensor, metric: Tensor, grid: Grid, block_size: int, *, signed: bool
) -> Grid:
    """Likewise block by block, each by its own part of the metric (float64)."""
    groups, length, outputs = wanted.shape
    full = length - length % block_size
    scales: list[Array] = []
    offsets: list[Array] = []
    for start, end, size in ((0, full, block_size), (full, length, length - full)):
        if start == end:
            continue
        count = (end - start) // size
        own = metric[:, start:end, start:end].reshape(groups, count, size, count, size)
        own = own.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, size, size)
        first = grid._replace(
            scale=grid.scale[:, start:end:size].reshape(-1, 1, outputs),
            offset=grid.offset[:, start:end:size].reshape(-1, 1, outputs),
        )
        part = wanted[:, start:end].reshape(-1, size, outputs)
        found = best(part, handed_on(own), own.float(), first, signed=signed)
        for values, several in ((found.scale, scales), (found.offset, offsets)):
            several.append(values.reshape(groups, count, outputs).repeat(size, axis=1))
    return grid._replace(
        scale=np.concatenate(scales, axis=1), offset=np.concatenate(offsets, axis=1)
    )


def stretch(wanted: Tensor, made: Tensor, metric: Tensor, pieces: int) -> Tensor:
    """The factor [G, 1, O] on each output's scale that brings `made` nearest to `wanted`."""
    moved = metric @ made
    along, length = (
        (moved * other).sum(1).reshape(-1, pieces, wanted.shape[2]).sum(1)
        for other in (wanted, made)
    )
    found = torch.where(length > 0, along / length, 1).clamp_(*_STRETCH)
    return found.repeat_interleave(pieces, dim=0)[:, None]


def stretch_in_blocks(
    wanted: Tensor, made: Tensor, metric: Tensor, blocks: Sequence[Tensor]
) -> Tensor:
    """Factors [G, K, O], found block after block (the rows of each), all others as they are."""
    found = torch.ones_like(made)
    slope = metric @ (made - wanted)
    for rows in blocks:
        part = made[:, rows]
        moved = metric[:, :, rows] @ part
        along, length = ((other[:, rows] * part).sum(1) for other in (slope, moved))
        factor = torch.where(length > 0, 1 - along / length, 1).clamp_(*_STRETCH)[:, None]
        found[:, rows] = factor
        slope += moved * (factor - 1)
    return found
