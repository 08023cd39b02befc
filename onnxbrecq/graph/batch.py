"""A free batch dimension, so that many samples run at once.

Zoo models are often exported for one sample. Where only reshapes hold them to it, a leading 1 in
a Reshape's shape becomes 0 (ONNX: copy the input's dimension), which is the same for one sample.
"""

import numpy as np
import onnx
from onnx import numpy_helper

BATCH = "N"


def is_batched(proto: onnx.ModelProto) -> bool:
    """Whether axis 0 of all inputs and outputs is one and the same symbol."""
    values = [*proto.graph.input, *proto.graph.output]
    return all(_leading(value) == BATCH for value in values)


def free_batch(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """`proto` with the batch dimension named "N" on all inputs and outputs, or None.

    None if an input's first dimension is fixed to more than 1, or if shape inference does not
    carry the symbol through to every output.
    """
    freed = onnx.ModelProto()
    freed.CopyFrom(proto)
    fixed = False
    for value in freed.graph.input:
        shape = value.type.tensor_type.shape
        if not shape.dim or shape.dim[0].dim_value > 1:
            return None
        fixed = fixed or shape.dim[0].HasField("dim_value")
        shape.dim[0].dim_param = BATCH
    if fixed:
        _free_reshapes(freed)
    del freed.graph.value_info[:]
    for value in freed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        freed = onnx.shape_inference.infer_shapes(freed, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    return freed if is_batched(freed) else None


def _free_reshapes(proto: onnx.ModelProto) -> None:
    """Edits `proto`: constant Reshape shapes with a leading 1 get a leading 0 instead."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    values = {v.name: v for v in (*proto.graph.value_info, *proto.graph.input)}
    for node in proto.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        data = values.get(node.input[0])
        if data is None or not data.type.tensor_type.shape.dim:
            continue
        leading = data.type.tensor_type.shape.dim[0]
        single = leading.dim_value == 1 or leading.dim_param == BATCH
        if single and len(shape) > 1 and shape[0] == 1:
            shape[0] = 0
            name = f"{node.input[1]}~{node.output[0]}"
            proto.graph.initializer.append(numpy_helper.from_array(shape.astype(np.int64), name))
            node.input[1] = name


def _leading(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return str(dims[0].dim_param) if dims else ""
