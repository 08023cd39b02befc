"""How much of a model's work runs in integer kernels, by what onnxruntime really executes."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.runtime.kernels import ExecutedNode, integer_kernels


@dataclass(frozen=True)
class Coverage:
    """The share of the weight layers' multiply-accumulates in integer kernels, from 0 to 1, and
    the names of the layers that run in float.
    """

    integer_macs_fraction: float
    float_nodes: tuple[str, ...]


def coverage(reference: Model, nodes: Sequence[ExecutedNode]) -> Coverage:
    """What of the weight layers of `reference` the executed `nodes` compute with integers.

    A layer is found by its name; one that cannot be found counts as float.
    """
    layers = weight_layers(reference)
    kernels = integer_kernels([layer.name for layer in layers], nodes)
    total = sum(layer.macs for layer in layers)
    integer = sum(layer.macs for layer in layers if kernels[layer.name])
    return Coverage(
        integer_macs_fraction=integer / total if total else 0.0,
        float_nodes=tuple(layer.name for layer in layers if not kernels[layer.name]),
    )
