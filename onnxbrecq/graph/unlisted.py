"""Normalizations that onnxruntime writes into ONNX's own domain, where that has no such operator.

    LayerNormalization below opset 17    scale (x - mean) / sqrt(mean (x - mean)^2 + epsilon) + bias
    SimplifiedLayerNormalization         scale x / sqrt(mean x^2 + epsilon)

Its optimizer saves both in files of any opset, which it runs, and onnx's checker refuses. Written
out they are what the exporter wrote before; LayerNormalization is put together again later
(`passes/layer_norm.py`).
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq.graph.model import attribute, graphs

_LISTED = 17  # the first opset that has LayerNormalization
_AXES_READ = 18  # the first whose ReduceMean takes its axes as an input
_EPSILON = 1e-5
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_DEEPEST = -8  # axis; none is further from the last


def edit_unlisted(proto: onnx.ModelProto, opset: int) -> None:
    """Edits the model, whose types need not be known: what is not listed is written out.

    What makes a mean or a deviation too, or counts axes from the front of a tensor whose rank the
    file does not tell, stays, and is refused as an operator that there is not.
    """
    for graph in graphs(proto.graph):
        ranks = _ranks(graph)
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            made = _written_out(node, opset, ranks, types) if _is_unlisted(node, opset) else None
            nodes.extend(made or [onnx.NodeProto.FromString(node.SerializeToString())])
        if len(nodes) != len(graph.node):
            del graph.node[:]
            graph.node.extend(nodes)


def _is_unlisted(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the node is one of these, with one output."""
    older = node.op_type == "LayerNormalization" and opset < _LISTED
    known = not node.domain and (older or node.op_type == "SimplifiedLayerNormalization")
    return known and len(node.input) > 1 and any(node.output[:1]) and not any(node.output[1:])


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """Of the tensors of which the file tells it."""
    values = (*graph.value_info, *graph.input)
    known = (v for v in values if v.type.tensor_type.HasField("shape"))
    return {value.name: len(value.type.tensor_type.shape.dim) for value in known}


def _written_out(
    node: onnx.NodeProto, opset: int, ranks: dict[str, int], types: dict[str, int]
) -> list[onnx.NodeProto] | None:
    """The nodes in its place; None: its axes are not known, or it is none of floats."""
    x, y, scale = node.input[0], node.output[0], node.input[1]
    axis, epsilon = attribute(node, "axis", -1), attribute(node, "epsilon", _EPSILON)
    if isinstance(axis, int) and axis >= 0:
        axis -= ranks.get(x, axis)
    if not isinstance(axis, int) or not isinstance(epsilon, float) or not _DEEPEST <= axis < 0:
        return None
    kind = types.get(scale, TensorProto.FLOAT)
    if kind not in _FLOATS:
        return None
    nodes: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, to: str = "", **attributes: object) -> str:
        made = to or f"{y}~{op}{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [made], **attributes))  # type: ignore[arg-type]
        return made

    def constant(value: np.ndarray) -> str:
        return add("Constant", value=numpy_helper.from_array(value))

    def mean(of: str) -> str:
        axes = list(range(axis, 0))
        if opset < _AXES_READ:
            return add("ReduceMean", of, axes=axes)
        return add("ReduceMean", of, constant(np.array(axes)))

    centred = add("Sub", x, mean(x)) if node.op_type == "LayerNormalization" else x
    variance = mean(add("Mul", centred, centred))
    small = constant(_positive(epsilon, kind))
    made = add("Div", centred, add("Sqrt", add("Add", variance, small)))
    bias = node.input[2] if len(node.input) > 2 else ""
    made = add("Mul", made, scale, to="" if bias else y)
    if bias:
        add("Add", made, bias, to=y)
    nodes[-1].name = node.name
    return nodes


def _positive(value: float, kind: int) -> np.ndarray:
    """The value in that type, or the least above 0 that it has."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    made = np.asarray(value, dtype)
    least = np.nextafter(dtype.type(0), dtype.type(1))
    return np.asarray(least) if value > 0 and not made else made
