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
    starts, ends, axes, steps = (_integers(node, constants, i) for i in range(1, 5))
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    if min(steps) < 1:
        return None
    return Slice({a: slice(*part) for a, *part in zip(axes, starts, ends, steps, strict=True)})


def _integers(node: onnx.NodeProto, constants: Constants, position: int) -> list[int]:
    """The constant input at `position`; empty if absent."""
    name = node.input[position] if position < len(node.input) else ""
    return [int(value) for value in np.asarray(constants[name]).reshape(-1)] if name else []


CONVERTERS: Mapping[str, Converter] = {"Slice": _slice}
