"""Samples for a model: one array per graph input, samples along axis 0."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Feed = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Calibration or evaluation samples, checked against a model.

    Attributes:
        inputs: graph input name → array [samples, ...].
        labels: int64 [samples], or None.
        origin: what the user called it, for messages and reports.
    """

    inputs: Feed
    labels: NDArray[np.int64] | None = None
    origin: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> Iterator[Feed]:
        """Consecutive feeds of at most `size` samples."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def head(self, count: int) -> "Dataset":
        """The first `count` samples."""
        labels = None if self.labels is None else self.labels[:count]
        return Dataset({n: a[:count] for n, a in self.inputs.items()}, labels, self.origin)
