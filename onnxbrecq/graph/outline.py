"""A quantized model as a float one: the weights it decodes are constants, by shape alone."""

import onnx

from onnxbrecq.graph.layers import WEIGHT_OPERATORS
from onnxbrecq.graph.model import STANDARD_DOMAINS, node_inputs
from onnxbrecq.graph.skeleton import infer_shapes, skeleton


def edit_to_outline(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model with a constant for each weight that it decodes: of its name and shape, empty.

    Weight layers are found in it as in a float model. Edits the types of `proto`.

    Raises:
        ModelError: the types within the model contradict each other.
    """
    infer_shapes(proto, where)
    made = skeleton(proto)
    fixed = constant_tensors(proto.graph)
    known = {tensor.name for tensor in made.graph.initializer}
    types = {value.name: value.type.tensor_type for value in proto.graph.value_info}
    for node in proto.graph.node:
        if node.op_type not in WEIGHT_OPERATORS or node.domain not in STANDARD_DOMAINS:
            continue
        for name in (fixed & types.keys() & set(node.input)) - known:
            dims = [dim.dim_value for dim in types[name].shape.dim]
            tensor = onnx.TensorProto(name=name, data_type=types[name].elem_type, dims=dims)
            made.graph.initializer.append(tensor)
            known.add(name)
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:  # those that the skeleton has as inputs
        if tensor.name not in known and tensor.name not in inputs:
            made.graph.initializer.append(
                onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            )
    del made.graph.input[:]
    made.graph.input.extend(proto.graph.input)
    return made


def constant_tensors(graph: onnx.GraphProto) -> set[str]:
    """The tensors that depend on no input."""
    found = {tensor.name for tensor in graph.initializer}
    found -= {value.name for value in graph.input}
    for node in graph.node:
        if found.issuperset(node_inputs(node)):
            found.update(name for name in node.output if name)
    return found
