"""What a quantized file holds, read from its graph: bits and blocks of each layer as stored."""

from collections.abc import Mapping

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
