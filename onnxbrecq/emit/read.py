"""What a quantized file holds, by its graph: bits, blocks, grids and scales of each layer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

_STORED: Mapping[int, int] = {
    TensorProto.UINT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
_DECODING = ("DequantizeLinear", "Cast", "Mul", "Sub")


Bits = tuple[int | None, int | None]


def stored_bits(proto: onnx.ModelProto, layers: tuple[str, ...]) -> dict[str, Bits]:
    """Layer name → bits of its weight and of the data it reads; None: float, or no such node."""
    nodes = {node.name: node for node in proto.graph.node if node.name}
    producer = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found: dict[str, Bits] = {}
    for name in layers:
        node = nodes.get(name)
        if node is None or len(node.input) < 2:
            found[name] = (None, None)
            continue
        weight = _weight_bits(node.input[1], producer, constants)
        found[name] = (weight, _data_bits(node.input[0], producer, constants))
    return found


def stored_blocks(proto: onnx.ModelProto, layers: tuple[str, ...]) -> dict[str, int]:
    """Layer name → inputs that share a scale of its weight; layers without blocks are not in it."""
    nodes = {node.name: node for node in proto.graph.node if node.name}
    producer = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found: dict[str, int] = {}
    for name in layers:
        node = nodes.get(name)
        decoded = producer.get(node.input[1]) if node is not None and len(node.input) > 1 else None
        if decoded is None or len(decoded.input) < 2:
            continue
        if decoded.op_type == "DequantizeLinear":
            size = next((int(a.i) for a in decoded.attribute if a.name == "block_size"), 0)
        else:  # the scale is spread by a Gather of each input's block
            spread = producer.get(decoded.input[1])
            gathered = spread is not None and spread.op_type == "Gather"
            index = constants.get(spread.input[1]) if spread and gathered else None
            size = int((_integers(index) == 0).sum()) if index else 0
        if size:
            found[name] = size
    return found


def _weight_bits(
    name: str,
    producer: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> int | None:
    """Bits of the packed tensor that the weight `name` is decoded from."""
    while name in producer and producer[name].op_type in _DECODING:
        name = producer[name].input[0]
    tensor = constants.get(name)
    bits = _STORED.get(tensor.data_type) if tensor is not None else None
    if bits == 4 and tensor is not None:  # 2 and 3 bits may live in the lower part of 4
        values = _integers(tensor)
        sign = 1 if tensor.data_type == TensorProto.INT4 else 0  # -4 ... 3, or 0 ... 7
        reach = max(int(values.max()), -int(values.min()) - sign)
        return max(2, reach.bit_length() + sign)
    return bits


def _data_bits(
    name: str,
    producer: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> int | None:
    """Bits of the quantizer that the activation `name` comes from."""
    node = producer.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    levels = producer.get(node.input[0])
    while levels is not None and levels.op_type not in ("Clip", "QuantizeLinear"):
        levels = producer.get(levels.input[0])  # what only moves them
    if levels is not None and levels.op_type == "Clip" and levels.input[2] in constants:
        return int(_integers(constants[levels.input[2]]).max()).bit_length()
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    return 8 if zero is None else _STORED.get(zero.data_type)


def _integers(tensor: onnx.TensorProto) -> NDArray[np.int32]:
    return numpy_helper.to_array(tensor).astype(np.int32)


@dataclass(frozen=True)
class DataGrid:
    """The grid of the data that a layer reads: integers from `low` to `high`, less `zero`, times
    `scale`.
    """

    scale: float
    zero: int
    low: int
    high: int


def data_grids(proto: onnx.ModelProto, layers: Collection[str]) -> dict[str, DataGrid]:
    """Layer name → the grid of the data it reads; layers that read float are absent."""
    producer = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        source = producer.get(node.input[0]) if node.name in layers and node.input else None
        grid = _grid(source, producer, constants) if source is not None else None
        if grid is not None:
            found[node.name] = grid
    return found


def _grid(
    node: onnx.NodeProto,
    producer: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> DataGrid | None:
    """The grid of a DequantizeLinear with one scale."""
    if node.op_type != "DequantizeLinear" or node.input[1] not in constants:
        return None
    scale = numpy_helper.to_array(constants[node.input[1]])
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    bits = _data_bits(node.output[0], producer, constants)
    if scale.size != 1 or bits is None:
        return None
    signed = zero is not None and zero.data_type == TensorProto.INT8
    low = -(2 ** (bits - 1)) if signed else 0
    offset = 0 if zero is None else int(_integers(zero).reshape(-1)[0])
    return DataGrid(float(scale.reshape(-1)[0]), offset, low, low + 2**bits - 1)


def weight_scales(
    proto: onnx.ModelProto, layers: Collection[str]
) -> dict[str, NDArray[np.float32]]:
    """Layer name → the scales of its weight, shaped to broadcast against it."""
    producer = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.name not in layers or len(node.input) < 2:
            continue
        maker = producer.get(node.input[1])
        if maker is None or maker.op_type not in ("DequantizeLinear", "Mul"):
            continue
        scale = constants.get(maker.input[1])
        if scale is not None:
            found[node.name] = _broadcast(numpy_helper.to_array(scale), maker, proto, constants)
    return {name: scale for name, scale in found.items() if scale is not None}


def _broadcast(
    scale: NDArray[np.generic],
    maker: onnx.NodeProto,
    proto: onnx.ModelProto,
    constants: Mapping[str, onnx.TensorProto],
) -> NDArray[np.float32] | None:
    """The scale of a DequantizeLinear along its axis; that of a Mul as it is; None: of blocks."""
    values: NDArray[np.float32] = scale.astype(np.float32)
    if maker.op_type == "Mul" or values.ndim == 0:
        return values
    if values.ndim > 1:
        return None
    producer = {name: node for node in proto.graph.node for name in node.output}
    name = maker.input[0]
    while name in producer and producer[name].op_type in _DECODING:
        name = producer[name].input[0]
    rank = len(constants[name].dims) if name in constants else 1
    axis = next((a.i for a in maker.attribute if a.name == "axis"), 1) % max(rank, 1)
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])
