"""Activations between blocks, kept only as long as a later block reads them."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class ActivationCache:
    """Tensor name → all samples of it, along axis 0."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = dict(tensors)

    def select(self, names: Iterable[str]) -> dict[str, Array]:
        """The named tensors."""
        return {name: self._tensors[name] for name in names}

    def advance(self, made: Mapping[str, Array], needed: Iterable[str]) -> None:
        """Takes in what a block made and lets go of what nobody needs any more."""
        keep = set(needed)
        self._tensors = {n: a for n, a in {**self._tensors, **made}.items() if n in keep}
