"""Activations between blocks: kept only as long as a later block reads them, in bounded memory.

What is alive in memory never exceeds a storage's limit by its own choice: a tensor that does not
fit goes to a file, whole, and is mapped for the length of each read, as pages that stayed mapped
would count as the process's memory. The file has no name, so that nothing is left behind however
the process ends. Where a tensor lies changes nothing about its values: all are float32, exact.

Feature maps lie channels last, as convolutions in torch want them, and come out as views with
their axes in order.
"""

import tempfile
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any
from weakref import WeakSet, finalize

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Index, Samples
from onnxbrecq.errors import OutputError

Array = NDArray[Any]


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

    def __init__(
        self, rows: int, sample: tuple[int, ...], dtype: np.dtype[Any], file: FileIO | None
    ) -> None:
        """Room for `rows` samples of that shape, in memory or in a `file`; more may follow."""
        self.dtype = dtype
        self._sample = sample
        self._count = 0
        self._file = file
        order = (*sample[1:], sample[0]) if len(sample) == 3 else sample
        self._memory: Array = np.empty((rows if file is None else 0, *order), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...]."""
        return (self._count, *self._sample)

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
        return part.transpose(0, 3, 1, 2) if part.ndim == 4 else part

    def append(self, part: Array) -> None:
        """Takes in the next samples.

        Raises:
            ValueError: they are not of the shape or type of the others.
            OSError: the file cannot be written.
        """
        if part.ndim == 0 or part.shape[1:] != self._sample or part.dtype != self.dtype:
            raise ValueError(f"{part.dtype} {part.shape}: no samples of {self.dtype} {self.shape}")
        values = part.transpose(0, 2, 3, 1) if part.ndim == 4 else part
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
        size = rows * int(np.prod(sample, dtype=np.int64)) * dtype.itemsize
        fits = self._limit is None or sum(s.held for s in self._alive) + size <= self._limit
        in_memory = fits or size == 0 or dtype.hasobject
        file = None if in_memory else self._file()
        found = Stored(rows, sample, dtype, file)
        if file is not None:
            finalize(found, file.close)
        self._alive.add(found)
        return found

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

    def _file(self) -> FileIO:
        """A file without a name, gone when nobody holds it any more."""
        try:
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 -- stays open
        except OSError as error:
            raise self._unwritable(error) from error
        assert isinstance(file, FileIO)
        return file

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._folder or tempfile.gettempdir()}: activations cannot be written "
            f"({error.strerror or error}); free some space, give another --work-dir, fewer samples "
            "or more --max-memory"
        )


def _write(file: FileIO, values: Array) -> None:
    """All of `values`: an unbuffered file may take less than it is given."""
    rest = np.ascontiguousarray(values).data.cast("B")
    while rest:
        rest = rest[file.write(rest) :]
