"""Samples for a model: one array per graph input, samples along axis 0."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.boxes import Boxes
from onnxbrecq.errors import DataError

Feed = Mapping[str, NDArray[np.generic]]
Index = slice | NDArray[np.intp]


class Samples(Protocol):
    """All samples of a tensor, [N, ...], as they are read: a numpy array, or what lies in a file.

    What a slice gives is only looked at; an index array gives a copy.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Index, /) -> NDArray[Any]:
        """Some samples."""


@dataclass(frozen=True, eq=False)
class Picked:
    """Some samples of a tensor, read where they lie: the i-th is that at `index[i]`."""

    samples: Samples
    index: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...]."""
        return (len(self.index), *self.samples.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.samples.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Index) -> NDArray[Any]:
        return self.samples[self.index[index]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Calibration or evaluation samples, checked against a model.

    Attributes:
        inputs: graph input name → array [samples, ...].
        labels: int64 [samples], or None.
        origin: what the user called it, for messages and reports.
        boxes: of detection data, or None.
    """

    inputs: Mapping[str, Samples]
    labels: NDArray[np.int64] | None = None
    origin: str = ""
    boxes: Boxes | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of memory: of the inputs that are arrays."""
        return sum(a.nbytes for a in self.inputs.values() if isinstance(a, np.ndarray))

    def batches(self, size: int, most: int | None = None) -> Iterator[Feed]:
        """Consecutive feeds of at most `size` samples; of the first `most`, or of all."""
        count = len(self) if most is None else min(most, len(self))
        for start in range(0, count, size):
            yield self.part(slice(start, min(start + size, count)))

    def part(self, index: Index) -> Feed:
        """A feed of some samples."""
        return {name: array[index] for name, array in self.inputs.items()}

    def whole(self, batch: int | None) -> "Dataset":
        """All samples but the last ones that are no whole batch of exactly `batch`.

        Raises:
            DataError: there is no whole batch.
        """
        if batch and len(self) < batch:
            raise DataError(
                f"{self.origin or 'the data'}: holds {len(self)} samples, but the model takes "
                f"exactly {batch} at a time; give at least {batch}"
            )
        count = whole(len(self), batch)
        return self if count == len(self) else self.head(count)

    def head(self, count: int) -> "Dataset":
        """The first `count` samples."""
        labels = None if self.labels is None else self.labels[:count]
        boxes = None if self.boxes is None else self.boxes.head(count)
        inputs = {name: _first(samples, count) for name, samples in self.inputs.items()}
        return Dataset(inputs, labels, self.origin, boxes)


def _first(samples: Samples, count: int) -> Samples:
    """The first `count` of them; what is no array is not read."""
    if isinstance(samples, np.ndarray):
        return samples[:count]
    return Picked(samples, np.arange(min(count, len(samples))))


def whole(most: int, batch: int | None) -> int:
    """The number of samples, at most `most`, that are whole batches of `batch`; at least one."""
    return max(most // (batch or 1), 1) * (batch or 1)
