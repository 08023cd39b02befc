"""How an ONNX operator becomes torch: a function of its inputs and attributes, and its versions.

A converter is a plain function. Its positional parameters are the operator's inputs (None where an
optional one is absent), its keyword parameters the attributes that it knows, in snake case. It
returns a tensor, or a tuple of all outputs that it can make; the node takes as many as it wants.
Two keywords are filled in by the caller: `n_outputs`, how many outputs the node has, and `version`,
the operator set the node is written in.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

Function = Callable[..., Tensor | tuple[Tensor, ...]]

_NEWEST = 1000


@dataclass(frozen=True)
class Converter:
    """The torch function of an operator, for the versions that it holds for."""

    function: Function
    since: int
    until: int


_CONVERTERS: dict[str, list[Converter]] = {}


def operator(name: str, *, since: int = 1, until: int = _NEWEST) -> Callable[[Function], Function]:
    """Declares the decorated function to be operator `name` from version `since` to `until`."""

    def declare(function: Function) -> Function:
        _CONVERTERS.setdefault(name, []).append(Converter(function, since, until))
        return function

    return declare


def converter(op_type: str, version: int) -> Function | None:
    """The torch function of the operator in that operator-set version, if there is one."""
    found = (c for c in _CONVERTERS.get(op_type, ()) if c.since <= version <= c.until)
    return next((c.function for c in found), None)


def operators() -> Mapping[str, tuple[Converter, ...]]:
    """Every operator with a converter of our own."""
    return {name: tuple(found) for name, found in sorted(_CONVERTERS.items())}


class UnknownAttributeError(ValueError):
    """An attribute that a converter does not know: what it means there is not known either."""


class Operator(nn.Module):
    """A node whose operator has a converter."""

    def __init__(self, function: Function, node: onnx.NodeProto, version: int) -> None:
        """Binds the node's attributes to `function`.

        Raises:
            UnknownAttributeError: the function has no parameter for an attribute.
        """
        super().__init__()
        known = inspect.signature(function).parameters
        self._function = function
        self._outputs = len(node.output)
        self._attributes = {_snake(a.name): _value(a) for a in node.attribute}
        unknown = [name for name in self._attributes if name not in known]
        if unknown:
            raise UnknownAttributeError(f"attribute {unknown[0]!r} is not known")
        given = {"n_outputs": self._outputs, "version": version}
        self._attributes.update({k: v for k, v in given.items() if k in known})

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """The node's outputs."""
        made = self._function(*inputs, **self._attributes)
        return made[: self._outputs] if isinstance(made, tuple) else (made,)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _value(item: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return value
