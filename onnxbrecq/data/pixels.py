"""Pixels of many images in a file without a name: written in any order, read as they are wanted.

The process holds none of them, the system's page cache as many as it likes; nothing is left behind
however the process ends.
"""

import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Index
from onnxbrecq.errors import DataError

Pixels = NDArray[np.uint8]


class PixelFile:
    """Images of one size, uint8 [N, H, W, 3]."""

    def __init__(self, count: int, image: Sequence[int], folder: Path | None) -> None:
        """Room for `count` images of shape `image`; `folder` None: that of temporary files.

        Raises:
            DataError: there is no writing in the folder.
        """
        self.shape = (count, *image)
        self._bytes = prod(image)
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 -- stays open
        except OSError as error:
            raise self._unwritable(error) from error
        finalize(self, self._file.close)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Index) -> Pixels:
        """Some images, in memory of their own."""
        chosen = np.arange(len(self))[index]
        found = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for row, place in zip(found, chosen, strict=True):
            self._read(row, int(place) * self._bytes)
        return found

    def write(self, place: int, image: Pixels) -> None:
        """Puts an image at its place; threads may do so side by side.

        Raises:
            DataError: the disk is full.
        """
        rest, offset = np.ascontiguousarray(image).data.cast("B"), place * self._bytes
        try:
            while rest:
                done = os.pwrite(self._file.fileno(), rest, offset)
                rest, offset = rest[done:], offset + done
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self, row: Pixels, offset: int) -> None:
        rest = row.data.cast("B")
        while rest:
            done = os.preadv(self._file.fileno(), [rest], offset)
            if not done:
                raise DataError("the decoded images are not there any more; run the command again")
            rest, offset = rest[done:], offset + done

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._folder or tempfile.gettempdir()}: decoded images cannot be written "
            f"({error.strerror or error}); free some space, give fewer images or another --work-dir"
        )
