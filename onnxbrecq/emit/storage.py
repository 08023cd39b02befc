"""How a weight's levels are stored, and decoded when the model is loaded.

The integers that kernels multiply are step * level - offset (`onnxbrecq.plan`). They are kept in
the smallest packed type, and turned into INT8 by nodes on constants only, which ONNX Runtime
folds at load (measured on 1.32), so that QLinearConv and QGemm see an INT8 initializer:

    signed, 8 bits        INT8; UINT8 with zero point 128 where that would saturate
    signed, 3 and 4 bits  INT4 -> Cast INT8
    signed, 2 bits        INT2 -> Cast INT8
    affine and half       UINT4 or UINT2 -> Cast INT32 [-> Mul 2] -> Sub offset -> Cast INT8

The offset, one of each channel, is of the smallest type that holds those of the grid, cast to INT32
for the subtraction.

In front of a layer whose data is float, Cast FLOAT -> Mul scale takes the place of
DequantizeLinear: it folds as well, and the layer runs at the speed of the float model. A MatMul or
Gemm whose weight of 3 or 4 bits, or of any in blocks, is on an affine or signed grid reads, where
the target says so, the packed tensor through DequantizeLinear alone: onnxruntime makes a
MatMulNBits of both, which multiplies it as it is. (It does not of a weight [N, K]: such a one is
turned.)

For other runtimes the integers stand as INT8 ("int8"), or packed but not decoded ("plain"), each
with zero point 0 in front of a DequantizeLinear.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxbrecq import affine
from onnxbrecq.emit.targets import PACKED_BITS, PRODUCTS, Target
from onnxbrecq.emit.writer import GraphWriter
from onnxbrecq.plan import QuantPlan, TensorQuant

_SIGNED = {8: np.int8, 4: ml_dtypes.int4, 2: ml_dtypes.int2}
_UNSIGNED = {4: ml_dtypes.uint4, 2: ml_dtypes.uint2}
_PACKED_SINCE = {8: 10, 4: 21, 2: 25}  # default-domain version that brought the type
_WIDE_SINCE = 21  # likewise 16 bits in QuantizeLinear


def container_bits(bits: int, target: Target) -> int:
    """Bits of the packed type that holds levels of `bits` bits for the target."""
    return next(width for width in (2, 4, 8) if width >= max(bits, target.narrowest))


def opset_needed(plan: QuantPlan, target: Target, opset: int) -> int:
    """The default-domain version that the plan's packed types need, at least `opset`."""
    widths = [
        container_bits(q.qtype.bits, target) for q in plan.tensors.values() if q.levels is not None
    ]
    wide = any(q.qtype.bits > 8 for q in plan.tensors.values())
    if target.storage == "int8":
        widths = []
    return max([opset, *(_PACKED_SINCE[width] for width in widths), _WIDE_SINCE if wide else 0])


def stays_packed(quant: TensorQuant, target: Target, op: str, *, integer_data: bool) -> bool:
    """Whether the layer multiplies the packed weight [K, N] itself."""
    bits, grid = quant.qtype.bits, quant.qtype.grid
    if not target.packed_products or integer_data or op not in PRODUCTS or grid == "half":
        return False
    if quant.block_size is None:
        return bits in PACKED_BITS and _whole_zero_points(quant, target)
    # 2 bits of any other number of outputs onnxruntime 1.32 packs wrongly, and computes something
    # else (test_two_bits_of_outputs_that_do_not_go_by_four).
    assert quant.levels is not None
    fours = container_bits(bits, target) > 2 or quant.levels.shape[quant.axis or 0] % 4 == 0
    return bits in target.blocks and fours and _whole_zero_points(quant, target)


def _whole_zero_points(quant: TensorQuant, target: Target) -> bool:
    """Whether every zero point is one of the levels that the packed type holds."""
    highest = (1 << container_bits(quant.qtype.bits, target)) - 1
    points = quant.zero_point
    return quant.qtype.grid == "signed" or bool(0 <= points.min() <= points.max() <= highest)


