"""A model as the files that hold it: one, or two beyond what a protobuf message can hold.

Beyond 2 GiB the large constants lie in `NAME.data` beside the model, one after another, each at a
multiple of 4096 bytes so that a runtime can map it into memory.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxbrecq.graph.skeleton import SCALARS

LIMIT = 2**31 - 2**20  # a protobuf message holds less than 2 GiB; 1 MiB left for the graph
_ALIGNED = 4096

Contents = dict[str, Iterable[bytes]]


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the constants are beyond what one file can hold."""
    return sum(_size(tensor) for tensor in model.graph.initializer) >= LIMIT


def places(path: Path, size: int) -> tuple[Path, ...]:
    """The files that a model at `path` may need, if it has no more than `size` bytes."""
    return (path,) if size < LIMIT else (path, path.with_name(_data_name(path.name)))


def contents(model: onnx.ModelProto, name: str) -> Contents:
    """File names and what to write into them, in the order in which they should appear.

    The bytes depend on the model alone. They refer to the constants of `model`, so that a large
    model is not in memory twice.
    """
    if not is_large(model):
        return {name: [model.SerializeToString(deterministic=True)]}
    large = {t.name: t for t in model.graph.initializer if _size(t) >= _ALIGNED}
    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set(bare, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set(bare.graph, field.name, value)
    offset = 0
    for tensor in model.graph.initializer:
        if tensor.name not in large:
            bare.graph.initializer.append(tensor)
            continue
        entry = bare.graph.initializer.add(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims,
            data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        place = {"location": _data_name(name), "offset": offset, "length": _size(tensor)}
        for key, value in place.items():
            entry.external_data.add(key=key, value=str(value))
        offset += _padded(_size(tensor))
    return {
        _data_name(name): _parts(large.values()),
        name: [bare.SerializeToString(deterministic=True)],
    }


def _data_name(name: str) -> str:
    return f"{name}.data"


def _set(message: onnx.ModelProto | onnx.GraphProto, field: str, value: object) -> None:
    if isinstance(value, SCALARS):
        setattr(message, field, value)
    else:
        getattr(message, field).MergeFrom(value)


def _parts(tensors: Iterable[TensorProto]) -> Iterator[bytes]:
    for tensor in tensors:
        raw = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        yield raw
        yield bytes(_padded(len(raw)) - len(raw))


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _size(tensor: TensorProto) -> int:
    """Bytes of the tensor's values as raw data."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return 0  # has no raw data
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return int(math.prod(tensor.dims)) * dtype.itemsize
