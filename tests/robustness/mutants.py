"""How files are spoilt: changes of a model's messages, and of the bytes of any file.

A mutation is a function of the file and of `choose`, which draws an integer below n: hypothesis
shrinks what it drew, a random generator draws ever more.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

T = TypeVar("T")
Choose = Callable[[int], int]

_INTEGERS = (
    0, 1, -1, 2, 3, 7, 10, 11, 16, 21, 127, 128, 255, 65536, 2**31 - 1, -(2**31), 2**40, 2**62,
    2**63 - 1, -(2**63),
)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, 1e30)
_STRINGS = (
    "", "../../../etc/passwd", "/etc/passwd", "weights.bin", "n" * 5000, "\x1b[31mred", "a\nb\x00c",
    "<script>alert(1)</script>", "é" * 40, "ai.onnx", "com.microsoft", "own", "axis", "value",
    "Conv", "Gemm", "MatMul", "Relu", "Identity", "Reshape", "Expand", "ConstantOfShape", "Cast",
    "Concat", "Constant", "Softmax", "QuantizeLinear", "DequantizeLinear", "Pad", "Resize",
    "Gather", "Where", "Split", "Einsum", "Loop", "If", "Scan", "Shape", "Range", "Tile",
    "Transpose", "NonMaxSuppression", "RandomNormal", "BatchNormalization", "Dropout", "TopK",
    "LSTM", "Unknown", "SequenceConstruct", "StringNormalizer", "Optional", "ConvTranspose", "Clip",
)  # fmt: skip
_BYTES = (b"", b"\x00", b"\xff" * 8, b"\x7f\x80\x00\x00" * 4, b"SAME_UPPER", b"x" * 4096)
_HUGE = 1 << 16  # no file grows beyond it by repetition


def spoilt_bytes(data: bytes, choose: Choose) -> bytes:
    """`data` with bits flipped, an end cut off, or a piece overwritten, doubled or lost."""
    found = bytearray(data)
    start = choose(len(found) + 1)
    end = min(len(found), start + 1 + choose(16))
    match choose(6):
        case 0:
            return bytes(found[:start])
        case 1:
            del found[start:end]
        case 2:
            found[start:start] = found[start:end] * (1 + choose(8))
        case 3:
            found[start:end] = bytes([(0, 0xFF, 0x7F, 0x80)[choose(4)]]) * (end - start)
        case _:
            for _ in range(1 + choose(4)):
                if found:
                    found[choose(len(found))] ^= 1 << choose(8)
    return bytes(found)


def spoilt_model(data: bytes, choose: Choose) -> bytes:
    """A serialised model with one or two of its messages changed."""
    proto = onnx.ModelProto.FromString(data)
    for _ in range(1 + choose(2)):
        _edit(proto, choose)
    return proto.SerializeToString()


def _edit(proto: onnx.ModelProto, choose: Choose) -> None:
    """Edits one field of one message, whichever."""
    messages = list(_messages(proto))
    message = messages[choose(len(messages))]
    fields = list(message.DESCRIPTOR.fields)
    there = [field for field, _ in message.ListFields()]
    field = _one((there or fields) if choose(4) else fields, choose)
    if field.is_repeated:
        _edit_repeated(message, field, messages, choose)
    elif not choose(4):
        message.ClearField(field.name)
    elif field.message_type is None:
        setattr(message, field.name, _value(field, messages, choose))
    else:
        _edit_message(getattr(message, field.name), messages, choose)


def _edit_repeated(
    message: Message, field: FieldDescriptor, messages: Sequence[Message], choose: Choose
) -> None:
    items = getattr(message, field.name)
    match choose(5) if items else 4:
        case 0:
            del items[choose(len(items))]
        case 1:
            del items[choose(len(items)) :]
        case 2 if len(items) < _HUGE:
            items.extend([_copied(items[choose(len(items))])])
        case 3:
            first, second = choose(len(items)), choose(len(items))
            copies = [_copied(item) for item in items]
            copies[first], copies[second] = copies[second], copies[first]
            del items[:]
            items.extend(copies)
        case _ if field.message_type is not None:
            _edit_message(items[choose(len(items))] if items else items.add(), messages, choose)
        case _ if items:
            items[choose(len(items))] = _value(field, messages, choose)
        case _:
            items.append(_value(field, messages, choose))


def _edit_message(message: Message, messages: Sequence[Message], choose: Choose) -> None:
    """Edits the message: it becomes as another of its kind in the model."""
    alike = [other for other in messages if other.DESCRIPTOR is message.DESCRIPTOR]
    copy = _copied(_one(alike, choose)) if alike else type(message)()
    message.CopyFrom(copy)


def _value(field: FieldDescriptor, messages: Sequence[Message], choose: Choose) -> Any:
    """A value for a field that holds no message: odd, or from elsewhere in the model."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING and field.type == FieldDescriptor.TYPE_BYTES:
        return _one(_BYTES, choose)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _one(_STRINGS if choose(2) else _names(messages), choose)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return _one(_FLOATS, choose)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _one(list(field.enum_type.values_by_number), choose)
    wide = kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
    number = _one(_INTEGERS, choose)
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        return abs(number) % 2 ** (64 if wide else 32)
    return number if wide or abs(number) < 2**31 else 2**31 - 1


def _names(messages: Sequence[Message]) -> list[str]:
    names = [n for m in messages if isinstance(m, onnx.NodeProto) for n in (*m.input, *m.output)]
    return list(dict.fromkeys(names)) or [""]


def _messages(message: Message) -> Iterator[Message]:
    """The message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                yield from _messages(item)


def _copied(item: Any) -> Any:
    if not isinstance(item, Message):
        return item
    copy = type(item)()
    copy.CopyFrom(item)
    return copy


def _one(items: Sequence[T], choose: Choose) -> T:
    return items[choose(len(items))]
