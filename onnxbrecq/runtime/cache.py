"""Activations between blocks: kept only as long as a later block reads them, in bounded memory.

What is alive in memory never exceeds a storage's limit by its own choice: a tensor that does not
fit goes to a file, whole, and is mapped for the length of each read, as pages that stayed mapped
would count as the process's memory. The file has no name, so that nothing is left behind however
the process ends. Where a tensor lies changes nothing about its values: all are float32, exact.

Feature maps lie channels last, as convolutions in torch want them, and come out as views with
their axes in order.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.errors import OutputError

if TYPE_CHECKING:  # emission needs sessions, but no data
    from onnxbrecq.data.dataset import Dataset, Index, Samples

Array = NDArray[Any]

_ROWS = 32  # samples moved at a time


class ActivationCache:
    """Tensor name → all samples of it."""

    def __init__(self, tensors: Mapping[str, Samples]) -> None:
        self._tensors = dict(tensors)

    def select(self, names: Iterable[str]) -> dict[str, Samples]:
        """The named tensors."""
        return {name: self._tensors[name] for name in names}

    def advance(self, made: Mapping[str, Samples], needed: Iterable[str]) -> None:
        """Takes in what a block made and lets go of what nobody needs any more."""
        keep = set(needed)
        self._tensors = {n: a for n, a in {**self._tensors, **made}.items() if n in keep}


class Stored:
    """Samples of one tensor, [N, ...]: appended batch by batch, read by slice or by index array."""

    def __init__(self, room: Array, count: int = 0, file: FileIO | None = None) -> None:
        """The first `count` samples of `room`; more go behind them, or to the `file`."""
        self.dtype: np.dtype[Any] = room.dtype
        self._memory = _channels_last(room)
        self._count = count
        self._file = file

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...]."""
        return (self._count, *_channels_first(self._memory).shape[1:])

    @property
    def held(self) -> int:
        """Bytes of memory."""
        return self._memory.nbytes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Index) -> Array:
        if self._file is None or not self._count:
            part = self._memory[: self._count][index]
        else:
            shape = (self._count, *self._memory.shape[1:])
            part = np.asarray(np.memmap(self._file, self.dtype, "r", shape=shape))[index]
            part = part if part.flags.owndata else part.copy()
        return _channels_first(part)

    def append(self, part: Array) -> None:
        """Takes in the next samples.

        Raises:
            ValueError: they are not of the shape or type of the others.
            OSError: the file cannot be written.
        """
        if not part.ndim or (part.shape[1:], part.dtype) != (self.shape[1:], self.dtype):
            raise ValueError(f"{part.dtype} {part.shape}: no samples of {self.dtype} {self.shape}")
        values = _channels_last(part)
        end = self._count + len(part)
        if self._file is None:
            self._grow(end)
            self._memory[self._count : end] = values
        else:
            _write(self._file, values)
        self._count = end

    def _grow(self, rows: int) -> None:
        """Room for `rows` samples: there may be more of them than were announced."""
        if rows > len(self._memory):
            room = np.empty((2 * rows - self._count, *self._memory.shape[1:]), self.dtype)
            self._memory = np.concatenate([self._memory[: self._count], room])


class Storage:
    """Where samples are kept: in memory up to a limit, beyond it in files of a folder."""

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        """At most `limit` bytes (None: all there is); `folder` None: that of temporary files."""
        self._limit = limit
        self._folder = folder
        self._alive: WeakSet[Stored] = WeakSet()

    def new(self, rows: int, sample: tuple[int, ...], dtype: np.dtype[Any]) -> Stored:
        """A place for `rows` samples of that shape.

        Raises:
            OutputError: there is no writing in the folder.
        """
        room = _empty((rows, *sample), dtype)
        return self._held(Stored(room)) if self._fits(room) else self._filed(room[:0])

    def kept(self, data: Dataset) -> Dataset:
        """The data: its arrays as they are where they fit, else in files, so that they may go.

        What is no array lies elsewhere already, and stays there.

        Raises:
            OutputError: the disk is full.
        """
        inputs = {
            name: self._kept(samples) if isinstance(samples, np.ndarray) else samples
            for name, samples in data.inputs.items()
        }
        return dataclasses.replace(data, inputs=inputs)

    def _kept(self, array: Array) -> Stored:
        if self._fits(array):
            return self._held(Stored(array, len(array)))
        found = self._filed(_empty((0, *array.shape[1:]), array.dtype))
        for start in range(0, len(array), _ROWS):
            self.append(found, array[start : start + _ROWS])
        return found

    def _fits(self, room: Array) -> bool:
        """Whether `room` may lie in memory; what no file can hold has to."""
        used = sum(samples.held for samples in self._alive)
        fits = self._limit is None or used + room.nbytes <= self._limit
        return fits or not room.nbytes or room.dtype.kind in "OU"

    def _held(self, samples: Stored) -> Stored:
        self._alive.add(samples)
        return samples

    def append(self, samples: Stored, part: Array) -> None:
        """Appends `part` to `samples`.

        Raises:
            OutputError: the disk is full.
            ValueError: `part` is not of the samples' shape or type.
        """
        try:
            samples.append(part)
        except OSError as error:
            raise self._unwritable(error) from error

    def _filed(self, room: Array) -> Stored:
        """Samples in a file without a name, which is gone when nobody holds them any more."""
        try:
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 -- stays open
        except OSError as error:
            raise self._unwritable(error) from error
        assert isinstance(file, FileIO)
        found = Stored(room, file=file)
        finalize(found, file.close)
        return found

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._folder or tempfile.gettempdir()}: activations cannot be written "
            f"({error.strerror or error}); free some space, give another --work-dir, fewer samples "
            "or more --max-memory"
        )


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Room for samples, of which nothing is taken before it is written to."""
    if len(shape) != 4:
        return np.empty(shape, dtype)
    return _channels_first(np.empty((shape[0], *shape[2:], shape[1]), dtype))


def _channels_last(values: Array) -> Array:
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


def _channels_first(values: Array) -> Array:
    return values.transpose(0, 3, 1, 2) if values.ndim == 4 else values


def _write(file: FileIO, values: Array) -> None:
    """All of `values`: an unbuffered file may take less than it is given."""
    rest = np.ascontiguousarray(values).data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]
