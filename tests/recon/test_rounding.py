"""Rounding row by row: the factor, and that no row could do better alone."""

import numpy as np
import pytest
import torch

from onnxbrecq.recon.rounding import Grid, compensated, descended, handed_on

# Groups, inputs, outputs: within one block of rows, over several, depthwise.
_SIZES = [(1, 24, 5), (2, 150, 3), (16, 9, 1)]
_IDS = ["one block", "blocks", "depthwise"]


def _problem(groups: int, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(groups, 2 * inputs, inputs, generator=draw, dtype=torch.float64)
    x = x + x.roll(1, dims=2)  # correlated
    metric = x.mT @ x / x.shape[1] + 0.05 * torch.eye(inputs, dtype=torch.float64)
    weight = torch.randn(groups, inputs, outputs, generator=draw)
    scale = np.full((groups, 1, outputs), 0.5, np.float32)
    return weight, metric, Grid(scale, np.full_like(scale, 8), 1, 15)


def _error(made: torch.Tensor, weight: torch.Tensor, metric: torch.Tensor) -> float:
    off = (made - weight).double()
    return float((off * (metric @ off)).sum())


@pytest.mark.parametrize("sizes", _SIZES, ids=_IDS)
def test_the_factor_is_that_of_the_inverse(sizes: tuple[int, int, int]) -> None:
    _, metric, _ = _problem(*sizes)
    factor = handed_on(metric).double()
    torch.testing.assert_close(factor, factor.triu())
    unit = torch.eye(sizes[1], dtype=torch.float64).expand_as(metric)
    # float32 factors, and a metric whose condition is some 10^2.
    torch.testing.assert_close(factor.mT @ factor @ metric, unit, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", _SIZES, ids=_IDS)
def test_each_step_lowers_the_error(sizes: tuple[int, int, int]) -> None:
    weight, metric, grid = _problem(*sizes)
    nearest = torch.from_numpy(
        np.stack([grid.nearest(row.numpy(), i) for i, row in enumerate(weight.unbind(1))], axis=1)
    )
    made = compensated(weight, handed_on(metric), grid)
    better = descended(weight, made, metric.float(), grid)
    errors = [_error(m, weight, metric) for m in (nearest, made, better)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("sizes", _SIZES, ids=_IDS)
def test_no_row_could_do_better_alone(sizes: tuple[int, int, int]) -> None:
    weight, metric, grid = _problem(*sizes)
    made = compensated(weight, handed_on(metric), grid)
    for _ in range(20):
        made = descended(weight, made, metric.float(), grid)
    least = _error(made, weight, metric)
    for row in range(0, sizes[1], 7):
        for step in (-0.5, 0.5):
            moved = made.clone()
            moved[:, row, 0] += step
            inside = grid.levels(moved.numpy()) * 0.5 - 4
            if np.allclose(inside, moved.numpy()):
                assert _error(moved, weight, metric) >= least - 1e-4 * abs(least)
