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

from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, node_inputs
from onnxbrecq.graph.passes.values import integers, number
from onnxbrecq.graph.points import Points
from onnxbrecq.graph.roles import carried
from onnxbrecq.graph.weights import Layer

Array = NDArray[np.float32]

_MOVES = ("Gather", "Pad", "Reshape", "Slice", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Site:
    """A LayerNormalization whose channels may be scaled.

    Attributes:
        tensor: what it makes, [..., C].
        factors: names of gamma and, if it is there, beta: [C].
        layers: all that read its channels.
    """

    tensor: str
    factors: tuple[str, ...]
    layers: tuple[Layer, ...]


def sites(model: Model, points: Points) -> Iterator[Site]:
    """The LayerNormalizations that only layers read, whatever moves their rows in between."""
    for node in model.nodes:
        if node.op_type != "LayerNormalization" or node.domain not in STANDARD_DOMAINS:
            continue
        factors = tuple(name for name in node.input[1:] if name)
        rank = len(model.shapes.get(node.output[0], ()))
        last = rank > 0 and _axis(node, rank) == rank - 1
        if last and not any(node.output[1:]) and all(n in model.initializers for n in factors):
            layers = _layers_behind(model, points, node.output[0])
            if layers:
                yield Site(node.output[0], factors, layers)


def _layers_behind(model: Model, points: Points, tensor: str) -> tuple[Layer, ...]:
    """The layers that read the tensor's channels, with weights of their own; none if others do."""
    channels, reached = model.shapes[tensor][-1], {tensor}
    tied = points.tied({table.weight for table in points.tables.values()})
    found = []
    for node in model.nodes:
        data = reached.intersection(node_inputs(node))
        if not data:
            continue
        layer = points.layers.get(node.name)
        if layer is not None and layer.data in data and layer.op in ("Gemm", "MatMul"):
            if points.points[layer.weight].layers != (layer.node,) or layer.weight in tied:
                return ()
            found.append(layer)
        elif _moves_rows(model, node, reached, channels):
            reached.update(node.output)
        else:
            return ()
    return () if reached.intersection(model.outputs) else tuple(found)


def _moves_rows(
    model: Model, node: onnx.NodeProto, reached: set[str], channels: int | None
) -> bool:
    """Whether what the node makes are rows of its data, whole and the channels in their order."""
    shapes = [model.shapes.get(name, ()) for name in (node.input[0], *node.output)]
    if not all(shape and shape[-1] == channels for shape in shapes) or channels is None:
        return False
    rank = len(shapes[0])
    if node.op_type == "Concat":
        return reached.issuperset(node.input) and _axis(node, rank) != rank - 1
    if node.op_type == "Transpose":
        return integers(node, "perm")[-1:] == [rank - 1]
    if node.op_type == "Slice" and len(node.input) > 4:  # it may turn the order of channels
        steps = model.initializers.get(node.input[4])
        return steps is not None and bool((np.asarray(steps, np.int64) > 0).all())
    if node.op_type == "Gather" and _axis(node, rank, 0) == rank - 1:
        return False
    return node.op_type in _MOVES and carried(model, node)


def _axis(node: onnx.NodeProto, rank: int, default: int = -1) -> int:
    return int(number(node, "axis", default)) % rank


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
