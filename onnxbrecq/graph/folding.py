"""Constant folding: what does not depend on the input is computed once, by ONNX's reference.

Besides nodes whose inputs are all constant: the Shape of a tensor whose dimensions are known, known
dimensions gathered or cut from a Shape, and the shape of a Reshape that is known up to dimensions
that the input has at the same place, which are copied, and one other, which is what is left: so a
tensor without elements can no longer be reshaped, if it has such a one. The like for an Expand.

A DequantizeLinear is no exception: weights alone in integers become float. But where a node reads
data in integers too, that is how it is deployed, and stays.
"""

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxbrecq.graph.arrays import Arrays
from onnxbrecq.graph.constants import Constants, add, with_values
from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute, node_inputs

_LARGEST = 1 << 22  # elements of a folded tensor; larger ones stay computed, unless inputs are
_GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad", "OneHot",
                      "EyeLike"})  # fmt: skip
_NEVER = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
                    "Bernoulli", "Multinomial", "If", "Loop", "Scan", "Constant"})  # fmt: skip

Shape = list[int | str | None]


def edit_constants(proto: onnx.ModelProto, large: Constants) -> bool:
    """Edits `proto` and its large constants: folds all that can be; says whether anything was."""
    graph = proto.graph
    constants = _Known(graph, large)
    shapes = _shapes(graph)
    outputs = {value.name for value in graph.output}
    producer = {name: node for node in graph.node for name in node.output}
    kept = outputs | _deployed(graph, producer)
    changed, folded = False, list[int]()
    for i, node in enumerate(graph.node):
        if node.domain not in STANDARD_DOMAINS or any(name in kept for name in node.output):
            continue
        values = _value(node, constants, shapes, producer, proto)
        if values is None:
            changed |= _edit_reshape(node, constants, shapes, producer)
            changed |= _edit_expand(node, constants, shapes)
            continue
        for name, value in zip(node.output, values, strict=False):
            if name:
                constants.add(name, value)
        constants.read_no_more(node)
        folded.append(i)
    for i in reversed(folded):
        del graph.node[i]
    return changed or bool(folded)


def _deployed(graph: onnx.GraphProto, producer: dict[str, onnx.NodeProto]) -> set[str]:
    """What DequantizeLinear nodes make for readers of data in integers."""
    levels = {
        name: made.input[0] for name, made in producer.items() if made.op_type == "DequantizeLinear"
    }
    constants = {tensor.name for tensor in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        reads = [name for name in node.input if name in levels]
        if any(levels[name] not in constants for name in reads):
            found.update(reads)
    return found


class _Known(Arrays):
    """The graph's constants, which it edits."""

    def __init__(self, graph: onnx.GraphProto, large: Constants) -> None:
        self._known = with_values(graph, large)
        super().__init__(self._known)
        self._graph, self._large = graph, large
        self._readers = Counter(name for node in graph.node for name in node_inputs(node))
        self._readers.update(value.name for value in graph.output)

    def add(self, name: str, value: NDArray[np.generic]) -> None:
        """One more constant, of the graph too."""
        self._known[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        add(self._graph, self._large, self._known[name])

    def elements(self, name: str) -> int:
        """How many elements the constant has."""
        return math.prod(self._known[name].dims)

    def read_no_more(self, node: onnx.NodeProto) -> None:
        """The node goes, and so do the values of large constants that it alone read."""
        self._readers.subtract(node_inputs(node))
        for name in set(node_inputs(node)) & self._large.keys():
            if not self._readers[name]:
                del self._large[name], self._known[name]
                self.forget(name)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in value.type.tensor_type.shape.dim
            ]
    for value in graph.output:  # of these the file alone may say that two are the same
        if value.name in found:
            found[value.name] = [d if isinstance(d, int) else None for d in found[value.name]]
    return found


def _value(
    node: onnx.NodeProto,
    constants: _Known,
    shapes: dict[str, Shape],
    producer: dict[str, onnx.NodeProto],
    proto: onnx.ModelProto,
) -> list[NDArray[np.generic]] | None:
    """The node's outputs, or None if they are not constant."""
    if node.op_type == "Constant":
        return _evaluated(node, {}, proto)
    if node.op_type == "Shape":
        return _known_shape(node, shapes)
    if node.op_type in ("Gather", "Slice") and node.input[1] in constants:
        found = _known_dimension(node, constants, shapes, producer)
        if found is not None:
            return found
    names = [name for name in node.input if name]
    if node.op_type in _NEVER or not names or not all(name in constants for name in names):
        return None
    most = max(_LARGEST, sum(constants.elements(name) for name in names))
    if _size(node, constants, shapes) > most:
        return None
    return _evaluated(node, {name: constants[name] for name in names}, proto)


def _size(
    node: onnx.NodeProto, constants: Mapping[str, NDArray[np.generic]], shapes: dict[str, Shape]
) -> float:
    """Elements of the node's output; if unknown, infinite where it may outgrow its inputs."""
    if node.op_type == "ConstantOfShape":
        return float(math.prod(int(d) for d in np.asarray(constants[node.input[0]]).tolist()))
    shape = shapes.get(node.output[0])
    if shape is None or not all(isinstance(d, int) for d in shape):
        return math.inf if node.op_type in _GROWING else 0
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
    except MemoryError:
        raise
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
    constants: Mapping[str, NDArray[np.generic]],
    shapes: dict[str, Shape],
    producer: dict[str, onnx.NodeProto],
) -> list[NDArray[np.generic]] | None:
    """Gather(Shape(x), i), or a Slice of it, where these dimensions of x are known."""
    source = producer.get(node.input[0])
    if source is None or source.op_type != "Shape" or source.attribute:
        return None
    if node.op_type == "Slice":
        part = _elements(node.output[0], constants, shapes, producer)
        whole = part is not None and all(isinstance(d, int) for d in part)
        return [np.asarray(part, np.int64)] if whole else None
    shape = shapes.get(source.input[0])
    if shape is None:
        return None
    index = np.asarray(constants[node.input[1]])
    picked = [shape[i] if -len(shape) <= i < len(shape) else None for i in index.reshape(-1)]
    if not all(isinstance(d, int) for d in picked):
        return None
    return [np.asarray(picked, np.int64).reshape(index.shape)]


