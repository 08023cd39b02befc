"""Attributes of nodes, as the type that they have."""

from collections.abc import Sequence

import onnx

from onnxbrecq.graph.model import attribute


def number(node: onnx.NodeProto, name: str, default: float) -> float:
    """An attribute that is a number."""
    value = attribute(node, name, default)
    assert isinstance(value, int | float)
    return value


def integers(node: onnx.NodeProto, name: str) -> list[int]:
    """An attribute that is a list of integers; empty if it is not there."""
    value = attribute(node, name, ())
    assert isinstance(value, Sequence)
    return [int(item) for item in value]
