"""Weights on a grid, input by input: what the rounding of one does to an output, others take back.

Minimised over the values Q on the grid is sum (Q - W)^T H (Q - W), column by column of W [G, K, O]:
K inputs (the *rows* here), O outputs, G groups; H [G, K, K].

`compensated` rounds row after row, and the error e_i / U_ii of row i moves to the rows behind along
U_i, with H^-1 = U^T U, U upper triangular (OBQ, Frantar and Alistarh, 2022; GPTQ, Frantar et al.,
2023). `descended` revisits each row with all others fixed (coordinate descent).

Rows are small, and calls of numpy cost less than those of torch: rows go by numpy, and what a block
of them does to all rows behind by one product of matrices (a fifth to two thirds of the time).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]

_BLOCK = 64  # rows rounded before those behind are told


class Grid(NamedTuple):
    """Where weights [G, K, O] may lie: scale and offset [G, O], integer step, top level."""

    scale: Array
    offset: Array
    step: int
    top: int

    def nearest(self, row: Array) -> Array:
        """The nearest values of a row [G, O]."""
        level = np.rint((row / self.scale + self.offset) / self.step)
        level = np.minimum(np.maximum(level, 0, out=level), self.top, out=level)
        return np.multiply(self.scale, level * self.step - self.offset, dtype=np.float32)

    def levels(self, made: Array) -> Array:
        """The levels of values [G, K, O] on the grid."""
        ratio = made / self.scale[:, None] + self.offset[:, None]
        return np.clip(np.rint(ratio / self.step), 0, self.top)


def handed_on(metric: Tensor) -> Tensor:
    """U [G, K, K], float32, for H [G, K, K] in float64: upper triangular, H^-1 = U^T U.

    Of the rows and columns of H in reverse, L L^T is the Cholesky factorization; reversed again, L
    is R with H = R R^T, upper triangular, and U its inverse.
    """
    reverse = torch.linalg.cholesky(metric.flip(1, 2)).flip(1, 2)
    unit = torch.eye(metric.shape[-1], dtype=metric.dtype).expand_as(metric)
    factor: Tensor = torch.linalg.solve_triangular(reverse, unit, upper=True)
    return factor.float()


def compensated(weight: Tensor, factor: Tensor, grid: Grid) -> Tensor:
    """Values on the grid for `weight` [G, K, O], errors handed on along `factor` (`handed_on`)."""
    rest, made = weight.clone(), torch.empty_like(weight)
    for part, behind in _blocks(weight):
        rows, rounded = rest[:, part].numpy(), made[:, part].numpy()
        along = factor[:, part, part].numpy()
        errors = np.empty_like(rows)
        for i in range(rows.shape[1]):
            rounded[:, i] = grid.nearest(rows[:, i])
            errors[:, i] = (rows[:, i] - rounded[:, i]) / along[:, i, i, None]
            rows[:, i + 1 :] -= along[:, i, i + 1 :, None] * errors[:, i, None]
        rest[:, behind] -= factor[:, part, behind].mT @ torch.from_numpy(errors)
    return made


def descended(weight: Tensor, made: Tensor, metric: Tensor, grid: Grid) -> Tensor:
    """Each row of `made` [G, K, O] once more at the values that are best beside all others."""
    made = made.clone()
    slope = metric @ (made - weight)
    for part, behind in _blocks(weight):
        rows, slopes = made[:, part].numpy(), slope[:, part].numpy()
        along = metric[:, part, part].numpy()
        moves = np.zeros_like(rows)
        for i in range(rows.shape[1]):
            best = grid.nearest(rows[:, i] - slopes[:, i] / along[:, i, i, None])
            moves[:, i] = best - rows[:, i]
            rows[:, i] = best
            if moves[:, i].any():
                slopes[:, i + 1 :] += along[:, i, i + 1 :, None] * moves[:, i, None]
        slope[:, behind] += metric[:, part, behind].mT @ torch.from_numpy(moves)
    return made


def _blocks(weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and the rows behind each."""
    length = weight.shape[1]
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        yield slice(start, end), slice(end, length)
