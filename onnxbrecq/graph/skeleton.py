"""A model without its large constants, for what only looks at the graph.

onnx's checker, version converter and shape inference take a model as serialised bytes and give
bytes back; of a model's gigabytes they need but the graph and the small constants (shapes, axes).
In the skeleton each large constant is a graph input of the same name, type and shape.
"""

import onnx

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.constants import is_large
from onnxbrecq.graph.foreign import declared_types, infer_types
from onnxbrecq.graph.symbols import edit_symbols

SCALARS = (int, str)  # the types of protobuf fields of a model or graph that are set, not merged


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` whose large constants are inputs."""
    made = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph" or isinstance(value, bytes):  # a text that is not UTF-8
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
        if not is_large(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    return made


def edit_from_skeleton(proto: onnx.ModelProto, bones: onnx.ModelProto) -> None:
    """Edits `proto`: all but its large constants becomes that of `bones`, once its skeleton."""
    graph, changed = proto.graph, bones.graph
    names = {tensor.name for tensor in graph.initializer if is_large(tensor)}
    names -= {value.name for value in graph.input}
    for i in reversed(range(len(graph.initializer))):
        if not is_large(graph.initializer[i]):
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
    """Edits `proto`: the types of all tensors that can be known, inferred anew where they can be.

    Raises:
        ModelError: inference contradicts what the model says of itself.
    """
    declared = declared_types(proto.graph)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    bones = skeleton(proto)
    for value in bones.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = infer_types(bones)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"{where}: shape inference fails: {error}") from error
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(found.graph.value_info)
    for output, inferred in zip(proto.graph.output, found.graph.output, strict=True):
        _edit_output(output, inferred, where)
    edit_symbols(proto.graph)


def _edit_output(declared: onnx.ValueInfoProto, inferred: onnx.ValueInfoProto, where: str) -> None:
    """Edits an output's type: what is inferred counts, unless it contradicts what is declared."""
    found = inferred.type.tensor_type
    if not inferred.type.HasField("tensor_type") or not found.HasField("shape"):
        return
    said = declared.type.tensor_type.shape.dim
    if said:  # an empty shape is what some exporters write for an unknown one
        pairs = list(zip(said, found.shape.dim, strict=False))
        values = ((a.dim_value, b.dim_value) for a, b in pairs)
        if len(said) != len(found.shape.dim) or any(a and b and a != b for a, b in values):
            raise ModelError(
                f"{where}: shape inference contradicts the model: output {declared.name!r} is "
                f"declared as {_shown(declared)}, but is {_shown(inferred)}; export it again"
            )
        for a, b in pairs:
            if a.dim_param and not b.HasField("dim_value"):
                b.dim_param = a.dim_param
    declared.type.CopyFrom(inferred.type)


def _shown(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return str([d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims])
