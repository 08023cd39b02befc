"""How much of a model's work runs in integer kernels, by what a runtime really executes."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model


@dataclass(frozen=True)
class Coverage:
    """The share of the weight layers' multiply-accumulates in integer kernels, from 0 to 1, and
    the names of the layers that run in float.
    """

    integer_macs_fraction: float
    float_nodes: tuple[str, ...]


def coverage(reference: Model, kernels: Mapping[str, object]) -> Coverage:
    """What of the weight layers of `reference` is computed with integers.

    `kernels`: the name of a layer → its integer kernel; false or absent: it counts as float.
    """
    layers = weight_layers(reference)
    total = sum(layer.macs for layer in layers)
    integer = sum(layer.macs for layer in layers if kernels.get(layer.name))
    return Coverage(
        integer_macs_fraction=integer / total if total else 0.0,
        float_nodes=tuple(layer.name for layer in layers if not kernels.get(layer.name)),
    )
