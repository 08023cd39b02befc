"""Half-precision models: float16 and bfloat16 become float32, exactly, while the model is learned.

Every float16 value is a float32 value, so that the constants keep what they are; what the float16
network rounded between its nodes is no longer rounded. Inputs and outputs keep their types behind a
Cast, and so do the nodes of other domains, of which it is not known what types they take. Integer
kernels take float32 scales only, and the CPU provider computes most float16 nodes
by casting to float32 anyway; what stays float is stored as float16 again by `onnxbrecq.emit`.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxbrecq.graph.constants import Constants
from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute, graphs, tensors

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision", "stash_type")


def half_type(proto: onnx.ModelProto) -> int | None:
    """FLOAT16 or BFLOAT16, whichever more constants have; None where there are none of either."""
    found = [t.data_type for t in tensors(proto.graph) if t.data_type in HALVES]
    return max(HALVES, key=found.count) if found else None


def widening_obstacle(graph: onnx.GraphProto) -> str | None:
    """Why the graph, whose types are inferred, must keep its half precision; None if it need not.

    A node of another domain goes between Casts, for which the types of its tensors must be known.
    """
    types = _types(graph)
    for inner in graphs(graph):
        for node in inner.node:
            if node.domain in STANDARD_DOMAINS:
                continue
            named = f"node {node.name or node.output[0]!r} ({node.domain}.{node.op_type})"
            if inner is not graph:
                return f"{named} stands in a subgraph"
            unknown = [name for name in (*node.input, *node.output) if name and not types.get(name)]
            if unknown:
                return f"the type of {unknown[0]!r} of {named} is not known; declare it"
    return None


def edit_precision(graph: onnx.GraphProto, constants: Constants) -> None:
    """Everything inside becomes float32; the graph's inputs and outputs keep their types."""
    types = _types(graph)
    _edit_casts(graph, types)
    for inner in graphs(graph):
        for tensor in inner.initializer:
            _edit_tensor(tensor, constants)
        for node in inner.node:
            for item in node.attribute if node.domain in STANDARD_DOMAINS else ():
                for tensor in (item.t, *item.tensors):
                    _edit_tensor(tensor, constants)
                if item.name in _TYPE_ATTRIBUTES and item.i in HALVES:
                    item.i = TensorProto.FLOAT
        if inner is not graph:
            for value in (*inner.input, *inner.output, *inner.value_info):
                if value.type.tensor_type.elem_type in HALVES:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
    _edit_foreign(graph, types)
    _edit_signature(graph)


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return types


def _edit_tensor(tensor: TensorProto, constants: Constants) -> None:
    """Edits the tensor, or its value among the large ones: float32 if it was half precision."""
    if tensor.data_type in HALVES and tensor.name in constants:
        constants[tensor.name] = _widened(constants[tensor.name])
        tensor.data_type = TensorProto.FLOAT
    elif tensor.data_type in HALVES:
        tensor.CopyFrom(_widened(tensor))


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _edit_casts(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    """A Cast between floats of 32 and 16 bits, soon without effect, becomes an Identity."""
    floats = (TensorProto.FLOAT, *HALVES)
    for node in graph.node:
        if node.op_type != "Cast" or types.get(node.input[0]) not in floats:
            continue
        if attribute(node, "to") in floats:
            node.op_type = "Identity"
            del node.attribute[:]


def _edit_foreign(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    """Casts in front of and behind nodes of other domains, which take what they took."""
    nodes, inside = [], {}
    for node in graph.node:
        if node.domain in STANDARD_DOMAINS:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if types.get(name) in HALVES:
                node.input[i] = f"{node.output[0]}~half{i}"
                nodes.append(onnx.helper.make_node("Cast", [name], [node.input[i]], to=types[name]))
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) in HALVES:
                node.output[i] = inside[name] = f"{name}~half"
                widened = onnx.helper.make_node(
                    "Cast", [inside[name]], [name], to=TensorProto.FLOAT
                )
                nodes.append(widened)
    for value in graph.value_info:
        value.name = inside.get(value.name, value.name)
    _replace_nodes(graph, nodes)


def _replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


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
    _replace_nodes(graph, [*first, *graph.node, *last])


def _edit_readers(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every reader of `old`, in subgraphs too, reads `new`."""
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [new if name == old else name for name in node.input]
        if inner is not graph:
            for value in inner.output:
                value.name = new if value.name == old else value.name
