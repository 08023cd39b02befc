"""A free batch dimension, so that many samples run at once.

Zoo models are often exported for one sample, or for a few. Where only constant shapes hold them to
it, that number at the head of a Reshape's shape becomes 0 (ONNX: copy the input's dimension), and
the sizes of a Resize become scales: the same for so many samples.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnxbrecq.graph.foreign import declared_types, infer_types
from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.skeleton import edit_from_skeleton, skeleton
from onnxbrecq.graph.symbols import edit_symbols

BATCH = "N"


def is_batched(values: Sequence[onnx.ValueInfoProto]) -> bool:
    """Whether axis 0 of all `values` is the batch."""
    return all(_leading(value) == BATCH for value in values)


def edit_batch(proto: onnx.ModelProto) -> bool:
    """Edits `proto`: the batch dimension is named "N" on all inputs and outputs, if it can be.

    It cannot if the inputs' first dimensions are fixed to several sizes, if an output's is not
    declared free and shape inference does not carry the symbol through to it, or if rows of one
    input meet those of another: then their first dimensions are not the same.
    """
    heads = [value.type.tensor_type.shape.dim[:1] for value in proto.graph.input]
    sizes = {dim.dim_value for dims in heads for dim in dims if dim.HasField("dim_value")}
    if not all(heads) or len(sizes) > 1:
        return False
    size = next(iter(sizes), None)
    freed = _freed(proto, size)
    try:
        freed = infer_types(freed)
    except onnx.shape_inference.InferenceError:
        return False
    edit_symbols(freed.graph)
    inputs = {value.name for value in proto.graph.input}
    values = [value for value in freed.graph.input if value.name in inputs]
    if not is_batched([*values, *freed.graph.output]) or (len(inputs) > 1 and _meet(freed.graph)):
        return False
    if size is not None and not _carried_through(proto, freed, size):
        return False
    edit_from_skeleton(proto, freed)
    return True


def _freed(proto: onnx.ModelProto, size: int | None) -> onnx.ModelProto:
    """The skeleton of `proto` with a free batch, types not yet inferred; `size`: it was fixed."""
    freed = skeleton(proto)
    heads = [value.type.tensor_type.shape.dim[0] for value in proto.graph.input]
    symbols = {dim.dim_param for dim in heads if not dim.HasField("dim_value")}
    inputs = {value.name for value in proto.graph.input}
    for value in freed.graph.input:
        if value.name in inputs:
            _name_batch(value.type.tensor_type.shape)
    known = _declared(freed.graph, set() if size is not None else symbols)
    if size is not None:
        _free_reshapes(freed, size)
        known += _free_resizes(freed, size)
    del freed.graph.value_info[:]
    freed.graph.value_info.extend(known)
    types = {value.name: value.type for value in known}
    for value in freed.graph.output:
        if value.name in types:
            value.type.CopyFrom(types[value.name])
        elif size is None and {_leading(value)} == symbols - {""}:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH  # as the file declares
        else:
            value.type.tensor_type.ClearField("shape")
    return freed


def _name_batch(shape: onnx.TensorShapeProto) -> None:
    """Edits the shape: its first dimension is the batch, and no other has that name."""
    for dim in shape.dim:
        if dim.dim_param == BATCH:
            dim.dim_param = f"{BATCH}~"
    shape.dim[0].dim_param = BATCH


def _meet(graph: onnx.GraphProto) -> bool:
    """Whether a tensor has the batch in two dimensions: every row of one meets all of another."""
    return any(_dims(v).count(BATCH) > 1 for v in (*graph.value_info, *graph.output))


def _declared(graph: onnx.GraphProto, symbols: set[str]) -> list[onnx.ValueInfoProto]:
    """Types that only the model itself knows; a shape counts if it leads with one of `symbols`."""
    known = declared_types(graph)
    for value in known:
        if _leading(value) in symbols - {""}:
            _name_batch(value.type.tensor_type.shape)
        else:
            value.type.tensor_type.ClearField("shape")
    return known


def _carried_through(proto: onnx.ModelProto, freed: onnx.ModelProto, size: int) -> bool:
    """Whether what depends on an input and led with `size` now leads with the batch everywhere."""
    before = {value.name: _dims(value) for value in proto.graph.value_info}
    after = {value.name: _dims(value) for value in freed.graph.value_info}
    depends = {value.name for value in proto.graph.input}
    for node in proto.graph.node:
        if node.op_type in ("Shape", "Size") or depends.isdisjoint(node.input):
            continue
        depends.update(node.output)
    led = [name for name in depends if before.get(name, ())[1:] and before[name][0] == size]
    return all(after.get(name, (BATCH,))[0] != size for name in led)


def _dims(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _free_resizes(proto: onnx.ModelProto, size: int) -> list[onnx.ValueInfoProto]:
    """Edits `proto`: a Resize to constant sizes goes by the scales that lead to them.

    Returns the types of their outputs: shape inference would lose the batch there.
    """
    known = []
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    values = (*proto.graph.value_info, *proto.graph.input)
    shapes = {value.name: _dims(value) for value in values}
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in proto.graph.node:
        if node.op_type != "Resize" or len(node.input) < 4:
            continue
        used = {item.name for item in node.attribute}
        region = attribute(node, "coordinate_transformation_mode") == b"tf_crop_and_resize"
        if node.input[3] not in constants or region or used & {"axes", "keep_aspect_ratio_policy"}:
            continue
        sizes = numpy_helper.to_array(constants[node.input[3]])
        before = shapes.get(node.input[0], ())
        if len(sizes) != len(before) or sizes[0] != size or before[0] not in (size, BATCH):
            continue
        if not all(isinstance(dim, int) and dim > 0 for dim in before[1:]):
            continue
        scales = np.array([1.0, *(sizes[1:] / np.array(before[1:]))], np.float32)
        low = np.floor(scales[1:] * np.array(before[1:], np.float32)) < sizes[1:]
        scales[1:][low] = np.nextafter(scales[1:][low], np.float32(np.inf))
        name = f"{node.input[3]}~{node.output[0]}"
        proto.graph.initializer.append(numpy_helper.from_array(scales, name))
        node.input[1:] = ["", name]
        shape = [BATCH, *sizes[1:].tolist()]
        kind = types.get(node.input[0], onnx.TensorProto.FLOAT)
        known.append(onnx.helper.make_tensor_value_info(node.output[0], kind, shape))
    return known


def _free_reshapes(proto: onnx.ModelProto, size: int) -> None:
    """Edits `proto`: constant Reshape shapes that lead with `size` lead with 0 instead."""
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
        led = leading.dim_value == size or leading.dim_param == BATCH
        if led and len(shape) > 1 and shape[0] == size:
            shape[0] = 0
            name = f"{node.input[1]}~{node.output[0]}"
            proto.graph.initializer.append(numpy_helper.from_array(shape.astype(np.int64), name))
            node.input[1] = name


def _leading(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return str(dims[0].dim_param) if dims else ""
