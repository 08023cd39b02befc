"""Constants as arrays."""

from collections.abc import Iterator, Mapping
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper


class Arrays(Mapping[str, NDArray[np.generic]]):
    """The values of tensors by name: read when asked for, in memory as long as somebody holds them.

    The tensors may change; one that goes must be forgotten.
    """

    def __init__(self, tensors: Mapping[str, TensorProto]) -> None:
        """Of `tensors` by name."""
        self._tensors = tensors
        self._held = WeakValueDictionary[str, NDArray[np.generic]]()

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        tensor = self._tensors[name]
        array = self._held.get(name)
        if array is None:
            array = self._held[name] = numpy_helper.to_array(tensor)
        return array

    def forget(self, name: str) -> None:
        """Another tensor may get the name."""
        self._held.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
