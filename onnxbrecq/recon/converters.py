"""Converters of our own, where onnx2torch has none or one that torch has outgrown.

A converter takes the node and the constants, and returns a module of the node's first input, or
None where the node is not of the form that it knows.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor, nn

Constants = Mapping[str, NDArray[np.generic]]
Converter = Callable[[onnx.NodeProto, Constants], nn.Module | None]


class Slice(nn.Module):
    """Slices with constant bounds and positive steps."""

    def __init__(self, slices: Mapping[int, slice]) -> None:
        """Args: slices: axis → slice."""
        super().__init__()
        self._slices = dict(slices)

    def forward(self, value: Tensor) -> Tensor:
        """The part of `value` within the slices."""
        index = [slice(None)] * value.ndim
        for axis, part in self._slices.items():
            index[axis] = part
        return value[tuple(index)]


def _slice(node: onnx.NodeProto, constants: Constants) -> nn.Module | None:
    """Slice-10 and later. (onnx2torch 1.5.15 indexes with a list, which torch deprecates.)"""
    names = [name for name in node.input[1:] if name]
    if len(node.input) < 3 or not all(name in constants for name in names):
        return None
    values = [constants[name].reshape(-1).tolist() if name else None for name in node.input[1:]]
    starts, ends, axes, steps = (*values, None, None)[:4]
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    if min(steps) < 1:
        return None
    return Slice(
        {a: slice(b, e, s) for a, b, e, s in zip(axes, starts, ends, steps, strict=True)}
    )


CONVERTERS: Mapping[str, Converter] = {"Slice": _slice}
