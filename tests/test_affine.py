import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxbrecq import affine
from onnxbrecq.plan import Grid, QType, TensorQuant

_GRIDS: list[tuple[int, Grid]] = [(2, "half"), (2, "signed"), (3, "half"), (4, "affine"),
                                  (4, "half"),
                                  (4, "signed"), (8, "signed")]  # fmt: skip
_IDS = [f"{grid}{bits}" for bits, grid in _GRIDS]


def _values(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


@pytest.mark.parametrize(("bits", "grid"), _GRIDS, ids=_IDS)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 10))
def test_error_is_at_most_half_a_step_inside_the_range(
    bits: int, grid: Grid, seed: int, scale: float
) -> None:
    qtype = QType(bits, grid)
    quant = TensorQuant(qtype, np.array(scale, np.float32), np.array(2, np.int32))
    levels = np.random.default_rng(seed).integers(0, qtype.levels, 50).astype(np.uint8)
    centre = affine.dequantize(levels, quant)
    moved = centre + np.float32(0.49 * scale * qtype.step) * np.sign(_values(seed, 50))
    back = affine.dequantize(affine.quantize(moved.astype(np.float32), quant), quant)
    assert np.all(np.abs(back - moved) <= 0.5 * scale * qtype.step * (1 + 1e-4))


@pytest.mark.parametrize(("bits", "grid"), _GRIDS, ids=_IDS)
@given(seed=st.integers(0, 10_000), size=st.floats(1e-20, 1e20))
def test_levels_stay_in_range_and_survive_a_round_trip(
    bits: int, grid: Grid, seed: int, size: float
) -> None:
    weight = (_values(seed, 60) * size).astype(np.float32).reshape(6, 10)
    quant = affine.weight_quant(weight, QType(bits, grid), 0, np.zeros(6, np.float32))
    assert quant.levels is not None
    assert quant.levels.max() < 2**bits
    assert np.all(quant.scale > 0)
    again = affine.quantize(affine.dequantize(quant.levels, quant), quant)
    np.testing.assert_array_equal(again, quant.levels)


def test_pixels_that_lie_between_two_levels_get_a_grid_on_which_they_do_not() -> None:
    pixels = (np.arange(256, dtype=np.float32) - 127.5) / 127.5
    quant = affine.activation_quant(pixels, 8)
    missed = (affine.dequantize(affine.quantize(pixels, quant), quant) - pixels) / quant.scale
    assert np.square(missed).mean() < 0.1  # all half a step off: 0.25


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3))
def test_zero_is_a_level_of_every_activation(bits: int, seed: int, shift: float) -> None:
    values = (_values(seed) + shift).astype(np.float32)
    quant = affine.activation_quant(values, bits)
    zero = np.zeros(1, np.float32)
    assert affine.dequantize(affine.quantize(zero, quant), quant)[0] == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(seed=st.integers(0, 10_000), ceiling=st.floats(0.01, 10))
def test_range_never_exceeds_the_ceiling(bits: int, seed: int, ceiling: float) -> None:
    bound = np.float32(ceiling)
    values = np.clip(_values(seed) * 10, 0, bound)
    quant = affine.activation_quant(values, bits, ceiling=float(bound), nonnegative=True)
    assert int(quant.zero_point) == 0
    assert np.float32(quant.scale) * np.float32(2**bits - 1) <= bound


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_range_search_beats_the_full_range(bits: int) -> None:
    weight = _values(5, 4000).reshape(4, 1000)
    qtype = QType(bits, "signed")
    found = affine.weight_quant(weight, qtype, 0, np.zeros(4, np.float32))
    assert found.levels is not None
    scale = (np.abs(weight).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)
    full = TensorQuant(qtype, scale, np.zeros(4, np.int32), 0)
    error = np.square(affine.dequantize(found.levels, found) - weight).sum(axis=1)
    naive = np.square(affine.dequantize(affine.quantize(weight, full), full) - weight).sum(axis=1)
    assert np.all(error < naive)


@pytest.mark.parametrize("grid", ["signed", "affine", "half"])
def test_what_rounding_misses_is_found_in_one_buffer(grid: str) -> None:
    weight = _values(9, 4000).reshape(4, 1000) * np.float32(100)
    quant = affine.weight_quant(weight, QType(4, grid), 0, np.zeros(4, np.float32))  # type: ignore[arg-type]
    missed = np.empty_like(weight)
    affine.missed(weight, quant, out=missed)
    expected = affine.dequantize(affine.quantize(weight, quant), quant) - weight
    tie = np.isclose(np.abs(expected) / quant.scale[:, None] / quant.qtype.step, 0.5, atol=1e-4)
    np.testing.assert_allclose(missed[~tie], expected[~tie], atol=1e-5)
    np.testing.assert_allclose(np.abs(missed), np.abs(expected), atol=1e-3)


def test_half_grid_takes_odd_multiples_and_beats_the_signed_grid_at_two_bits() -> None:
    weight = _values(6, 4000).reshape(1, 4000)
    half, error = _quantized(weight, QType(2, "half"))
    assert set(np.unique(affine.integers(half.levels, half))) == {-3, -1, 1, 3}  # type: ignore[arg-type]
    assert error < 0.13 < _quantized(weight, QType(2, "signed"))[1]  # Gaussian: 0.119, 0.150


def test_half_grid_follows_each_channel_to_one_side() -> None:
    weight = np.abs(_values(8, 4000)).reshape(2, 2000)
    weight[1] *= -1
    half, error = _quantized(weight, QType(4, "half"))
    low, high = affine.integers(half.levels, half)  # type: ignore[arg-type]
    assert low.min() >= -1
    assert high.max() <= 1
    assert error < 0.3 * _quantized(weight, QType(4, "signed"))[1]


def _quantized(weight: np.ndarray, qtype: QType) -> tuple[TensorQuant, float]:
    """The weight on the grid, and its mean squared error."""
    quant = affine.weight_quant(weight, qtype, 0, np.zeros(len(weight), np.float32))
    assert quant.levels is not None
    return quant, float(np.square(affine.dequantize(quant.levels, quant) - weight).mean())


def test_scale_respects_its_floor() -> None:
    weight = _values(7, 40).reshape(4, 10)
    floor = np.array([0, 0.5, 0, 2], np.float32)
    quant = affine.weight_quant(weight, QType(4, "signed"), 0, floor)
    assert np.all(quant.scale >= floor)


@pytest.mark.parametrize("values", [np.zeros(5), np.full(5, 1e-30)], ids=["zero", "denormal"])
def test_flat_tensors_get_a_positive_scale(values: np.ndarray) -> None:
    array = values.astype(np.float32)
    assert float(affine.activation_quant(array, 8).scale) > 0
    assert np.all(affine.weight_quant(array[None], QType(4, "signed"), 0, np.zeros(1)).scale > 0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("inputs", [64, 70, 9], ids=["whole", "ragged", "less than one"])
def test_a_block_is_quantized_as_if_it_were_alone(inputs: int, axis: int) -> None:
    rows = _values(5, 6 * inputs).reshape(6, inputs)
    qtype = QType(4, "affine")
    quant = affine.block_quant(rows if axis == 0 else rows.T, qtype, axis, 16)
    assert quant.levels is not None
    found = affine.dequantize(quant.levels, quant)
    for start in range(0, inputs, 16):
        alone = affine.weight_quant(rows[:, start : start + 16], qtype, 0, np.zeros(6, np.float32))
        assert alone.levels is not None
        part = (found if axis == 0 else found.T)[:, start : start + 16]
        np.testing.assert_array_equal(part, affine.dequantize(alone.levels, alone))
