"""The quantization formula and its range finders on numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from onnxbrecq import affine
from onnxbrecq.plan import Grid, QType, TensorQuant


def _quant(
    bits: int, grid: Grid, scale: object, zero: object, axis: int | None = None
) -> TensorQuant:
    return TensorQuant(
        QType(bits, grid), np.asarray(scale, np.float32), np.asarray(zero, np.int32), axis
    )


def _floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _same(found: np.ndarray, wanted: object, dtype: type) -> None:
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.asarray(wanted, dtype))


def test_offsets_are_the_middle_of_a_signed_grid_and_else_the_zero_point() -> None:
    zero = np.array([3, 5], np.int32)
    _same(affine.offsets(QType(4, "signed"), zero), [8, 8], np.int32)
    _same(affine.offsets(QType(2, "signed"), zero), [2, 2], np.int32)
    assert affine.offsets(QType(4, "affine"), zero) is zero
    assert affine.offsets(QType(4, "half"), zero) is zero


def test_a_vector_lies_along_its_axis() -> None:
    vector, quant = _floats(1, 2, 3), _quant(4, "affine", 0.5, 3)
    for axis, shape, spread in ((1, (9, 3, 2, 2), (1, 3, 1, 1)), (0, (3, 5), (3, 1))):
        assert affine.along(vector, replace(quant, axis=axis), shape).shape == spread
    assert affine.along(_floats(7), quant, (9, 3, 2)).shape == ()


@pytest.mark.parametrize(
    ("quant", "values", "levels", "restored"),
    [
        # level = round(v / 0.5 + 3), halves to even, cut to 0 ... 15
        (_quant(4, "affine", 0.5, 3), (-9, -1.5, -0.25, 0, 0.25, 0.75, 6, 9),
         (0, 0, 2, 3, 4, 4, 15, 15), (-1.5, -1.5, -0.5, 0, 0.5, 0.5, 6, 6)),
        # level = round(v / 0.5 + 8)
        (_quant(4, "signed", 0.5, 0), (-9, -4, 0.25, 0.75, 3.5, 9),
         (0, 0, 8, 10, 15, 15), (-4, -4, 0, 1, 3.5, 3.5)),
        # level = round((v / 0.5 + 3) / 2), value = 0.5 (2 level - 3): -1.5, -0.5, 0.5, 1.5
        (_quant(2, "half", 0.5, 3), (-9, -1, -0.4, 0.1, 1, 9), (0, 0, 1, 2, 2, 3),
         (-1.5, -1.5, -0.5, 0.5, 0.5, 1.5)),
    ],
    ids=["affine", "signed", "half"],
)  # fmt: skip
def test_levels_and_values(
    quant: TensorQuant, values: tuple[float, ...], levels: tuple[int, ...],
    restored: tuple[float, ...],
) -> None:  # fmt: skip
    found = affine.quantize(_floats(*values), quant)
    _same(found, levels, np.uint8)
    _same(affine.dequantize(found, quant), restored, np.float32)
    _same(affine.integers(found, quant), np.asarray(restored) / 0.5, np.int32)


def test_each_channel_has_its_own_scale_and_zero_point() -> None:
    quant = _quant(4, "affine", [1, 0.5], [0, 8], axis=1)
    levels = affine.quantize(_floats(2, 2, -1, -1).reshape(2, 2), quant)
    _same(levels, [[2, 12], [0, 6]], np.uint8)
    _same(affine.dequantize(levels, quant), [[2, 2], [0, -1]], np.float32)
    _same(affine.integers(levels, quant), [[2, 4], [0, -2]], np.int32)


def test_eight_bits_fit_a_byte_and_more_do_not() -> None:
    assert affine.quantize(_floats(300), _quant(8, "affine", 1, 0)).dtype == np.uint8
    _same(affine.quantize(_floats(300, 7e4), _quant(16, "affine", 1, 0)), [300, 65535], np.uint16)
    _same(affine.quantize(_floats(300), _quant(9, "affine", 1, 0)), [300], np.uint16)


@pytest.mark.parametrize(
    ("bits", "grid", "integers"),
    [
        (4, "signed", (-7, -3, 0, 2, 7)), (8, "signed", (-127, 5, 127)),
        (4, "affine", (-2, 0, 5, 13)), (4, "affine", (0, 3, 15)), (4, "affine", (-15, -4, 0)),
        (2, "half", (-3, -1, 1, 3)), (2, "half", (-4, -2, 0, 2)), (3, "half", (-7, -1, 3, 7)),
        # around zero, though nothing lies at the other end: zero between two levels, or on one
        (2, "half", (-3, -1, 1)), (2, "half", (-1, 1, 3)), (2, "half", (-2, 0, 2)),
        (3, "half", (-7, 1, 5)), (3, "half", (-6, 0, 4, 6)),
    ],
)  # fmt: skip
def test_a_weight_on_a_grid_stays_as_it_is(
    bits: int, grid: Grid, integers: tuple[int, ...]
) -> None:
    """In two channels of different scales, along either axis."""
    rows = np.array(integers, np.float32) * np.array([[0.25], [3.0]], np.float32)
    for axis, weight in ((0, rows), (1, np.ascontiguousarray(rows.T))):
        quant = affine.weight_quant(weight, QType(bits, grid), axis, np.zeros(2, np.float32))
        assert quant.levels is not None
        assert (quant.axis, quant.scale.shape, quant.levels.dtype) == (axis, (2,), np.uint8)
        np.testing.assert_allclose(affine.dequantize(quant.levels, quant), weight, rtol=1e-6)
        if grid != "half":  # where finer grids may hold the same values
            np.testing.assert_allclose(quant.scale, [0.25, 3.0], rtol=1e-6)


def test_one_scale_for_a_whole_weight() -> None:
    weight = _floats(-7, 3, 1, 7).reshape(2, 2) * np.float32(0.5)
    quant = affine.weight_quant(weight, QType(4, "signed"), None, np.zeros((), np.float32))
    assert (quant.axis, quant.scale.shape, quant.zero_point.shape) == (None, (), ())
    assert quant.scale == np.float32(0.5)
    assert quant.levels is not None
    np.testing.assert_array_equal(quant.levels, [[1, 11], [9, 15]])


def test_a_scale_is_never_below_its_floor() -> None:
    weight = _floats(-7, 3, 1, 7).reshape(1, 4)
    for floor in (2.0, 100.0):
        quant = affine.weight_quant(weight, QType(4, "signed"), 0, _floats(floor))
        assert quant.scale[0] == np.float32(floor)
    quant = affine.weight_quant(weight, QType(4, "signed"), 0, _floats(0.01))
    assert quant.scale[0] == np.float32(1)


def test_an_outlier_is_cut_off_where_that_costs_less() -> None:
    weight = np.concatenate([np.linspace(-1, 1, 400), [3.0]]).astype(np.float32)[None]
    for grid, bits in (("signed", 3), ("affine", 3), ("half", 3)):
        quant = affine.weight_quant(weight, QType(bits, grid), 0, np.zeros(1, np.float32))
        assert quant.levels is not None
        made = affine.dequantize(quant.levels, quant)
        assert made.max() < 2.5
        full = _quant(bits, "signed", [1.0], [0], 0)
        error = np.square(made - weight).sum()
        assert (
            error < np.square(affine.dequantize(affine.quantize(weight, full), full) - weight).sum()
        )


@pytest.mark.parametrize("value", [0.0, 1e-44, -1e-35])
def test_channels_too_small_for_a_step_are_zero(value: float) -> None:
    weight = np.full((1, 5), value, np.float32)
    for grid in ("signed", "affine", "half"):
        quant = affine.weight_quant(weight, QType(4, grid), 0, np.zeros(1, np.float32))
        assert quant.scale[0] == 1
        assert quant.levels is not None
        if grid != "half":
            assert not affine.dequantize(quant.levels, quant).any()


def test_channels_are_searched_apart_however_many_there_are() -> None:
    """Of long rows few go at a time."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 20_000)).astype(np.float32) * np.arange(1, 41)[:, None]
    weight = weight.astype(np.float32)
    some = affine.weight_quant(weight[30:33], QType(4, "affine"), 0, np.zeros(3, np.float32))
    floor = np.zeros(40, np.float32)
    floor[5] = 100
    whole = affine.weight_quant(weight, QType(4, "affine"), 0, floor)
    np.testing.assert_array_equal(whole.scale[30:33], some.scale)
    np.testing.assert_array_equal(whole.zero_point[30:33], some.zero_point)
    assert whole.scale[5] == 100
    assert (np.delete(whole.scale, 5) < 100).all()


