"""Finer levels for what is added up than for what layers read.

One tensor has one quantizer. Where a layer of few bits shares its data with other operators (a
residual Add, a Concat, a pooling average), a node that changes nothing goes in front of the layer:

    t -> Conv, t -> Add    becomes    t -> LeakyRelu(slope 1) -> t' -> Conv, t -> Add

so that t keeps the 8 bits that those operators take at no cost, and t' alone has the layer's. An
error of t stays in the sum through all blocks behind it; one of t' is averaged over by the layer
(ResNet-20 at W4A4: 2 dB). A LeakyRelu, as onnxruntime runs it on integers as a table of 256 entries
in any layout, where it puts float kernels in place of an Identity between two quantizers (1.32:
test_the_fork_runs_on_integers).
"""

import dataclasses
from collections.abc import Collection, Mapping

import onnx

from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.graph.roles import INTEGER_OPERATORS, is_product


def fork(model: Model, activations: int | None, layers: Collection[str] | None = None) -> Model:
    """A model that computes the same, with such a node in front of each such layer.

    The model itself where layers read 8 bits (`activations`), or floats (None); `layers` are those
    that read fewer, None: all but the first and the last.
    """
    shared = _shared(model, layers) if activations is not None and activations < 8 else {}
    if not shared:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    copies = _copies(model, shared)
    made: set[str] = set()
    del proto.graph.node[:]
    for node in model.nodes:
        tensor = shared.get(node.name)
        if tensor is not None and tensor not in made:
            proto.graph.node.append(_same(tensor, copies[tensor]))
            info = proto.graph.value_info.add()
            info.CopyFrom(model.value_infos[tensor])
            info.name = copies[tensor]
            made.add(tensor)
        proto.graph.node.append(node)
        if tensor is not None:
            proto.graph.node[-1].input[0] = copies[tensor]
    return dataclasses.replace(model, proto=proto)


def forked(model: Model, tensors: Collection[str]) -> tuple[str, ...]:
    """The layers in front of which such a node makes one of the `tensors`."""
    shared = _shared(model, model_layers := tuple(find_points(model).layers))
    copies = _copies(model, shared)
    return tuple(x for x in model_layers if x in shared and copies[shared[x]] in tensors)


def _copies(model: Model, shared: Mapping[str, str]) -> dict[str, str]:
    """Data of layers → what such a node makes of it."""
    taken = {*model.value_infos, *model.initializers, *model.producer}
    return {tensor: _free(f"{tensor}/read", taken) for tensor in dict.fromkeys(shared.values())}


def _shared(model: Model, layers: Collection[str] | None) -> dict[str, str]:
    """Layer → its data, where other operators read the same quantizer."""
    found = find_points(model)
    others = {
        found.points[name].group
        for node in model.nodes
        for name in node.input
        if name in found.points and (node.op_type in INTEGER_OPERATORS or is_product(model, node))
    }
    return {
        name: layer.data
        for name, layer in found.layers.items()
        if layer.integer
        and (not layer.edge if layers is None else name in layers)
        and layer.data in model.producer
        and layer.data in found.points
        and found.points[layer.data].group in others
    }


def _same(tensor: str, copy: str) -> onnx.NodeProto:
    return onnx.helper.make_node("LeakyRelu", [tensor], [copy], name=copy, alpha=1.0)


def _free(name: str, taken: set[str]) -> str:
    """`name`, made unlike all that are taken."""
    while name in taken:
        name += "_"
    return name
