"""Reading a serialised model part by part, so that it is never in memory twice.

Protobuf's own parser wants all bytes at once and copies them. The format is a sequence of fields,

    key = 8 * number + kind    kind 0: a varint; 1, 5: 8 or 4 bytes; 2: a length, then the bytes

keys and lengths being varints: 7 bits a byte, the lowest first, the top bit of all but the last
byte set (https://protobuf.dev/programming-guides/encoding). Here the graph's constants are picked
out one by one; all else goes through protobuf's parser as it is.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnxbrecq.graph.constants import LARGE, Constants, add, is_large
from onnxbrecq.graph.model import STANDARD_DOMAINS

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_NODE = onnx.GraphProto.DESCRIPTOR.fields_by_name["node"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number

_VARINT, _BYTES = 0, 2
_SIZES = {1: 8, 5: 4}  # bytes of the kinds of fixed size
_LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True)
class _Field:
    """Where a field starts, where what it holds starts, and where both end."""

    number: int
    start: int
    content: int
    end: int


def read_apart(file: BinaryIO) -> tuple[onnx.ModelProto, Constants]:
    """The model that the file holds, and its large constants apart.

    Where a Constant node makes a large constant, the constant takes the node's place.

    Raises:
        DecodeError: the file is no serialised model.
    """
    proto, rest, found = onnx.ModelProto(), bytearray(), list[TensorProto]()
    for field in _fields(file, 0, file.seek(0, os.SEEK_END)):
        if field.number == _GRAPH:
            proto.graph.MergeFromString(_graph(file, field, found))
        else:
            rest += _read(file, field.start, field.end)
    proto.MergeFromString(bytes(rest))
    outputs, constants = {value.name for value in proto.graph.output}, Constants()
    for tensor in found:
        if tensor.name in outputs:  # nodes make outputs
            proto.graph.node.append(
                onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            )
        else:
            add(proto.graph, constants, tensor)
    return proto, constants


def _graph(file: BinaryIO, graph: _Field, found: list[TensorProto]) -> bytes:
    """The graph without its initializers and large Constant nodes; edits `found`: they join it."""
    rest = bytearray()
    for field in _fields(file, graph.content, graph.end):
        if field.number == _INITIALIZER:
            found.append(TensorProto.FromString(_read(file, field.content, field.end)))
            continue
        tensor = _constant(file, field) if field.number == _NODE else None
        if tensor is None:
            rest += _read(file, field.start, field.end)
        else:
            found.append(tensor)
    return bytes(rest)


def _constant(file: BinaryIO, field: _Field) -> TensorProto | None:
    """The large constant that a node makes; None if the node is another."""
    if field.end - field.content < LARGE // 4:  # elements of two bits, the smallest
        return None
    node = onnx.NodeProto.FromString(_read(file, field.content, field.end))
    if node.op_type != "Constant" or node.domain not in STANDARD_DOMAINS or not node.output:
        return None
    tensor = next((item.t for item in node.attribute if item.name == "value"), TensorProto())
    tensor.name = node.output[0]
    return tensor if is_large(tensor) else None


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message that lies between two places of the file."""
    while start < end:
        file.seek(start)
        number, kind = divmod(_varint(file), 8)
        size = _varint(file) if kind == _BYTES else _SIZES.get(kind, 0)
        content = file.tell()
        if kind == _VARINT:
            _varint(file)
            size = file.tell() - content
        elif kind != _BYTES and kind not in _SIZES:
            raise DecodeError(f"kind {kind} at {start}")
        if content + size > end:
            raise DecodeError(f"the field at {start} ends behind its message")
        yield _Field(number, start, content, content + size)
        start = content + size


def _varint(file: BinaryIO) -> int:
    value = 0
    for i in range(_LONGEST_VARINT):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << 7 * i
        if byte[0] < 0x80:
            return value
    raise DecodeError(f"no number before {file.tell()}")


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