def test_long_rows_are_judged_by_a_sample_that_holds_the_largest() -> None:
    row = np.random.default_rng(0).normal(size=(2, 10_000)).astype(np.float32)
    sample, counts = affine._sampled(row)
    assert sample.shape[1] <= 4096
    assert counts.sum() == pytest.approx(10_000)
    np.testing.assert_array_equal(counts[-512:], 1)
    assert (counts[:-512] > 2).all()
    for found, values in zip(sample, row, strict=True):
        np.testing.assert_array_equal(np.sort(np.abs(found))[-512:], np.sort(np.abs(values))[-512:])
    short, ones = affine._sampled(row[:, :4096])
    assert short.shape == (2, 4096)
    np.testing.assert_array_equal(ones, np.ones(4096))


def test_activations_on_a_grid_stay_as_they_are() -> None:
    values = (np.arange(256) - 100).astype(np.float32) * np.float32(0.125)
    quant = affine.activation_quant(values, 8)
    assert (quant.qtype, quant.axis, quant.levels) == (QType(8, "affine"), None, None)
    assert (float(quant.scale), int(quant.zero_point)) == (0.125, 100)
    assert (quant.scale.dtype, quant.zero_point.dtype) == (np.float32, np.int32)
    assert (quant.scale.shape, quant.zero_point.shape) == ((), ())


