"""Arrays from .npy and .npz files that nobody vouched for.

Nothing is unpickled. Before anything is allocated, the array's header says how many bytes it will
take; more than `memory_limit()` are refused, and so is a header that declares more than its file
holds. Large arrays stay in their file and are read by rows; those that are compressed there are
unpacked into another.
"""

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Samples
from onnxbrecq.data.rows import GivenRows, OwnRows
from onnxbrecq.errors import DataError

Array = NDArray[np.generic]

_MOST_BYTES = 16 * 2**30
_LARGE = 2**26  # bytes: larger arrays are read by rows
_CHUNK = 2**22
_LENGTHS = 26  # of name and extra field: where they stand in the header of a zip's member
_DAMAGE = (
    EOFError,
    KeyError,
    MemoryError,  # a header nested so deeply that Python's parser gives up
    NotImplementedError,  # a zip member compressed in a way Python does not know
    OSError,
    RuntimeError,  # an encrypted zip member
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class _Header(NamedTuple):
    """What a .npy stream says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def stays(self) -> bool:
        """Whether the array stays in its file."""
        plain = self.dtype.kind in "biuf" and self.dtype.isnative and not self.fortran
        return plain and self.nbytes > _LARGE


def memory_limit() -> int:
    """The bytes that one data set may take: 16 GiB, or the machine's memory if that is less."""
    try:
        return min(_MOST_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # only Unix tells
        return _MOST_BYTES


def check_memory(needed: int, origin: str) -> None:
    """Refuses data that would not fit into memory.

    Raises:
        DataError: `needed` bytes are more than `memory_limit()`.
    """
    limit = memory_limit()
    if needed > limit:
        raise DataError(
            f"{origin}: its arrays would take {needed / 2**30:.1f} GiB, more than the "
            f"{limit / 2**30:.1f} GiB allowed here; give fewer samples"
        )


def read_npy(path: Path) -> Samples:
    """The array in a .npy file; a large one stays there.

    Raises:
        DataError: the file is damaged, pickled, or too large.
    """
    try:
        with path.open("rb") as stream:
            header = _header(stream, path.stat().st_size, str(path))
            check_memory(header.nbytes, str(path))
            if header.stays:
                return GivenRows(path, header.shape, header.dtype, offset=stream.tell())
            stream.seek(0)
            return np.asarray(npy.read_array(stream, allow_pickle=False))
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_npz(
    path: Path, wanted: Collection[str], folder: Path | None = None
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """Those of the `wanted` arrays that an .npz file holds, and the names of all that it holds.

    Large ones stay there, or are unpacked into a file of `folder` (None: that of temporary files).

    Raises:
        DataError: the file is damaged, a wanted array is pickled, or they are too large; the disk
            is full.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(".npy"): member for member in archive.infolist()
            }
            chosen = {name: members[name] for name in wanted if name in members}
            needed = 0
            for name, member in chosen.items():
                with archive.open(member) as stream:
                    needed += _header(stream, member.file_size, f"{path}: array {name!r}").nbytes
            check_memory(needed, str(path))
            found = {name: _member(path, archive, chosen[name], folder) for name in chosen}
            return found, tuple(members)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def whole(samples: Samples) -> Array:
    """All of them, in memory."""
    return samples if isinstance(samples, np.ndarray) else samples[slice(None)]


def _member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path | None
) -> Samples:
    """The array of a member, whose checksum holds."""
    with archive.open(member) as stream:
        header = _header(stream, member.file_size, str(path))
        if header.stays and member.compress_type == zipfile.ZIP_STORED:
            start = _content(path, member) + stream.tell()
            there = 0
            while part := stream.read(_CHUNK):  # raises BadZipFile at the end of another checksum
                there += len(part)
            if there < header.nbytes:
                raise EOFError("it ends before its last value")
            return GivenRows(path, header.shape, header.dtype, offset=start)
        if header.stays:
            return _unpacked(stream, header, folder)
    with archive.open(member) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def _unpacked(stream: IO[bytes], header: _Header, folder: Path | None) -> OwnRows:
    """The rest of the stream in a file."""
    rows, done = OwnRows(header.shape, header.dtype, folder), 0
    while part := stream.read(min(_CHUNK, header.nbytes - done)):
        rows.put(part, done)
        done += len(part)
    if done < header.nbytes:
        raise EOFError("it ends before its last value")
    return rows


def _content(path: Path, member: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of the member begin: behind its header, name and extra field."""
    with path.open("rb") as file:
        file.seek(member.header_offset + _LENGTHS)
        name, extra = struct.unpack("<HH", file.read(4))
    return int(member.header_offset + _LENGTHS + 4 + name + extra)


def _header(stream: IO[bytes], size: int, origin: str) -> _Header:
    """The header of the .npy stream of `size` bytes that starts here; reads no further."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise DataError(f"{origin}: .npy version {version} is not supported; save it as 1.0")
    header = _Header(tuple(shape), dtype, bool(fortran))
    if dtype.hasobject:
        raise DataError(
            f"{origin}: holds pickled objects, which are never loaded; save a plain numeric array"
        )
    if min(shape, default=0) < 0 or header.nbytes > size - stream.tell():
        raise DataError(
            f"{origin}: declares shape {shape} of {dtype}, but the file does not hold that many "
            "bytes; save it again"
        )
    return header


def _damaged(path: Path, error: BaseException) -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: cannot be read: {error.strerror}")
    if path.suffix.lower() == ".npz":
        how, kind = "np.savez", "an .npz archive"
    else:
        how, kind = "np.save", "a .npy array"
    return DataError(f"{path}: cannot be read as {kind} ({error}); write it again with {how}")
