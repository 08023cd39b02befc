"""Rows of an array in a file: read as they are wanted, never all in memory.

The process holds none of them, the system's page cache as many as it likes. A file of our own has
no name: nothing is left behind however the process ends.
"""

import os
import tempfile
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Index
from onnxbrecq.errors import DataError


class Rows:
    """An array [N, ...] that lies in an open file, in C order from `offset` on."""

    def __init__(
        self, file: FileIO, shape: tuple[int, ...], dtype: np.dtype[Any], *, offset: int = 0
    ) -> None:
        """The file is closed with the last reference to the rows."""
        self.shape = shape
        self.dtype = dtype
        self._file = file
        self._offset = offset
        self._bytes = prod(shape[1:]) * dtype.itemsize
        finalize(self, file.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Some rows, in memory of their own.

        Raises:
            DataError: they cannot be read.
        """
        chosen = np.arange(len(self))[index]
        found = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        if isinstance(index, slice) and index.step in (None, 1):
            self._read(found, int(chosen[0]) if len(chosen) else 0)
        else:
            for i, place in enumerate(chosen):
                self._read(found[i : i + 1], int(place))
        return found

    def _read(self, part: NDArray[Any], place: int) -> None:
        rest = part.reshape(-1).view(np.uint8).data
        offset = self._offset + place * self._bytes
        try:
            while rest:
                done = os.preadv(self._file.fileno(), [rest], offset)
                if not done:
                    raise DataError(f"{self._what()} is not there any more; run the command again")
                rest, offset = rest[done:], offset + done
        except OSError as error:
            raise DataError(f"{self._what()} cannot be read ({error.strerror or error})") from error

    def _what(self) -> str:
        return "a part of the samples' temporary file"


class GivenRows(Rows):
    """Rows in a file of the user's, which has to stay as it is."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, offset: int
    ) -> None:
        """Opens the file.

        Raises:
            OSError: it cannot be opened.
        """
        super().__init__(FileIO(path), shape, dtype, offset=offset)
        self._path = path
        self._stamp = self._stamped()

    def _read(self, part: NDArray[Any], place: int) -> None:
        super()._read(part, place)
        if self._stamped() != self._stamp:
            raise DataError(f"{self._path}: changed while it was being read; run the command again")

    def _stamped(self) -> tuple[int, int]:
        """What changes with the file's contents: its size, and when it was written."""
        seen = os.fstat(self._file.fileno())
        return seen.st_size, seen.st_mtime_ns

    def _what(self) -> str:
        return f"{self._path}: a part of it"


class OwnRows(Rows):
    """Rows in a file without a name, written in any order."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path | None) -> None:
        """Room for them; `folder` None: that of temporary files.

        Raises:
            DataError: there is no writing in the folder.
        """
        self._folder = folder
        try:
            file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 -- stays open
        except OSError as error:
            raise self._unwritable(error) from error
        assert isinstance(file, FileIO)
        super().__init__(file, shape, dtype)

    def write(self, place: int, row: NDArray[Any]) -> None:
        """Puts a row at its place; threads may do so side by side.

        Raises:
            DataError: the disk is full.
        """
        self.put(row.tobytes(), place * self._bytes)

    def put(self, part: bytes, offset: int) -> None:
        """Puts bytes of the rows at their place.

        Raises:
            DataError: the disk is full.
        """
        rest = memoryview(part)
        try:
            while rest:
                done = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[done:], offset + done
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._folder or tempfile.gettempdir()}: samples cannot be written "
            f"({error.strerror or error}); free some space, give fewer samples or another "
            "--work-dir"
        )
