"""The one quantization formula and its range finders, in numpy.

    level = clip(round_half_even((value / scale + offset) / step), 0, 2**bits - 1)
    value = scale * (step * level - offset)

`step` and `offset` follow from the grid (see `onnxbrecq.plan`). torch repeats this formula only
where a gradient is needed; a test holds the two equal.
"""

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.plan import Grid, QType, TensorQuant

Array = NDArray[np.float32]
Levels = NDArray[np.uint8 | np.uint16]
_T = TypeVar("_T", bound=np.generic)

_SHRINKS = np.linspace(1.0, 0.2, 41, dtype=np.float32)  # candidate fractions of the full range
# Pixels lie on a grid of their own: each may be half a step from the nearest level (255 steps from
# -1 to 1, zero between two of them), but not on a grid a little wider.
_STRETCHES = np.array([1.01, 1.02, 1.03], np.float32)
_SAMPLE = 4096  # values of a channel that decide its scale
# A channel of smaller steps counts as zero: times an activation's step they would leave float32.
LEAST_SCALE = np.float32(2.0**-100)
_CHUNK = 1 << 18  # values searched at a time: what a processor's cache holds of float32


def offsets(qtype: QType, zero_point: NDArray[np.int32]) -> NDArray[np.int32]:
    """The integer offset of each channel, same shape as `zero_point`."""
    if qtype.grid == "signed":
        return np.full_like(zero_point, qtype.levels // 2)
    return zero_point


def along(values: NDArray[_T], quant: TensorQuant, shape: tuple[int, ...]) -> NDArray[_T]:
    """One of `values` (of the scale's shape) for each element of a tensor, as broadcasting goes."""
    if quant.axis is None:
        return values.reshape(())
    if quant.block_size is None:
        return values.reshape([-1 if i == quant.axis else 1 for i in range(len(shape))])
    inputs = 1 - quant.axis
    spread = np.repeat(values, quant.block_size, axis=inputs)
    return spread[tuple(slice(size) for size in shape)]


def channel_scale(quant: TensorQuant) -> Array:
    """The scale of each channel [C], or (); of blocks the root of the mean square."""
    if quant.block_size is None or quant.axis is None:
        return quant.scale
    mean: Array = np.square(quant.scale).mean(axis=1 - quant.axis)
    return np.sqrt(mean)


def quantize(values: Array, quant: TensorQuant) -> Levels:
    """The nearest level of each value; uint16 where there are more than 8 bits."""
    scale = along(quant.scale, quant, values.shape)
    offset = along(offsets(quant.qtype, quant.zero_point), quant, values.shape)
    levels = np.rint((values / scale + offset) / quant.qtype.step)
    kind = np.uint8 if quant.qtype.bits <= 8 else np.uint16
    return np.clip(levels, 0, quant.qtype.levels - 1).astype(kind)


def integers(levels: Levels, quant: TensorQuant) -> NDArray[np.int32]:
    """The integers that an integer kernel multiplies: step * level - offset."""
    offset = along(offsets(quant.qtype, quant.zero_point), quant, levels.shape)
    return levels.astype(np.int32) * quant.qtype.step - offset.astype(np.int32)


def dequantize(levels: Levels, quant: TensorQuant) -> Array:
    """The values that `levels` stand for, float32."""
    scale = along(quant.scale, quant, levels.shape)
    return (integers(levels, quant).astype(np.float32) * scale).astype(np.float32)


def missed(values: Array, quant: TensorQuant, out: Array) -> None:
    """Writes what rounding adds to each value: `dequantize(quantize(values)) - values`.

    In one buffer and in float32, for searches that try many scales: a third of the time. What lies
    halfway between two levels may go to the other.
    """
    step = quant.qtype.step
    scale = along(quant.scale, quant, values.shape)
    offset = along(offsets(quant.qtype, quant.zero_point), quant, values.shape).astype(np.float32)
    np.divide(values, scale, out=out)
    np.divide(np.add(out, offset, out=out), step, out=out)
    np.clip(np.rint(out, out=out), 0, quant.qtype.levels - 1, out=out)
    np.subtract(np.multiply(out, step, out=out), offset, out=out)
    np.subtract(np.multiply(out, scale, out=out), values, out=out)


def weight_quant(weight: Array, qtype: QType, axis: int | None, floor: Array) -> TensorQuant:
    """The quantization of `weight` with the smallest squared error per channel, levels nearest.

    Args:
        weight: any shape, finite.
        qtype: bits and grid.
        axis: output-channel axis, or None for one scale.
        floor: [C] (or a scalar array): the least scale allowed, so that an int32 bias fits, and
            sums of two products do.
    """
    rows = _rows(weight, axis)  # [C, N]
    scale, zero = _searched(rows, qtype, np.broadcast_to(floor.reshape(-1), len(rows)))
    shape = () if axis is None else (len(rows),)
    return _at_levels(weight, TensorQuant(qtype, scale.reshape(shape), zero.reshape(shape), axis))


def block_quant(matrix: Array, qtype: QType, axis: int, block_size: int) -> TensorQuant:
    """Likewise with a scale for each `block_size` consecutive values of a channel of a matrix."""
    rows = matrix if axis == 0 else matrix.T  # [C, K]
    channels, length = rows.shape
    full = length - length % block_size
    parts = [rows[:, :full].reshape(-1, block_size)] if full else []
    parts += [rows[:, full:]] if full < length else []
    found = [_searched(part, qtype, np.zeros(len(part), np.float32)) for part in parts]
    scale, zero = (
        np.concatenate([values.reshape(channels, -1) for values in several], axis=1)
        for several in zip(*found, strict=True)
    )
    if axis == 1:
        scale, zero = np.ascontiguousarray(scale.T), np.ascontiguousarray(zero.T)
    return _at_levels(matrix, TensorQuant(qtype, scale, zero, axis, block_size=block_size))


def turned(quant: TensorQuant) -> TensorQuant:
    """The decision on the transposed matrix, of one with a scale for each channel or block."""
    assert quant.axis is not None
    assert quant.levels is not None
    return dataclasses.replace(
        quant, axis=1 - quant.axis, levels=np.ascontiguousarray(quant.levels.T),
        scale=np.ascontiguousarray(quant.scale.T),
        zero_point=np.ascontiguousarray(quant.zero_point.T),
    )  # fmt: skip


def _at_levels(weight: Array, quant: TensorQuant) -> TensorQuant:
    """The decision with each weight at its nearest level."""
    levels = np.ascontiguousarray(quantize(weight, quant), np.uint8)
    return dataclasses.replace(quant, levels=levels)


def _searched(rows: Array, qtype: QType, floor: Array) -> tuple[Array, NDArray[np.int32]]:
    """Scale and zero point of each row [C, N], as many rows at a time as a cache holds."""
    step = max(1, _CHUNK // max(rows.shape[1], 1))
    parts = [
        _least_error(rows[i : i + step], qtype, floor[i : i + step])
        for i in range(0, len(rows), step)
    ]
    scale, zero = (np.concatenate(values) for values in zip(*parts, strict=True))
    return scale, zero


def _least_error(rows: Array, qtype: QType, floor: Array) -> tuple[Array, NDArray[np.int32]]:
    """Scale and zero point of each row [C, N]; of a long row a sample of its values decides."""
    sample, counts = _sampled(rows)
    rest, square = np.empty_like(sample), np.empty(sample.shape, np.float64)
    best_error = np.full(len(rows), np.inf, np.float64)
    best_scale = np.ones(len(rows), np.float32)
    best_zero = np.zeros(len(rows), np.int32)
    for wanted, zero in _candidates(rows.min(axis=1), rows.max(axis=1), qtype):
        scale = np.maximum(wanted, floor)
        missed(sample, TensorQuant(qtype, scale, zero, 0), out=rest)
        error = np.multiply(rest, rest, out=square, dtype=np.float64) @ counts
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better] = scale[better]
        best_zero[better] = zero[better]
    return best_scale, best_zero


def _rows(weight: Array, axis: int | None) -> Array:
    if axis is None:
        return weight.reshape(1, -1)
    return np.ascontiguousarray(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1)


def _sampled(rows: Array) -> tuple[Array, NDArray[np.float64]]:
    """Values of each row, and how many each stands for: the largest for themselves."""
    size = rows.shape[1]
    if size <= _SAMPLE:
        return rows, np.ones(size)
    tail = _SAMPLE // 8
    order = np.argpartition(np.abs(rows), size - tail, axis=1)
    inner = order[:, : size - tail : -(-(size - tail) // (_SAMPLE - tail))]
    picked = np.concatenate([inner, order[:, size - tail :]], axis=1)
    counts = np.concatenate(
        [np.full(inner.shape[1], (size - tail) / inner.shape[1]), np.ones(tail)]
    )
    return np.take_along_axis(rows, picked, axis=1), counts


def _candidates(
    least: Array, most: Array, qtype: QType
) -> Iterator[tuple[Array, NDArray[np.int32]]]:
    """Scales and zero points of rows that reach from `least` to `most` [C]."""
    top = (qtype.levels - 1) * qtype.step
    for shrink in _SHRINKS if qtype.bits < 8 else _SHRINKS[: len(_SHRINKS) // 2 + 1]:
        low, high = np.minimum(least, 0) * shrink, np.maximum(most, 0) * shrink
        reach = np.maximum(-low, high)
        if qtype.grid == "signed":
            scale = _positive(reach / max(qtype.levels // 2 - 1, 1))
            yield scale, np.zeros(len(scale), np.int32)
            continue
        scale = _positive((high - low) / top)
        yield scale, np.clip(np.rint(-low / scale), 0, top).astype(np.int32)
        if qtype.grid == "half":  # symmetric, with zero between two levels, and on one
            for middle in (qtype.levels - 1, qtype.levels):
                scale = _positive(reach / min(middle, top - middle))
                yield scale, np.full(len(scale), middle, np.int32)


def _positive(scale: Array) -> Array:
    return np.where(scale >= LEAST_SCALE, scale, 1).astype(np.float32)


def rescaled(quant: TensorQuant, factor: float, ceiling: float | None) -> TensorQuant:
    """The activation quantizer with its step times `factor`, (L - 1) * step at most `ceiling`.

    A signed one has no ceiling: it cannot stand for the Clip, which stays in front of it.
    """
    scale = np.float32(np.float32(quant.scale) * np.float32(factor))
    top = np.float32(quant.qtype.levels - 1)
    if ceiling is not None and quant.qtype.grid != "signed":
        scale = min(scale, np.float32(ceiling / float(top)))
        while scale * top > np.float32(ceiling):  # float32 rounding of the bound
            scale = np.nextafter(scale, np.float32(0))
    return dataclasses.replace(quant, scale=np.asarray(scale, np.float32))


def activation_quant(
    values: Array,
    bits: int,
    grid: Grid = "affine",
    *,
    ceiling: float | None = None,
    nonnegative: bool = False,
) -> TensorQuant:
    """The per-tensor quantization of sampled activations with the least squared error.

    The range is searched below the one that was seen, and a little above. Zero is always a level,
    so that zero padding is exact.

    Args:
        values: the sample, any shape, finite.
        bits: 2 to 8, or 16.
        grid: affine or signed; a signed one takes no heed of what follows.
        ceiling: an upper bound of the range (a Relu6 before it): (2**bits - 1) * scale never
            exceeds it, so that the quantizer's own saturation can stand for the Clip.
        nonnegative: the zero point must be 0 (a Relu before it).
    """
    flat = values.reshape(-1).astype(np.float32)
    if grid == "signed":
        steps, _ = _least_error(flat[None], QType(bits, grid), np.zeros(1, np.float32))
        return TensorQuant(QType(bits, grid), steps.reshape(()), np.array(0, np.int32))
    low = 0.0 if nonnegative else min(float(flat.min()), 0.0)
    high = max(float(flat.max()), 0.0)
    if ceiling is not None:
        high = min(high, ceiling)
    top = (1 << bits) - 1
    qtype = QType(bits, grid)
    best = (np.inf, np.float32(1), np.int32(0))
    wider = _STRETCHES if ceiling is None else _STRETCHES[:0]
    for shrink in np.concatenate([_SHRINKS, wider]):
        if high - low <= 0:
            break
        scale = np.float32((high - low) * shrink / top)
        if scale < LEAST_SCALE:
            break
        if ceiling is not None and scale * np.float32(top) > ceiling:
            scale = np.nextafter(scale, np.float32(0))
        zero = np.int32(np.clip(np.rint(-low * shrink / scale), 0, top))
        quant = TensorQuant(qtype, np.asarray(scale), np.asarray(zero))
        difference = flat - dequantize(quantize(flat, quant), quant)
        error = float(np.square(difference, dtype=np.float64).mean())
        if error < best[0]:
            best = (error, scale, zero)
    return TensorQuant(qtype, np.asarray(best[1], np.float32), np.asarray(best[2], np.int32))
