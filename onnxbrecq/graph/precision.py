"""Half-precision models: float16 and bfloat16 become float32, exactly, while the model is learned.

Every float16 value is a float32 value, so that the constants keep what they are; what the float16
network rounded between its nodes is no longer rounded. Inputs and outputs keep their types behind a
Cast. Integer kernels take float32 scales only, and the CPU provider computes most float16 nodes
by casting to float32 anyway; what stays float is stored as float16 again by `onnxbrecq.emit`.
"""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxbrecq.graph.constants import Constants
from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute, graphs, tensors

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")


def half_type(proto: onnx.ModelProto) -> int | None:
    """FLOAT16 or BFLOAT16, whichever more constants have; None where there are none of either.

    Also None for a model with nodes of other domains: what types those take is not known.
    """
    if any(node.domain not in STANDARD_DOMAINS for graph in graphs(proto.graph)
           for node in graph.node):  # fmt: skip
        return None
    found = [t.data_type for t in tensors(proto.graph) if t.data_type in HALVES]
    return max(HALVES, key=found.count) if found else None


def edit_precision(graph: onnx.GraphProto, constants: Constants) -> None:
    """Everything inside becomes float32; the graph's inputs and outputs keep their types."""
    _edit_casts(graph)
    for tensor in tensors(graph):
        if tensor.data_type in HALVES and tensor.name in constants:
            constants[tensor.name] = _widened(constants[tensor.name])
            tensor.data_type = TensorProto.FLOAT
        elif tensor.data_type in HALVES:
            tensor.CopyFrom(_widened(tensor))
    for inner in graphs(graph):
        for node in inner.node:
            for item in node.attribute:
                if item.name in _TYPE_ATTRIBUTES and item.i in HALVES:
                    item.i = TensorProto.FLOAT
        if inner is not graph:
            for value in (*inner.input, *inner.output, *inner.value_info):
                if value.type.tensor_type.elem_type in HALVES:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
    _edit_signature(graph)


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _edit_casts(graph: onnx.GraphProto) -> None:
    """A Cast between floats of 32 and 16 bits, soon without effect, becomes an Identity."""
    floats = (TensorProto.FLOAT, *HALVES)
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    types.update({t.name: t.data_type for t in graph.initializer})
    for node in graph.node:
        if node.op_type != "Cast" or types.get(node.input[0]) not in floats:
            continue
        if attribute(node, "to") in floats:
            node.op_type = "Identity"
            del node.attribute[:]


def _edit_signature(graph: onnx.GraphProto) -> None:
    """Casts behind half-precision inputs and in front of such outputs."""
    first, last = [], []
    made = {name for node in graph.node for name in node.output}
    for value in graph.input:
        if value.type.tensor_type.elem_type in HALVES:
            inside = f"{value.name}~float32"
            _edit_readers(graph, value.name, inside)
            cast = onnx.helper.make_node("Cast", [value.name], [inside], to=TensorProto.FLOAT)
            first.append(cast)
    for value in graph.output:
        kind = value.type.tensor_type.elem_type
        if kind in HALVES and value.name in made:
            inside = f"{value.name}~float32"
            _edit_readers(graph, value.name, inside)
            for node in graph.node:
                node.output[:] = [inside if name == value.name else name for name in node.output]
            last.append(onnx.helper.make_node("Cast", [inside], [value.name], to=kind))
    nodes = [*first, *graph.node, *last]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _edit_readers(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every reader of `old`, in subgraphs too, reads `new`."""
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [new if name == old else name for name in node.input]
        if inner is not graph:
            for value in inner.output:
                value.name = new if value.name == old else value.name