def write_packed(graph: GraphWriter, quant: TensorQuant, target: Target, *, turned: bool) -> str:
    """Writes the packed weight and its DequantizeLinear; returns the name of what that makes.

    Args:
        graph: what is written to.
        quant: the decision of a weight that `stays_packed`.
        target: the runtime.
        turned: it is [N, K], and written as [K, N].
    """
    assert quant.levels is not None
    width = container_bits(quant.qtype.bits, target)
    if quant.qtype.grid == "signed":
        parts = [affine.integers(quant.levels, quant).astype(_SIGNED[width]), quant.scale]
    else:
        kind = _UNSIGNED[width]
        parts = [quant.levels.astype(kind), quant.scale, quant.zero_point.astype(kind)]
    inputs = [
        graph.constant(stem, np.ascontiguousarray(part.T if turned else part))
        for stem, part in zip("wsz", parts, strict=False)
    ]
    if quant.block_size is not None:
        axis = {"axis": 0, "block_size": quant.block_size}
    else:
        axis = {} if quant.axis is None else {"axis": 1}
    return graph.node("DequantizeLinear", inputs, graph.name("w"), **axis)


def write_weight(
    graph: GraphWriter,
    quant: TensorQuant,
    target: Target,
    *,
    op: str,
    integer_data: bool,
    unsigned: bool,
) -> str:
    """Writes the stored weight and its decoding; returns the name of the dequantized weight.

    Args:
        graph: what is written to.
        quant: the weight's decision, levels included.
        target: the runtime.
        op: the layer's operator.
        integer_data: whether the layer's data is quantized as well.
        unsigned: integers of 8 bits are stored as UINT8 with zero point 128.
    """
    alone = op not in (*PRODUCTS, "Conv")  # of what computes in floats whatever it reads
    if integer_data or (target.storage != "decoded" and not alone):
        axis = {} if quant.axis is None else {"axis": quant.axis}
        if unsigned:
            inputs = [_uint8(graph, quant), graph.constant("s", quant.scale)]
            inputs.append(graph.constant("z", np.full(quant.scale.shape, 128, np.uint8)))
            return graph.node("DequantizeLinear", inputs, graph.name("w"), **axis)
        plain = target.storage == "plain" and quant.qtype.bits < 8
        stored = _packed(graph, quant, target) if plain else _int8(graph, quant, target)
        inputs = [stored, graph.constant("s", quant.scale)]
        if op == "Gemm":
            # onnxruntime 1.32 makes a QGemm only of a weight with an explicit zero point
            # (test_gemm_needs_the_zero_point_of_its_weight).
            kind = _SIGNED[container_bits(quant.qtype.bits, target)] if plain else np.int8
            inputs.append(graph.constant("z", np.zeros(quant.scale.shape, kind)))
        return graph.node("DequantizeLinear", inputs, graph.name("w"), **axis)
    codes = graph.node("Cast", [_int8(graph, quant, target)], graph.name("w"), to=TensorProto.FLOAT)
    return graph.node("Mul", [codes, _along(graph, "s", quant.scale, quant)], graph.name("w"))


def write_shared(graph: GraphWriter, quant: TensorQuant, target: Target, *, unsigned: bool) -> str:
    """Decodes once more, to floats, the bytes that `write_weight` stores for a layer."""
    if not unsigned:
        return write_weight(graph, quant, target, op="Gather", integer_data=False, unsigned=False)
    codes = graph.node("Cast", [_uint8(graph, quant)], graph.name("w"), to=TensorProto.FLOAT)
    middle = graph.shared("f128", np.asarray(128, np.float32))
    codes = graph.node("Sub", [codes, middle], graph.name("w"))
    return graph.node("Mul", [codes, _along(graph, "s", quant.scale, quant)], graph.name("w"))


