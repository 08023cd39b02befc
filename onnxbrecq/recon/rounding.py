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
    """Where weights [G, K, O] may lie.

    Scale and offset are [G, 1, O], or [G, K, O] where rows differ; integer step, top level.
    """

    scale: Array
    offset: Array
    step: int
    top: int

    def nearest(self, row: Array, i: int) -> Array:
        """The nearest values of row `i` [G, O]."""
        i = min(i, self.scale.shape[1] - 1)
        scale, offset = self.scale[:, i], self.offset[:, i]
        level = np.rint((row / scale + offset) / self.step)
        level = np.minimum(np.maximum(level, 0, out=level), self.top, out=level)
        return np.multiply(scale, level * self.step - offset, dtype=np.float32)

    def moved(self, factor: float, shift: int) -> "Grid":
        """The grid with its scale times `factor`, and its zero point shifted.

        The zero point of whole steps stays one of the levels: some kernels take no other.
        """
        offset = self.offset + shift
        offset = np.clip(offset, 0, self.top) if self.step == 1 and shift else offset
        return self._replace(scale=self.scale * np.float32(factor), offset=offset)

    def rows(self, order: NDArray[np.intp]) -> "Grid":
        """The grid of the weights with their rows in another order."""
        if self.scale.shape[1] == 1:
            return self
        return self._replace(scale=self.scale[:, order], offset=self.offset[:, order])

    def levels(self, made: Array) -> Array:
        """The levels of values [G, K, O] on the grid."""
        ratio = made / self.scale + self.offset
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
            rounded[:, i] = grid.nearest(rows[:, i], part.start + i)
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
            best = grid.nearest(rows[:, i] - slopes[:, i] / along[:, i, i, None], part.start + i)
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
