"""A model without its large constants, for what only looks at the graph.

onnx's checker, version converter and shape inference take a model as serialised bytes and give
bytes back; of a model's gigabytes they need but the graph and the small constants (shapes, axes).
In the skeleton each large constant is a graph input of the same name, type and shape.
"""

import math

import onnx
from onnx import TensorProto

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.symbols import edit_symbols

SCALARS = (int, str)  # the types of protobuf fields of a model or graph that are set, not merged
_LARGE = 1024  # elements; shapes and axes are far smaller


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` whose large constants are inputs."""
    made = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, SCALARS):
            setattr(made, field.name, value)
        else:
            getattr(made, field.name).MergeFrom(value)
    graph, source = made.graph, proto.graph
    graph.name = source.name
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, name).extend(getattr(source, name))
    inputs = {value.name for value in source.input}
    for tensor in source.initializer:
        if not _large(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    return made


def edit_from_skeleton(proto: onnx.ModelProto, bones: onnx.ModelProto) -> None:
    """Edits `proto`: all but its large constants becomes that of `bones`, once its skeleton."""
    graph, changed = proto.graph, bones.graph
    names = {tensor.name for tensor in graph.initializer if _large(tensor)}
    names -= {value.name for value in graph.input}
    for i in reversed(range(len(graph.initializer))):
        if not _large(graph.initializer[i]):
            del graph.initializer[i]
    graph.initializer.extend(changed.initializer)
    for field in ("node", "input", "output", "value_info"):
        del getattr(graph, field)[:]
    graph.node.extend(changed.node)
    graph.input.extend(value for value in changed.input if value.name not in names)
    graph.output.extend(changed.output)
    graph.value_info.extend(changed.value_info)
    del proto.opset_import[:]
    proto.opset_import.extend(bones.opset_import)


def infer_shapes(proto: onnx.ModelProto, where: str) -> None:
    """Edits `proto`: the types of all tensors that inference can know, inferred anew.

    Raises:
        ModelError: inference contradicts what the model says of itself.
    """
    del proto.graph.value_info[:]
    try:
        found = onnx.shape_inference.infer_shapes(skeleton(proto), data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"{where}: shape inference fails: {error}") from error
    proto.graph.value_info.extend(found.graph.value_info)
    del proto.graph.output[:]
    proto.graph.output.extend(found.graph.output)
    edit_symbols(proto.graph)


def _large(tensor: TensorProto) -> bool:
    return bool(math.prod(tensor.dims) > _LARGE)
