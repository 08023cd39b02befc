"""A block of a model as a model of its own."""

import onnx

from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.model import Model, node_inputs


def extract(model: Model, block: Block) -> Model:
    """The sub-model with the block's nodes, inputs and outputs; names unchanged."""
    names = set(block.nodes)
    nodes = [node for node in model.nodes if node.name in names]
    return submodel(model, nodes, block.inputs, block.outputs)


def submodel(
    model: Model,
    nodes: list[onnx.NodeProto],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> Model:
    """The model of `nodes` (topological order) between the tensors `inputs` and `outputs`."""
    reads = {name for node in nodes for name in node_inputs(node)} | set(outputs)
    inside = reads | {name for node in nodes for name in node.output}
    graph = onnx.helper.make_graph(
        nodes,
        "block",
        [_value_info(model, name) for name in inputs],
        [_value_info(model, name) for name in outputs],
        [tensor for tensor in model.proto.graph.initializer if tensor.name in reads],
        value_info=[
            value for value in model.proto.graph.value_info
            if value.name in inside and value.name not in (*inputs, *outputs)
        ],
    )  # fmt: skip
    proto = onnx.helper.make_model(
        graph, opset_imports=model.proto.opset_import, ir_version=model.proto.ir_version
    )
    return Model(proto, (tuple(graph.input), tuple(graph.output)), model.batched)


def _value_info(model: Model, name: str) -> onnx.ValueInfoProto:
    known = model.value_infos.get(name)
    if known is not None:
        return known
    # A tensor that shape inference could not type (behind a custom operator): onnxruntime infers.
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