def _edit_reshape(
    node: onnx.NodeProto,
    constants: _Known,
    shapes: dict[str, Shape],
    producer: dict[str, onnx.NodeProto],
) -> bool:
    """Edits a Reshape whose shape is computed, but known up to the input's and one dimension.

    What the input has at the same place becomes 0 (copied from there), the other -1 (what is left).
    """
    if node.op_type != "Reshape" or node.input[1] in constants or attribute(node, "allowzero", 0):
        return False
    before, after = shapes.get(node.input[0]) or [], shapes.get(node.output[0])
    known = after if after and after.count(None) <= 1 else None
    elements = known or _elements(node.input[1], constants, shapes, producer)
    if not elements or any(isinstance(d, int) and d < 1 for d in elements):
        return False
    copied = [isinstance(d, str) and before[i : i + 1] == [d] for i, d in enumerate(elements)]
    dims = [
        d if isinstance(d, int) else 0 if own else -1
        for d, own in zip(elements, copied, strict=True)
    ]
    if dims.count(-1) > 1:
        return False
    _set_shape(node, constants, dims)
    return True


def _edit_expand(
    node: onnx.NodeProto,
    constants: _Known,
    shapes: dict[str, Shape],
) -> bool:
    """Edits an Expand whose unknown dimensions are the input's own: they become 1, which keeps."""
    if node.op_type != "Expand" or node.input[1] in constants:
        return False
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if not before or not after or len(before) != len(after):
        return False
    own = [isinstance(b, str) and b == a for a, b in zip(after, before, strict=True)]
    if not all(isinstance(a, int) or kept for a, kept in zip(after, own, strict=True)):
        return False
    _set_shape(node, constants, [1 if not isinstance(d, int) else d for d in after])
    return True


def _set_shape(node: onnx.NodeProto, constants: _Known, dims: list[int]) -> None:
    """Edits a node whose second input is a shape: it becomes a constant."""
    name = f"{node.output[0]}~shape"
    constants.add(name, np.asarray(dims, np.int64))
    node.input[1] = name


def _elements(
    name: str,
    constants: Mapping[str, NDArray[np.generic]],
    shapes: dict[str, Shape],
    producer: dict[str, onnx.NodeProto],
) -> Shape | None:
    """The elements of a list of dimensions; symbols and None where they are not known.

    None where even their number is unknown.
    """
    if name in constants:
        return [int(d) for d in np.asarray(constants[name]).reshape(-1)]
    node = producer.get(name)
    if node is None:
        return None
    if node.op_type == "Shape" and not node.attribute:
        return shapes.get(node.input[0])
    if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"):
        found = _elements(node.input[0], constants, shapes, producer)
        return found if found is None or len(found) == 1 else None
    if node.op_type == "Concat":
        parts = [_elements(part, constants, shapes, producer) for part in node.input]
        return None if None in parts else [d for part in parts if part for d in part]
    if node.op_type == "Slice" and all(name in constants for name in node.input[1:]):
        found = _elements(node.input[0], constants, shapes, producer)
        bounds = [np.asarray(constants[name]).reshape(-1).tolist() for name in node.input[1:]]
        if found is None or not bounds[0]:
            return found
        start, end, step = bounds[0][0], bounds[1][0], bounds[3][0] if len(bounds) > 3 else 1
        return found[start:end:step]
    if node.op_type == "Gather" and node.input[1] in constants:
        found = _elements(node.input[0], constants, shapes, producer)
        index = np.asarray(constants[node.input[1]]).reshape(-1).tolist()
        inside = found is not None and all(-len(found) <= i < len(found) for i in index)
        return [found[i] for i in index] if found is not None and inside else [None] * len(index)
    shape = shapes.get(name)
    count = math.prod(d for d in shape if isinstance(d, int)) if shape is not None else None
    known = shape is not None and all(isinstance(d, int) for d in shape)
    return [None] * count if known and count is not None else None
