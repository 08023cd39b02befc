"""What is made in float, and read in float besides, is quantized for its layers alone.

One tensor has one quantizer, for all its readers. Where only some of them need one, an Identity
parts them:

    t -> MatMul, t -> Add    becomes    t -> Identity -> t' -> MatMul, t -> Add

so that t stays as it was made: the sum that runs past a transformer's block, say, which a
LayerNormalization made and a float Add reads. An error there would stay in the sum for all blocks
to come. An Identity in front of a quantizer goes when a runtime loads the model.
"""

import dataclasses

import onnx

from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points, find_points


def part_reads(model: Model) -> Model:
    """A model that computes the same, with an Identity in front of such layers; itself if none."""
    found = find_points(model)
    parted = {
        layer.data for layer in found.layers.values() if _half_float(model, found, layer.data)
    }
    if not parted:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    copies = {tensor: _free(f"{tensor}/quantized", model) for tensor in parted}
    del proto.graph.node[:]
    for node in model.nodes:
        proto.graph.node.append(node)
        if node.name in found.layers and node.input[0] in parted:
            proto.graph.node[-1].input[0] = copies[node.input[0]]
        for tensor in parted.intersection(node.output):
            copy = copies[tensor]
            proto.graph.node.append(onnx.helper.make_node("Identity", [tensor], [copy], name=copy))
            info = proto.graph.value_info.add()
            info.CopyFrom(model.value_infos[tensor])
            info.name = copy
    return dataclasses.replace(model, proto=proto)


def _half_float(model: Model, found: Points, tensor: str) -> bool:
    """Whether the tensor is made in float, and read by layers and in float, or given out."""
    floats = {node.name for node in found.float_nodes}
    maker, readers = model.producer.get(tensor), model.consumers.get(tensor, ())
    return (
        maker is not None
        and maker.name in floats
        and (tensor in model.outputs or any(node.name in floats for node in readers))
        and all(node.name in found.layers or node.name in floats for node in readers)
    )


def _free(name: str, model: Model) -> str:
    """`name`, made unlike all that the model has."""
    while name in model.value_infos or name in model.initializers or name in model.producer:
        name += "_"
    return name
