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

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.model import attribute

_SUM = 2**15 - 1
_ROUNDING = 2  # levels by which two neighbours may end above their values


def largest_sums(node: onnx.NodeProto, weight: NDArray[np.generic]) -> NDArray[np.float64]:
    """[C]: the largest sum, in magnitude, that two neighbours of one sign make in each channel.

    Args:
        node: a Conv, Gemm or MatMul with constant weight.
        weight: the values or integers of that weight, in its shape.
    """
    if node.op_type == "Conv":
        if weight.shape[1] == 1 and attribute(node, "group", 1) == weight.shape[0]:
            return np.zeros(len(weight))
        rows = np.moveaxis(weight, 1, -1)
        whole, places = rows.reshape(len(rows), 1, -1), rows.reshape(len(rows), -1, weight.shape[1])
        return np.maximum(_of_neighbours(whole), _of_neighbours(places))
    rows = weight if attribute(node, "transB", 0) else weight.T
    return _of_neighbours(rows[:, None])


def _of_neighbours(rows: NDArray[np.generic]) -> NDArray[np.float64]:
    """[C]: the largest sum within rows [C, R, K]; the last of an odd number has no neighbour."""
    even = rows[..., ::2].astype(np.float64)
    odd = np.zeros_like(even)
    odd[..., : rows.shape[-1] // 2] = rows[..., 1::2]
    positive = np.maximum(even, 0) + np.maximum(odd, 0)
    negative = np.minimum(even, 0) + np.minimum(odd, 0)
    sums: NDArray[np.float64] = np.maximum(positive, -negative).max(axis=(1, 2), initial=0.0)
    return sums


def largest_sum(top: int) -> int:
    """The largest sum of two weights that fits, of data that reaches the integer `top`."""
    return _SUM // top


def least_scale(node: onnx.NodeProto, weight: NDArray[np.generic], top: int) -> NDArray[np.float32]:
    """[C]: the least scale at which no two neighbours exceed `largest_sum`, however rounded."""
    return (largest_sums(node, weight) / (largest_sum(top) - _ROUNDING)).astype(np.float32)
