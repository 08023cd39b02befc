"""What the tensors of an untrusted file may not be: every name is text, every type is known, and a
constant holds as many bytes as its type and dimensions say. Attributes have values of their own,
and a domain has one opset.

So whatever is allocated for a constant later is no larger than what was read.
"""

import math
from collections.abc import Iterable
from itertools import islice

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.constants import Constants
from onnxbrecq.graph.model import STANDARD_DOMAINS, graphs, tensors

_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}  # bits of an element
_PAIRS = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)  # two numbers in the typed field
_FREE = ("denotation", "doc_string", "metadata_props")  # texts that say nothing to us
_MOST_SPARSE = 1 << 32  # elements that a sparse constant may stand for

Values = Iterable[onnx.ValueInfoProto]


def check_tensors(proto: onnx.ModelProto, constants: Constants, where: str) -> None:
    """Refuses constants and types that are not what they say.

    Raises:
        ModelError: names the tensor.
    """
    for part in (*proto.opset_import, *proto.functions, proto.graph):
        _check_texts(part, where)
    for owner in (proto, *proto.functions):
        _check_imports(owner.opset_import, where)
    for graph in graphs(proto.graph):
        _check_attributes(graph, where)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_type(value, where)
        for sparse in graph.sparse_initializer:
            _check_sparse(sparse, where)
    own = proto.graph.initializer  # of which the large ones lie in `constants`
    small = (tensor for tensor in own if tensor.name not in constants)
    inner = islice(tensors(proto.graph), len(own), None)
    for tensor in (*small, *inner, *constants.values()):
        check_size(tensor, where)


def item_bits(tensor: TensorProto, where: str) -> int:
    """How many bits an element of the tensor takes in a file.

    Raises:
        ModelError: its type is unknown.
    """
    if not _is_known(tensor.data_type):
        raise ModelError(
            f"{where}: tensor {tensor.name!r} has the unknown type {tensor.data_type}; export the "
            "model again"
        )
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return _PACKED.get(TensorProto.DataType.Name(tensor.data_type), int(kind.itemsize) * 8)


def check_size(tensor: TensorProto, where: str) -> None:
    """Refuses a tensor that holds more or less than it declares, or a part only.

    Raises:
        ModelError: names it.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{where}: tensor {tensor.name!r} has a negative dimension")
    if tensor.HasField("segment"):
        raise ModelError(
            f"{where}: tensor {tensor.name!r} is a segment of a larger one, and its other segments "
            "are nowhere; export the model again"
        )
    count, bits = math.prod(tensor.dims), item_bits(tensor, where)
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data), -(-count * bits // 8), "bytes"
        if tensor.data_type == TensorProto.STRING:
            wanted = -1  # text is never raw
    else:
        held, unit = len(getattr(tensor, field)), "values"
        wanted = 2 * count if tensor.data_type in _PAIRS else -(-count // max(8 // bits, 1))
    if held != wanted:
        raise ModelError(
            f"{where}: tensor {tensor.name!r} declares {count} elements of type "
            f"{TensorProto.DataType.Name(tensor.data_type)} but holds {held} {unit}; export the "
            "model again"
        )


def _check_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    if any(dim < 0 for dim in sparse.dims) or math.prod(sparse.dims) > _MOST_SPARSE:
        raise ModelError(
            f"{where}: the sparse tensor {sparse.values.name!r} has the dimensions "
            f"{list(sparse.dims)}: it would not fit into memory; export the model again"
        )


def _check_type(value: onnx.ValueInfoProto, where: str) -> None:
    kind = value.type.tensor_type.elem_type
    if value.type.HasField("tensor_type") and kind and not _is_known(kind):
        raise ModelError(
            f"{where}: {value.name!r} has the unknown type {kind}; export the model again"
        )


def _is_known(kind: int) -> bool:
    return bool(kind) and kind in TensorProto.DataType.values()


def _check_imports(imports: Iterable[onnx.OperatorSetIdProto], where: str) -> None:
    """Refuses two opsets of one domain."""
    versions: dict[str, int] = {}
    for entry in imports:
        domain = "ai.onnx" if entry.domain in STANDARD_DOMAINS else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(
                f"{where}: it imports opsets {versions[domain]} and {entry.version} of the domain "
                f"{domain!r}; export the model again"
            )


def _check_texts(message: Message, where: str) -> None:
    """Refuses texts that are none, at any depth, but for those that nothing is done with."""
    if isinstance(message, TensorProto):  # whose values would be copied
        check_text([message.name], where)
        return
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == FieldDescriptor.TYPE_STRING and field.name not in _FREE:
            check_text(values, where)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.name not in _FREE:
            for part in values:
                _check_texts(part, where)


def _check_attributes(graph: onnx.GraphProto, where: str) -> None:
    """Refuses attributes whose value is that of a function's, where there is no function."""
    for node in graph.node:
        for item in node.attribute:
            if item.ref_attr_name:
                named = node.name or next(iter(node.output), node.op_type)
                raise ModelError(
                    f"{where}: attribute {item.name!r} of node {named!r} refers to "
                    f"{item.ref_attr_name!r} of a function, and is in none; export the model again"
                )


def check_text(texts: Iterable[str | bytes], where: str) -> None:
    """Refuses texts that are none: protobuf hands those out as bytes.

    Raises:
        ModelError: says what is there.
    """
    for text in texts:
        if isinstance(text, bytes):
            raise ModelError(
                f"{where}: the text {text!r} is not UTF-8; the file is damaged: copy or export it "
                "again"
            )
