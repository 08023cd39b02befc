"""From an untrusted file to the canonical float model.

Reading refuses, in one line, whatever cannot become a model; nothing of a file is executed, and
external data stays inside the model's folder. What follows is `onnxbrecq.graph.normalise`.
"""

import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.batch import edit_batch
from onnxbrecq.graph.check import check
from onnxbrecq.graph.check_layers import check_layers, check_unquantized
from onnxbrecq.graph.check_tensors import check_tensors, check_text, item_bits
from onnxbrecq.graph.constants import Constants, edit_together
from onnxbrecq.graph.model import Model, tensors
from onnxbrecq.graph.normalise import normalise
from onnxbrecq.graph.reads import part_reads
from onnxbrecq.graph.wire import read_apart

# Types of which a byte holds several values.
_PACKED_BITS: Mapping[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
_GLANCE = 64  # bytes that tell what a file is
# What is often given for a model: where its magic number stands, that number, what it is.
_OTHERS = (
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the model; run `git lfs pull`"),
    (0, b"PK\x03\x04", "a zip archive (torch saves such), no ONNX model; export or unpack it"),
    (0, b"\x1f\x8b", "compressed; unpack it (gunzip)"),
    (0, b"\x89HDF", "an HDF5 file (of Keras, say), no ONNX model; convert it (tf2onnx)"),
    (4, b"ORTM", "in the format of onnxruntime; give the ONNX model that it was made of"),
    (4, b"TFL3", "a model of TensorFlow Lite; convert it (tf2onnx)"),
)


def load(path: Path) -> Model:
    """The canonical model of the file at `path`.

    Raises:
        ModelError: it is no readable, valid, float ONNX model; says what to do.
    """
    proto, constants, files = _read_apart(path)
    size, digest = fingerprint(files)
    return _canonical(proto, constants, files, digest, size)


def from_proto(proto: onnx.ModelProto) -> Model:
    """The canonical model of a model in memory; `proto` itself is not edited.

    Raises:
        ModelError: as for `load`.
    """
    return _canonical(*read_apart(io.BytesIO(proto.SerializeToString())), (), "", 0)


def _canonical(
    proto: onnx.ModelProto, constants: Constants, files: Sequence[Path], sha256: str, size: int
) -> Model:
    """The canonical model of `proto` and its large `constants`, which are used up."""
    where = str(files[0]) if files else "the model"
    opset = check(proto, constants, where)
    with _sense(where):
        canonical = normalise(proto, constants, where)
        graph = canonical.proto.graph
        signature = tuple(_copied(v) for v in graph.input), tuple(_copied(v) for v in graph.output)
        batched = edit_batch(canonical.proto)
        edit_together(graph, constants)
        model = Model(
            canonical.proto,
            signature,
            batched,
            sha256,
            size,
            opset,
            tuple(files),
            canonical.notes,
            canonical.stored_type,
            canonical.norms,
        )
        check_layers(model, where)
        check_unquantized(model, where)
    return part_reads(dataclasses.replace(model, notes=(*model.notes, *_batch_notes(model))))


@contextmanager
def _sense(where: str) -> Iterator[None]:
    """Within the context, what a pass stumbles over is told as what it is: nonsense in the file.

    The checks in front let nothing through that would be dangerous, but attributes and shapes can
    contradict each other in more ways than there are checks.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        raise ModelError(
            f"{where}: its graph contradicts itself ({type(error).__name__}: {error}); export the "
            "model again, or report it with the model if onnxruntime runs it"
        ) from error


def _batch_notes(model: Model) -> tuple[str, ...]:
    if model.batch is None:
        return ()
    how = "one by one" if model.batch == 1 else f"{model.batch} at a time"
    return (f"the batch size is fixed: samples are processed {how}",)


def read(path: Path) -> tuple[onnx.ModelProto, list[Path]]:
    """The model, and the files that hold it: its own, and those of external data.

    It is not checked beyond being a model whose tensors are what they say.

    Raises:
        ModelError: the file is missing, damaged, or refers to data outside its folder.
    """
    proto, constants, files = _read_apart(path)
    check_tensors(proto, constants, str(path))
    edit_together(proto.graph, constants)
    return proto, files


def _read_apart(path: Path) -> tuple[onnx.ModelProto, Constants, list[Path]]:
    """As `read`, the large constants apart."""
    if not path.exists():
        raise ModelError(f"{path}: no such file; give the path of an ONNX model")
    if path.is_dir():
        raise ModelError(f"{path} is a directory; give the path of an ONNX model file")
    try:
        with path.open("rb") as file:
            proto, constants = read_apart(file)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (DecodeError, RuntimeError) as error:
        raise ModelError(f"{path} is {_seen_in(path)}") from error
    if not proto.ListFields():
        raise ModelError(f"{path} is empty; export the model again")
    if not proto.HasField("graph") or not proto.opset_import or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it has no graph; export the model again")
    external = [t for t in (*tensors(proto.graph), *constants.values()) if _external(t)]
    locations = sorted({_location(tensor) for tensor in external})
    for tensor in external:
        _edit_external(tensor, path)
    return proto, constants, [path, *(path.parent / location for location in locations)]


def _seen_in(path: Path) -> str:
    """What a file that is no ONNX model is instead, and what to do."""
    with path.open("rb") as file:
        start = file.read(_GLANCE)
    for offset, magic, told in _OTHERS:
        if start.startswith(magic, offset):
            return told
    return "not an ONNX model, or is cut short; export or copy it again"


def fingerprint(files: Sequence[Path]) -> tuple[int, str]:
    """Bytes and sha256 of the files, one after another."""
    digest, size = hashlib.sha256(), 0
    for path in files:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
                size += len(part)
    return size, digest.hexdigest()


def _edit_external(tensor: TensorProto, path: Path) -> None:
    """Edits an external tensor: it takes in its bytes, from inside the model's folder only."""
    folder = path.parent.resolve()
    entries = {entry.key: entry.value for entry in tensor.external_data}
    check_text((tensor.name, *entries, *entries.values()), str(path))
    location = _location(tensor)
    try:
        file = (folder / location).resolve()
        there = file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long; a loop of links; a NUL
        why = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{path}: tensor {tensor.name!r} refers to {location!r}, which is no file ({why}); "
            "copy or export the model and its data again"
        ) from error
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
        linked = (folder / location).is_symlink()
        remedy = "copy what the link leads to (cp -L)" if linked else "keep external data"
        raise ModelError(
            f"{path}: tensor {tensor.name!r} refers to {location!r}, outside the model's "
            f"folder; {remedy} beside the model"
        )
    if not there:
        raise ModelError(
            f"{path}: the external data {location!r} of tensor {tensor.name!r} is missing; "
            "copy it beside the model"
        )
    needed = -(-math.prod(tensor.dims) * item_bits(tensor, str(path)) // 8)
    offset, length = (_count(path, tensor, entries, key) for key in ("offset", "length"))
    if length not in (None, needed) or (offset or 0) + needed > file.stat().st_size:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} needs {needed} bytes at {offset or 0} of "
            f"{location!r}, which does not hold them; copy the file again"
        )
    del tensor.external_data[:]  # onnx warns of entries that it does not know
    for key, value in {**entries, "location": location}.items():
        if key in ("location", "offset", "length"):
            tensor.external_data.add(key=key, value=value)
    external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _count(path: Path, tensor: TensorProto, entries: Mapping[str, str], key: str) -> int | None:
    """An entry that counts bytes; None if it is not there."""
    entry = entries.get(key)
    if entry is not None and not entry.isdecimal():
        raise ModelError(
            f"{path}: the external data of tensor {tensor.name!r} has the {key} {entry!r}, which "
            "is no number of bytes; export the model again"
        )
    return None if entry is None else int(entry)


def _external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _location(tensor: TensorProto) -> str:
    return next((str(e.value) for e in tensor.external_data if e.key == "location"), "")


def _copied(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    return copy
