"""Constant folding: what does not depend on the input is computed once, by ONNX's reference.

Besides nodes whose inputs are all constant: the Shape of a tensor whose dimensions are known, a
single known dimension gathered from a Shape, and the shape of a Reshape that inference knows up
to the batch dimension (which becomes 0: copied from the input).
"""

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute

_LARGEST = 1 << 22  # elements of a folded tensor; larger ones stay computed
_GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad", "OneHot",
                      "EyeLike"})  # fmt: skip
_NEVER = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
                    "Bernoulli", "Multinomial", "If", "Loop", "Scan", "Constant"})  # fmt: skip

Shape = list[int | str | None]


def edit_constants(proto: onnx.ModelProto) -> bool:
    """Edits `proto`: folds all that can be; says whether anything was."""
    graph = proto.graph
    constants = _Constants({t.name: t for t in graph.initializer})
    shapes = _shapes(graph)
    outputs = {value.name for value in graph.output}
    producer = {name: node for node in graph.node for name in node.output}
    changed = False
    for node in list(graph.node):
        if node.domain not in STANDARD_DOMAINS or any(name in outputs for name in node.output):
            continue
        values = _value(node, constants, shapes, producer, proto)
        if values is None:
            changed |= _edit_reshape(graph, node, constants, shapes)
            continue
        for name, value in zip(node.output, values, strict=False):
            if name:
                constants[name] = value
                graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        graph.node.remove(node)
        changed = True
    return changed


class _Constants(dict[str, NDArray[np.generic]]):
    """Constants by name, read from their tensors when they are first asked for."""

    def __init__(self, tensors: dict[str, onnx.TensorProto]) -> None:
        super().__init__()
        self._tensors = tensors

    def __missing__(self, name: str) -> NDArray[np.generic]:
        self[name] = numpy_helper.to_array(self._tensors[name])
        return self[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._tensors


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in value.type.tensor_type.shape.dim
            ]
    return found


def _value(
    node: onnx.NodeProto,
    constants: dict[str, NDArray[np.generic]],
    shapes: dict[str, Shape],
    producer: dict[str, onnx.NodeProto],
    proto: onnx.ModelProto,
) -> list[NDArray[np.generic]] | None:
    """The node's outputs, or None if they are not constant."""
    if node.op_type == "Constant":
        return _evaluated(node, {}, proto)
    if node.op_type == "Shape":
        return _known_shape(node, shapes)
    if node.op_type == "Gather" and node.input[1] in constants:
        found = _known_dimension(node, constants, shapes, producer)
        if found is not None:
            return found
    names = [name for name in node.input if name]
    if node.op_type in _NEVER or not names or not all(name in constants for name in names):
        return None
    if node.op_type in _GROWING and _size(node, constants, shapes) > _LARGEST:
        return None
    return _evaluated(node, {name: constants[name] for name in names}, proto)


def _size(
    node: onnx.NodeProto, constants: dict[str, NDArray[np.generic]], shapes: dict[str, Shape]
) -> float:
    """Elements of the node's output; infinite if unknown."""
    if node.op_type == "ConstantOfShape":
        return float(math.prod(int(d) for d in np.asarray(constants[node.input[0]]).tolist()))
    shape = shapes.get(node.output[0])
    if shape is None or not all(isinstance(d, int) for d in shape):
        return math.inf
    return float(math.prod(d for d in shape if isinstance(d, int)))


def _evaluated(
    node: onnx.NodeProto, feed: dict[str, NDArray[np.generic]], proto: onnx.ModelProto
) -> list[NDArray[np.generic]] | None:
    """The node's outputs by ONNX's reference implementation; None if it has none for this node."""
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feed.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=proto.opset_import)
    try:
        values = ReferenceEvaluator(model).run(None, feed)
    except Exception:  # whatever it is: the node stays, and the runtime will say more
        return None
    return [np.asarray(value) for value in values]


def _known_shape(
    node: onnx.NodeProto, shapes: dict[str, Shape]
) -> list[NDArray[np.generic]] | None:
    shape = shapes.get(node.input[0])
    if shape is None:
        return None
    start, end = attribute(node, "start", 0), attribute(node, "end", None)
    assert isinstance(start, int)
    assert end is None or isinstance(end, int)
    part = shape[start:end]
    if not all(isinstance(d, int) for d in part):
        return None
    return [np.asarray(part, np.int64)]


def _known_dimension(
    node: onnx.NodeProto,
    constants: dict[str, NDArray[np.generic]],
    shapes: dict[str, Shape],
    producer: dict[str, onnx.NodeProto],
) -> list[NDArray[np.generic]] | None:
    """Gather(Shape(x), i) where dimension i of x is known."""
    source = producer.get(node.input[0])
    if source is None or source.op_type != "Shape" or source.attribute:
        return None
    shape = shapes.get(source.input[0])
    if shape is None:
        return None
    index = np.asarray(constants[node.input[1]])
    picked = [shape[i] if -len(shape) <= i < len(shape) else None for i in index.reshape(-1)]
    if not all(isinstance(d, int) for d in picked):
        return None
    return [np.asarray(picked, np.int64).reshape(index.shape)]


def _edit_reshape(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    constants: dict[str, NDArray[np.generic]],
    shapes: dict[str, Shape],
) -> bool:
    """Edits a Reshape to [N, known ...] of data [N, ...]: its shape becomes [0, known ...]."""
    if node.op_type != "Reshape" or node.input[1] in constants or attribute(node, "allowzero", 0):
        return False
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if not before or not after or not isinstance(after[0], str) or before[0] != after[0]:
        return False
    if not all(isinstance(d, int) and d > 0 for d in after[1:]):
        return False
    name = f"{node.output[0]}~shape"
    value = np.asarray([0, *after[1:]], np.int64)
    graph.initializer.append(numpy_helper.from_array(value, name))
    constants[name] = value
    node.input[1] = name
    return True
