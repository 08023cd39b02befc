"""Where kernels for signed 8-bit weights lose what does not fit 16 bits, and how a scale avoids it.

x86 processors without VNNI multiply unsigned data by signed weights with `vpmaddubsw`, which adds
two neighbouring products in 16 bits: 255 * 127 fits, twice that does not. Neighbours are inputs 2 i
and 2 i + 1 of an output channel, in the order in which kernels multiply: of a Conv the place in the
kernel first, then the channel of its group; of a MatMul or Gemm row after row. Behind the last
of an odd number of channels comes in onnxruntime (1.32) the first of the next place, in OpenVINO
(2026.4) nothing: neither may be too much. A Conv of one channel in and out of each group is summed
in 32 bits (tests/emit/test_saturation.py, test_openvino.py).

So a weight is exact in these kernels if no two neighbours of one sign exceed 32767 // 255 = 128
together; a scale that is 1.17 to 1.34 times as large sees to it. That is 1.2 to 2.5 dB of the 42
that weights of 8 bits have (seven networks), in place of 6 dB for weights of 7 bits.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq import affine
from onnxbrecq.graph.model import attribute
from onnxbrecq.plan import TensorQuant

_SUM = 2**15 - 1
_ROUNDING = 2  # levels by which two neighbours may end above their values
_CHUNK = 1 << 20  # weights looked at at a time

Values = NDArray[Any]  # floats or integers


def largest_sums(node: onnx.NodeProto, weight: Values) -> NDArray[np.float64]:
    """[C]: the largest sum, in magnitude, that two neighbours of one sign make in each channel.

    Args:
        node: a Conv, Gemm or MatMul with constant weight.
        weight: the values or integers of that weight, in its shape.
    """
    parts = [
        np.max([_of_neighbours(rows) for rows in orders], axis=0) if orders else np.zeros(len(part))
        for part, orders in _ordered(node, weight)
    ]
    return np.concatenate([np.zeros(0), *parts])


def largest_sum(top: int) -> int:
    """The largest sum of two weights that fits, of data that reaches the integer `top`."""
    return _SUM // top


def least_scale(node: onnx.NodeProto, weight: Values, top: int) -> NDArray[np.float32]:
    """[C]: the least scale at which no two neighbours exceed `largest_sum`, however rounded."""
    room = largest_sum(top) - _ROUNDING
    assert room > 0
    return (largest_sums(node, weight) / room).astype(np.float32)


def fits(node: onnx.NodeProto, quant: TensorQuant, top: int) -> bool:
    """Whether no two neighbours of the layer's weight exceed `largest_sum`."""
    return bool(largest_sums(node, _integers(quant)).max(initial=0) <= largest_sum(top))


def fitted(node: onnx.NodeProto, quant: TensorQuant, top: int) -> TensorQuant:
    """The 8-bit weight with the larger of two neighbours that exceed `largest_sum` made smaller.

    That is for what learning moves by a level or two beyond the room that `least_scale` left.
    """
    assert quant.levels is not None
    integers = _integers(quant)
    parts = []
    for part, orders in _ordered(node, integers):
        for rows in orders:  # views of the part
            _fit(rows, largest_sum(top))
        parts.append(part)
    made = _back(node, np.concatenate(parts))
    levels = np.ascontiguousarray(made + (1 << (quant.qtype.bits - 1)), np.uint8)
    return dataclasses.replace(quant, levels=levels)


def _integers(quant: TensorQuant) -> NDArray[np.int16]:
    assert quant.levels is not None
    return affine.integers(quant.levels, quant).astype(np.int16)


def _ordered(node: onnx.NodeProto, weight: Values) -> Iterator[tuple[Values, list[Values]]]:
    """Copies of some channels [C, ...] at a time, and views [C, R, K] as their kernels go along.

    There is no such view where kernels add in 32 bits.
    """
    if node.op_type == "Conv":
        wide = weight.shape[1] == 1 and attribute(node, "group", 1) == weight.shape[0]
        rows, orders = np.moveaxis(weight, 1, -1), [(1, -1), (-1, weight.shape[1])]
    else:
        wide, orders = False, [(1, -1)]
        rows = weight if attribute(node, "transB", 0) else weight.T
    step = max(1, _CHUNK // max(int(np.prod(rows.shape[1:])), 1))
    for start in range(0, len(rows), step):
        part = np.array(rows[start : start + step], order="C")
        views = [] if wide or not part.size else [part.reshape(len(part), *o) for o in orders]
        yield part, views


def _back(node: onnx.NodeProto, rows: Values) -> Values:
    """The inverse of `_ordered`: the parts, put together, as the weight has them."""
    if node.op_type == "Conv":
        return np.moveaxis(rows, -1, 1)
    return rows if attribute(node, "transB", 0) else rows.T


def _neighbours(rows: Values) -> tuple[Values, Values]:
    """Views of the even and of the odd ones, as many of each."""
    count = rows.shape[-1] // 2
    return rows[..., : 2 * count : 2], rows[..., 1::2]


def _of_neighbours(rows: Values) -> NDArray[np.float64]:
    """[C]: the largest sum within rows [C, R, K]; the last of an odd number has no neighbour."""
    even, odd = _neighbours(rows)
    alone = np.abs(rows).max(axis=(1, 2))
    above = (np.maximum(even, 0) + np.maximum(odd, 0)).max(axis=(1, 2), initial=0)
    below = (np.minimum(even, 0) + np.minimum(odd, 0)).min(axis=(1, 2), initial=0)
    sums: NDArray[np.float64] = np.maximum(alone, np.maximum(above, -below)).astype(np.float64)
    return sums


def _fit(rows: Values, most: int) -> None:
    """Edits rows [C, R, K] of integers."""
    even, odd = _neighbours(rows)
    over = np.where(np.sign(even) == np.sign(odd), np.abs(even + odd) - most, 0)
    over = np.maximum(over, 0)
    first = np.abs(even) >= np.abs(odd)
    even -= np.sign(even) * np.where(first, over, 0)
    odd -= np.sign(odd) * np.where(first, 0, over)