def test_ranges_hold_zero() -> None:
    above = affine.activation_quant(_floats(5, 15), 4)
    assert (float(above.scale), int(above.zero_point)) == (1, 0)
    below = affine.activation_quant(_floats(-5, -15), 4)
    assert (float(below.scale), int(below.zero_point)) == (1, 15)


def test_nonnegative_ranges_begin_at_zero() -> None:
    quant = affine.activation_quant(_floats(-15, 0, 5, 15), 4, nonnegative=True)
    assert int(quant.zero_point) == 0
    assert float(quant.scale) == pytest.approx(1, rel=0.04)


def test_a_ceiling_bounds_the_range() -> None:
    quant = affine.activation_quant(_floats(0, 3, 7.5), 4, ceiling=6.0, nonnegative=True)
    assert np.float32(quant.scale) * np.float32(15) <= np.float32(6)
    assert float(quant.scale) == pytest.approx(0.4, rel=1e-6)


@pytest.mark.parametrize("values", [(0, 0), (1e-38, 0), (-1e-40, 0)])
def test_activations_without_a_range_have_the_step_one(values: tuple[float, ...]) -> None:
    quant = affine.activation_quant(_floats(*values), 8)
    assert (float(quant.scale), int(quant.zero_point)) == (1, 0)


def test_signed_activations() -> None:
    quant = affine.activation_quant(_floats(-127, 3, 50), 8, "signed", ceiling=1.0)
    assert (float(quant.scale), int(quant.zero_point)) == (1, 0)
    assert (quant.qtype, quant.scale.shape) == (QType(8, "signed"), ())


def test_activation_outliers_are_cut_off_where_that_costs_less() -> None:
    values = np.concatenate([np.linspace(0, 1, 2000), [4.0]]).astype(np.float32)
    quant = affine.activation_quant(values, 3)
    assert float(quant.scale) * 7 < 2.5


def test_a_step_times_a_factor() -> None:
    quant = _quant(4, "affine", 0.5, 3)
    assert affine.rescaled(quant, 2.0, None).scale == np.float32(1)
    assert affine.rescaled(quant, 2.0, None).zero_point == 3
    assert affine.rescaled(quant, 2.0, 100.0).scale == np.float32(1)
    bounded = affine.rescaled(quant, 2.0, 6.0)
    assert np.float32(bounded.scale) * np.float32(15) <= np.float32(6)
    assert float(bounded.scale) == pytest.approx(0.4, rel=1e-6)
    signed = _quant(4, "signed", 0.5, 0)
    assert affine.rescaled(signed, 2.0, 6.0).scale == np.float32(1)
    assert bounded.scale.dtype == np.float32


def test_whatever_the_ceiling_the_largest_step_below_it_is_taken() -> None:
    """float32's product of scale and levels may be above a bound that the quotient is of."""
    top = np.float32(15)
    wide = _quant(4, "affine", 1e4, 0)
    for ceiling in np.random.default_rng(0).uniform(0.1, 50, 400).astype(np.float32):
        found = affine.rescaled(wide, 1.0, float(ceiling)).scale
        assert (found.dtype, found.shape) == (np.float32, ())
        assert found * top <= ceiling
        assert found >= np.nextafter(np.float32(float(ceiling) / 15), np.float32(0))
    for ceiling in np.random.default_rng(1).uniform(0.1, 50, 40).astype(np.float32):
        values = np.linspace(0, ceiling, 64, dtype=np.float32)
        step = affine.activation_quant(values, 4, ceiling=float(ceiling), nonnegative=True).scale
        assert step * top <= ceiling


def test_samples_have_any_shape_and_any_size() -> None:
    values = (np.arange(256) - 100).astype(np.float32).reshape(4, 64) * np.float32(2.0**-12)
    quant = affine.activation_quant(values, 8)
    assert (float(quant.scale), int(quant.zero_point)) == (2.0**-12, 100)
    signed = affine.activation_quant(values, 8, "signed")
    assert (signed.scale.dtype, signed.zero_point.dtype) == (np.float32, np.int32)
    assert signed.scale.shape == ()


def test_a_step_of_just_the_least_size_is_taken() -> None:
    least = float(affine.LEAST_SCALE)
    values = _floats(0, 15 * least)
    assert float(affine.activation_quant(values, 4).scale) == least
    weight = affine.weight_quant(values[None], QType(4, "affine"), 0, np.zeros(1, np.float32))
    assert float(weight.scale[0]) == least
