"""Arrays from .npy and .npz files that nobody vouched for.

Nothing is unpickled. Before anything is allocated, the array's header says how many bytes it will
take; more than `memory_limit()` are refused, and so is a header that declares more than its file
holds.
"""

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxbrecq.errors import DataError

Array = NDArray[np.generic]

_MOST_BYTES = 16 * 2**30
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


def read_npy(path: Path) -> Array:
    """The array in a .npy file.

    Raises:
        DataError: the file is damaged, pickled, or too large.
    """
    try:
        with path.open("rb") as stream:
            check_memory(_declared(stream, path.stat().st_size, str(path)), str(path))
            stream.seek(0)
            return np.asarray(npy.read_array(stream, allow_pickle=False))
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_npz(path: Path, wanted: Collection[str]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Those of the `wanted` arrays that an .npz file holds, and the names of all that it holds.

    Raises:
        DataError: the file is damaged, a wanted array is pickled, or they are too large.
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
                    needed += _declared(stream, member.file_size, f"{path}: array {name!r}")
            check_memory(needed, str(path))
            return {name: _read(archive, chosen[name]) for name in chosen}, tuple(members)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def _declared(stream: IO[bytes], size: int, origin: str) -> int:
    """Bytes of the array whose .npy stream of `size` bytes starts here; reads its header only."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(stream)
    else:
        raise DataError(f"{origin}: .npy version {version} is not supported; save it as 1.0")
    if dtype.hasobject:
        raise DataError(
            f"{origin}: holds pickled objects, which are never loaded; save a plain numeric array"
        )
    needed = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed > size:
        raise DataError(
            f"{origin}: declares shape {shape} of {dtype}, but the file does not hold that many "
            "bytes; save it again"
        )
    return needed


def _damaged(path: Path, error: BaseException) -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: cannot be read: {error.strerror}")
    if path.suffix.lower() == ".npz":
        how, kind = "np.savez", "an .npz archive"
    else:
        how, kind = "np.save", "a .npy array"
    return DataError(f"{path}: cannot be read as {kind} ({error}); write it again with {how}")
