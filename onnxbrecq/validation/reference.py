"""What integer operators compute, in exact arithmetic: the yardstick for a runtime's kernels.

An operator's operands are integers q that stand for the values s (q - z). Their products are added
up exactly (in float64, whose 53 bits no such sum fills), and the result is rounded once:

    y = clip(round_half_even(value / s_y) + z_y)

Kernels round their scales and sums to float32 on the way, and so may miss this by one step where a
value lies next to the middle of two. Operators as in ONNX and in onnxruntime's own domain
(com.microsoft, ContribOperators.md); images may lie channels last there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute

Array = NDArray[Any]
Real = NDArray[np.float64]
Values = Mapping[str, Array]

_FAR = 2.0**53  # steps, where a step is none
_PATCH_VALUES = 1 << 23  # values of unrolled windows at a time: 64 MB
_MOVING = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
     "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Clip", "Max", "Min",
     "Relu"}
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Expected:
    """What a node's first output should be.

    Attributes:
        value: the output.
        step: how large a step is there: 1 for integers.
        moved: nothing was computed, values were only moved or compared.
    """

    value: Array
    step: Array | float = 1.0
    moved: bool = False

    def steps(self, found: Array) -> Real:
        """How many steps each element of `found` is off; beyond its type is as far as it goes.

        As what integer NaN is quantized ONNX does not say: whatever was made of it is right.
        """
        held, wanted = found.astype(np.float64), self.value.astype(np.float64)
        if found.dtype.kind == "f":
            top = float(np.finfo(found.dtype).max)
            held, wanted = _within(held, top), _within(wanted, top)
        else:
            wanted = np.where(np.isnan(wanted), held, wanted)
        off = np.abs(held - wanted)
        with np.errstate(divide="ignore", invalid="ignore"):  # a damaged file: no step at all
            steps = np.rint(np.where(off == 0, 0.0, off / np.abs(self.step)))
        return np.nan_to_num(steps, nan=_FAR, posinf=_FAR)


def _within(values: Real, top: float) -> Real:
    """The values with what is larger than `top`, or is no number, at `top`."""
    return np.clip(np.nan_to_num(values, nan=top, posinf=top, neginf=-top), -top, top)


def expected(node: onnx.NodeProto, values: Values) -> Expected | None:
    """What the node makes of `values`; None where it does not compute on integers.

    Args:
        node: of the graph that a runtime executes.
        values: its inputs by name.
    """
    feeds = {name: values[name] for name in node.input if name in values}
    if len(feeds) < len({name for name in node.input if name}) or attribute(node, "block_size"):
        return None
    if node.op_type in _OPERATORS:
        return _OPERATORS[node.op_type](_Operands(node, values))
    first = feeds.get(node.input[0]) if node.input else None
    if first is None or first.dtype.kind not in "iu" or first.dtype.itemsize > 2:
        return None
    if node.op_type in _POOLS:
        return Expected(_max_pool(_Operands(node, values)), moved=True)
    if node.op_type in _MOVING and node.domain in STANDARD_DOMAINS:
        made: Array = np.asarray(next(iter(ReferenceEvaluator(node).run(None, feeds))))
        return Expected(made, moved=True)
    return None


class _Operands:
    """The inputs of one node, read by position."""

    def __init__(self, node: onnx.NodeProto, values: Values) -> None:
        self.node = node
        self._values = values

    def __len__(self) -> int:
        return len(self.node.input)

    def get(self, i: int) -> Array | None:
        """The input, or None where it is left out."""
        name = self.node.input[i] if i < len(self.node.input) else ""
        return self._values[name] if name else None

    def at(self, i: int) -> Array:
        """The input, which must be there."""
        return self._values[self.node.input[i]]

    def integers(self, i: int, zero: int, axis: int = -1) -> Real:
        """Q - z of input `i`, its zero point at `zero`."""
        q = self.at(i).astype(np.float64)
        return q - _along(self._zero(zero), q.ndim, axis)

    def scale(self, i: int) -> Real:
        """The scale at `i`."""
        return self.at(i).astype(np.float64)

    def real(self, i: int) -> Real:
        """The values of input `i`, whose scale and zero point follow; one of each."""
        return self.integers(i, i + 2) * self.scale(i + 1)

    def quantized(self, value: Real, scale: int, zero: int) -> Expected:
        """`value` at the output's scale and zero point, which are inputs too."""
        point = self.at(zero)
        limits = np.iinfo(point.dtype)
        levels = np.rint(value / self.scale(scale)) + point.astype(np.float64)
        return Expected(np.clip(levels, limits.min, limits.max))

    def _zero(self, i: int) -> Real:
        found = self.get(i)
        return np.zeros(()) if found is None else found.astype(np.float64)

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value."""
        return attribute(self.node, name, default)


def _along(vector: Array, ndim: int, axis: int) -> Array:
    """`vector`, of one element or one for each along `axis`, so that it broadcasts."""
    if vector.size == 1:
        return vector.reshape(())
    shape = [1] * ndim
    shape[axis] = vector.size
    return vector.reshape(shape)


def _quantize(given: _Operands) -> Expected | None:
    point = given.get(2)
    if point is None or point.dtype.itemsize > 2 or given.at(0).dtype.kind != "f":
        return None
    # Its operands are floats, and ONNX has it divide in their type: images whose pixels lie in the
    # middle of two levels are no rounding error of the kernel.
    x, axis = given.at(0), given.attribute("axis", 1)
    scale, zero = (_along(given.at(i), x.ndim, axis) for i in (1, 2))
    limits = np.iinfo(point.dtype)
    levels = np.rint(x / scale) + zero.astype(np.float64)
    return Expected(np.clip(levels, limits.min, limits.max))


def _dequantize(given: _Operands) -> Expected:
    axis = given.attribute("axis", 1)
    scale = _along(given.scale(1), given.at(0).ndim, axis)
    return Expected(given.integers(0, 2, axis) * scale, scale)


def _conv(given: _Operands) -> Expected:
    last = bool(given.attribute("channels_last", 0))
    x, w = _first(given.integers(0, 2), last), given.integers(3, 5, 0)
    sums = _convolved(x, w, given)
    if given.get(8) is not None:
        sums += _along(given.at(8).astype(np.float64), sums.ndim, 1)
    value = sums * given.scale(1) * _along(given.scale(4), sums.ndim, 1)
    return given.quantized(_back(value, last), 6, 7)


def _gemm(given: _Operands) -> Expected:
    turned = bool(given.attribute("transB", 0))  # then its columns lie along axis 0
    a, b = given.integers(0, 2), given.integers(3, 5, 0 if turned else 1)
    sums = (a.T if given.attribute("transA", 0) else a) @ (b.T if turned else b)
    if given.get(6) is not None:
        sums = sums + given.at(6).astype(np.float64)
    step = given.attribute("alpha", 1.0) * given.scale(1) * given.scale(4)
    if given.get(7) is None:
        return Expected(sums * step, step)
    return given.quantized(sums * step, 7, 8)


def _matmul(given: _Operands) -> Expected:
    sums = given.integers(0, 2) @ given.integers(3, 5)
    return given.quantized(sums * given.scale(1) * given.scale(4), 6, 7)


def _matmul_to_float(given: _Operands) -> Expected:
    step = given.scale(2) * given.scale(3)
    value = (given.integers(0, 4) @ given.integers(1, 5)) * step
    bias = given.get(6)
    return Expected(value if bias is None else value + bias.astype(np.float64), step)


def _add(given: _Operands) -> Expected:
    return given.quantized(given.real(0) + given.real(3), 6, 7)


def _mul(given: _Operands) -> Expected:
    return given.quantized(given.real(0) * given.real(3), 6, 7)


def _leaky_relu(given: _Operands) -> Expected:
    x = given.real(0)
    return given.quantized(np.where(x < 0, x * given.attribute("alpha", 0.01), x), 3, 4)


def _sigmoid(given: _Operands) -> Expected:
    return given.quantized(1 / (1 + np.exp(-given.real(0))), 3, 4)


def _concat(given: _Operands) -> Expected:
    parts = [given.real(i) for i in range(2, len(given), 3)]
    return given.quantized(np.concatenate(parts, axis=given.attribute("axis", 0)), 0, 1)


def _global_average(given: _Operands) -> Expected:
    last = bool(given.attribute("channels_last", 0))
    x = _first(given.real(0), last)
    mean = x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    return given.quantized(_back(mean, last), 3, 4)


def _average_pool(given: _Operands) -> Expected:
    last = bool(given.attribute("channels_last", 0))
    x = _first(given.real(0), last)
    axes = tuple(range(-(x.ndim - 2), 0))
    sums = _windows(x, given, 0.0).sum(axis=axes)
    counted = bool(given.attribute("count_include_pad", 0))
    ones = _windows(np.ones((1, 1, *x.shape[2:])), given, float(counted), behind=0.0)
    return given.quantized(_back(sums / ones.sum(axis=axes), last), 3, 4)


def _max_pool(given: _Operands) -> Array:
    last = given.node.op_type == "NhwcMaxPool"
    x = _first(given.at(0).astype(np.float64), last)
    windows = _windows(x, given, -np.inf)
    return _back(windows.max(axis=tuple(range(-(x.ndim - 2), 0))), last)


def _first(x: Array, last: bool) -> Array:
    """`x` with its channels behind the batch; `last`: they are its last axis."""
    return np.moveaxis(x, -1, 1) if last else x


def _back(x: Array, last: bool) -> Array:
    return np.moveaxis(x, 1, -1) if last else x


def _convolved(x: Real, w: Real, given: _Operands) -> Real:
    """The convolution of x [N, C, ...] with w [O, C / groups, ...], without bias."""
    groups = int(given.attribute("group", 1))
    windows = _windows(x, given, 0.0, kernel=w.shape[2:])
    spatial = w.ndim - 2
    count, size = x.shape[0], windows.shape[2 : 2 + spatial]
    matrix = w.reshape(groups, w.shape[0] // groups, -1)
    out = np.empty((count, w.shape[0], *size))
    per_row = max(1, count * w[0].size * groups * math.prod(size[1:]))
    rows = max(1, _PATCH_VALUES // per_row)
    for start in range(0, size[0], rows):
        part = windows[:, :, start : start + rows]
        shape = (count, groups, x.shape[1] // groups, *part.shape[2:])
        order = (0, 1, 2, *range(3 + spatial, 3 + 2 * spatial), *range(3, 3 + spatial))
        unrolled = part.reshape(shape).transpose(order)
        unrolled = unrolled.reshape(count, groups, matrix.shape[2], -1)
        made = matrix @ unrolled  # [N, groups, O / groups, positions]
        out[:, :, start : start + rows] = made.reshape(
            count, w.shape[0], *part.shape[2 : 2 + spatial]
        )
    return out


def _windows(
    x: Real,
    given: _Operands,
    filling: float,
    *,
    kernel: Sequence[int] | None = None,
    behind: float | None = None,
) -> Real:
    """The windows of x [N, C, ...] that the node looks at: [N, C, places ..., kernel ...].

    Args:
        x: its input.
        given: the node.
        filling: what stands for padding.
        kernel: the size of the window; None: the attribute's.
        behind: what stands for that which `ceil_mode` adds behind the padding; None: `filling`.
    """
    size = list(kernel or given.attribute("kernel_shape", []))
    steps = list(given.attribute("strides", None) or [1] * len(size))
    spread = list(given.attribute("dilations", None) or [1] * len(size))
    reach = [(k - 1) * d + 1 for k, d in zip(size, spread, strict=True)]
    pads = _pads(given, x.shape[2:], reach, steps)
    padded = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=filling)
    if given.attribute("ceil_mode", 0):
        more = [
            _behind(length, low + high, low, step, window)
            for length, (low, high), step, window in zip(
                x.shape[2:], pads, steps, reach, strict=True
            )
        ]
        padded = np.pad(
            padded,
            [(0, 0), (0, 0), *((0, m) for m in more)],
            constant_values=filling if behind is None else behind,
        )
    found = sliding_window_view(padded, reach, axis=tuple(range(2, x.ndim)))
    index = (slice(None), slice(None), *(slice(None, None, s) for s in (*steps, *spread)))
    return found[index]


def _behind(length: int, padding: int, low: int, step: int, window: int) -> int:
    """How far the last window of `ceil_mode` reaches behind the padding.

    One that would start behind the data and the padding `low` in front of it is left out.
    """
    room = length + padding - window
    last = -(-room // step)
    last -= last * step >= length + low
    return max(0, last * step - room)


def _pads(
    given: _Operands, size: Sequence[int], reach: Sequence[int], steps: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding in front of and behind each axis."""
    auto = given.attribute("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        found = []
        for length, window, step in zip(size, reach, steps, strict=True):
            total = max(0, (-(-length // step) - 1) * step + window - length)
            low = total // 2 if auto == b"SAME_UPPER" else total - total // 2
            found.append((low, total - low))
        return found
    pads = list(given.attribute("pads", None) or [0] * 2 * len(size))
    return list(zip(pads[: len(size)], pads[len(size) :], strict=True))


_POOLS = frozenset({"MaxPool", "NhwcMaxPool"})
_OPERATORS: Mapping[str, Callable[[_Operands], Expected | None]] = {
    "DequantizeLinear": _dequantize,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QGemm": _gemm,
    "QLinearAdd": _add,
    "QLinearAveragePool": _average_pool,
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _global_average,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearMatMul": _matmul,
    "QLinearMul": _mul,
    "QLinearSigmoid": _sigmoid,
    "QuantizeLinear": _quantize,
}
