"""Channels of a LayerNormalization made alike, so that one scale serves them all.

    LayerNorm(x; gamma, beta) W = LayerNorm(x; gamma / s, beta / s) (s W)     s > 0 of each channel

computes the same: what channels differ in moves from the activation, which has one scale, into the
weight's input channels (SmoothQuant, Xiao et al., ICML 2023; RepQ-ViT, Li et al., ICCV 2023). Only
where all that read the normalised tensor are layers with constant weights of their own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute
from onnxbrecq.graph.points import Layer, Points

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Site:
    """A LayerNormalization whose channels may be scaled.

    Attributes:
        tensor: what it makes, [..., C].
        factors: names of gamma and, if it is there, beta: [C].
        layers: all that read the tensor.
    """

    tensor: str
    factors: tuple[str, ...]
    layers: tuple[Layer, ...]


def sites(model: Model, points: Points) -> Iterator[Site]:
    """The LayerNormalizations that only layers read."""
    for node in model.nodes:
        if node.op_type != "LayerNormalization" or node.domain not in STANDARD_DOMAINS:
            continue
        tensor, factors = node.output[0], tuple(name for name in node.input[1:] if name)
        shape = model.shapes.get(tensor, ())
        readers = model.consumers.get(tensor, ())
        layers = [points.layers[reader.name] for reader in readers if reader.name in points.layers]
        if (
            shape
            and int(attribute(node, "axis", -1)) % len(shape) == len(shape) - 1  # type: ignore[call-overload]
            and all(name in model.initializers for name in factors)
            and not any(node.output[1:])
            and tensor not in model.outputs
            and len(layers) == len(readers) > 0
            and all(_may_scale(layer, tensor, points) for layer in layers)
        ):
            yield Site(tensor, factors, tuple(layers))


def _may_scale(layer: Layer, tensor: str, points: Points) -> bool:
    """Whether the layer reads the tensor's channels with a weight that is its own."""
    own = points.points[layer.weight].layers == (layer.node,)
    return own and layer.op != "Conv" and layer.data == tensor


def migrated(model: Model, site: Site, scale: Array) -> dict[str, Array]:
    """The constants of the site, by name, with its channels divided by `scale` [C]."""
    wide = scale.astype(np.float64)
    made = {n: (_exact(model, n) / wide).astype(np.float32) for n in site.factors}
    for layer in site.layers:
        rows = wide[:, None] if layer.axis == 1 else wide  # input channels
        made[layer.weight] = (_exact(model, layer.weight) * rows).astype(np.float32)
    return made


def _exact(model: Model, name: str) -> NDArray[np.float64]:
    return np.asarray(model.initializers[name], np.float64)


def with_constants(model: Model, values: Mapping[str, Array]) -> Model:
    """The model with other values of some constants; itself if there are none."""
    if not values:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return dataclasses.replace(model, proto=proto)