def _along(graph: GraphWriter, stem: str, values: NDArray[np.generic], quant: TensorQuant) -> str:
    """The name of the values, one for each channel or block, as they broadcast to the weight."""
    assert quant.levels is not None
    if quant.block_size is None:
        return graph.constant(stem, affine.along(values, quant, quant.levels.shape))
    assert quant.axis is not None
    axis = 1 - quant.axis
    block = np.arange(quant.levels.shape[axis], dtype=np.int32) // quant.block_size
    inputs = [graph.constant(stem, values), graph.constant("i", block)]
    return graph.node("Gather", inputs, graph.name(stem), axis=axis)


def _uint8(graph: GraphWriter, quant: TensorQuant) -> str:
    """The name of the UINT8 tensor of those integers, each plus 128."""
    assert quant.levels is not None
    integers = affine.integers(quant.levels, quant) + 128
    return graph.constant("w", integers.astype(np.uint8))


def _int8(graph: GraphWriter, quant: TensorQuant, target: Target) -> str:
    """The name of the INT8 tensor of the integers that kernels multiply."""
    assert quant.levels is not None
    width = container_bits(quant.qtype.bits, target)
    if width == 8 or target.storage == "int8":
        return graph.constant("w", affine.integers(quant.levels, quant).astype(np.int8))
    if quant.qtype.grid == "signed":
        return graph.node(
            "Cast", [_packed(graph, quant, target)], graph.name("w"), to=TensorProto.INT8
        )
    packed = graph.constant("w", quant.levels.astype(_UNSIGNED[width]))
    value = graph.node("Cast", [packed], graph.name("w"), to=TensorProto.INT32)
    if quant.qtype.step != 1:
        step = graph.shared(f"i{quant.qtype.step}", np.asarray(quant.qtype.step, np.int32))
        value = graph.node("Mul", [value, step], graph.name("w"))
    value = graph.node("Sub", [value, _offset(graph, quant, target)], graph.name("w"))
    return graph.node("Cast", [value], graph.name("w"), to=TensorProto.INT8)


def _packed(graph: GraphWriter, quant: TensorQuant, target: Target) -> str:
    """The name of the packed tensor of a signed grid's integers."""
    assert quant.levels is not None
    integers = affine.integers(quant.levels, quant)
    return graph.constant("w", integers.astype(_SIGNED[container_bits(quant.qtype.bits, target)]))


def _offset(graph: GraphWriter, quant: TensorQuant, target: Target) -> str:
    assert quant.levels is not None
    offsets: NDArray[np.int32] = affine.offsets(quant.qtype, quant.zero_point).astype(np.int32)
    if offsets.min() == offsets.max():
        value = int(offsets.flat[0])
        return graph.shared(f"i{value}", np.asarray(value, np.int32))
    stored = _along(graph, "o", offsets.astype(_kind(offsets, quant, target)), quant)
    return graph.node("Cast", [stored], graph.name("o"), to=TensorProto.INT32)


def _kind(offsets: NDArray[np.int32], quant: TensorQuant, target: Target) -> np.dtype[Any]:
    """The smallest type for the offsets that such a grid can have, whichever its channels have.

    Zero lies on an affine grid, and at most half a step beside a half one. An offset of another
    tool's may be any: INT8. So are those that blocks look up, which onnxruntime does not do in
    packed types.
    """
    beside = 1 if quant.qtype.grid == "half" else 0
    possible = np.arange(-beside, quant.qtype.step * (quant.qtype.levels - 1) + beside + 1)
    if quant.block_size is None and np.isin(offsets, possible).all():
        least = container_bits(quant.qtype.bits, target)
        for kinds in (_UNSIGNED, _SIGNED):
            for width in sorted(kinds):
                kind: np.dtype[Any] = np.dtype(kinds[width])
                if least <= width and np.array_equal(possible.astype(kind).astype(int), possible):
                    return kind
    return np.dtype(np.int8)
