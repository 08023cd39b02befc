"""From the operator set of the file to one that holds quantized weights.

onnx's version converter does the work. Where it changes what a node computes, this module steps in:

    Hardmax              flattens behind `axis` up to opset 12, and goes along `axis` from 13 on
    Pad-2                has a value in every mode; later ones take it for constants only
    Upsample, Resize-10  take output index i from input index i / scale, which Resize calls
                         asymmetric, rounded down; Resize-10 rounds up where it shrinks
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute, graphs
from onnxbrecq.graph.skeleton import edit_from_skeleton, skeleton

OPSET = 21  # packed 4-bit tensors exist from here on
_IR_VERSION = 10
_CONVERTIBLE = 13  # the oldest opset whose DequantizeLinear takes an axis
_ALONG_AXIS = 13
_TRANSFORMS = 11  # the first opset whose Resize says how coordinates are transformed
REFUSALS = (RuntimeError, ValueError, version_converter.ConvertError)  # by the converter


def edit_opset(proto: onnx.ModelProto, where: str) -> tuple[str, ...]:
    """Edits `proto`: to opset 21 if below, or kept where the converter does not know a node.

    Returns notes for the user.

    Raises:
        ModelError: it cannot be upgraded, and is too old to hold quantized weights as it is.
    """
    opset = max(o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)
    if opset >= OPSET:
        return ()
    source = skeleton(proto)
    if opset < _ALONG_AXIS:
        for graph in graphs(source.graph):
            _edit_hardmax(graph)
            _edit_unread_values(graph)
    try:
        upgraded = version_converter.convert_version(source, OPSET)
    except REFUSALS as error:
        if opset < _CONVERTIBLE:
            raise ModelError(
                f"{where}: {_refused(source)} opset {opset} cannot be converted to {OPSET} "
                f"({first_line(error)}); export the model with opset {_CONVERTIBLE} or above"
            ) from error
        return (f"opset {opset} kept (not convertible): weights are stored in 8 bits",)
    if opset < _TRANSFORMS:
        shrinking = {n.output[0] for n in source.graph.node if n.op_type == "Resize"}
        for before, after in zip(graphs(source.graph), graphs(upgraded.graph), strict=True):
            _edit_resizes(before, after, shrinking)
    _restore(upgraded, source)
    edit_from_skeleton(proto, upgraded)
    return ()


def first_line(refusal: Exception) -> str:
    """What the converter says, without where in its code."""
    return str(refusal).partition("\n")[0]


def _edit_hardmax(graph: onnx.GraphProto) -> None:
    """Edits the graph: Hardmax of a matrix, which means the same in all opsets."""
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if node.op_type != "Hardmax" or node.domain not in STANDARD_DOMAINS:
            continue
        x, y = node.input[0], node.output[0]
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        made = [
            helper.make_node("Shape", [x], [f"{y}~shape"]),
            helper.make_node("Flatten", [x], [f"{y}~flat"], axis=axis),
            helper.make_node("Hardmax", [f"{y}~flat"], [f"{y}~matrix"], name=node.name, axis=1),
            helper.make_node("Reshape", [f"{y}~matrix", f"{y}~shape"], [y]),
        ]
        nodes = [*graph.node[:i], *made, *graph.node[i + 1 :]]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _edit_unread_values(graph: onnx.GraphProto) -> None:
    """Edits the graph: a Pad that copies what is there loses the value that it does not read."""
    for node in graph.node:
        if node.op_type != "Pad" or attribute(node, "mode", b"constant") == b"constant":
            continue
        kept = [a for a in node.attribute if a.name != "value"]
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend(copies)


def _edit_resizes(source: onnx.GraphProto, graph: onnx.GraphProto, resizes: set[str]) -> None:
    """Edits the upgraded graph: what was an Upsample or Resize-10 says how it takes indices."""
    old = {n.output[0] for n in source.node if n.op_type in ("Upsample", "Resize")}
    scales = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    scales |= dict(_constants(graph))
    for node in graph.node:
        if node.op_type != "Resize" or node.output[0] not in old:
            continue
        known = scales.get(node.input[2], np.ones(1)) if len(node.input) > 2 else np.ones(1)
        up = node.output[0] not in resizes or bool((known >= 1).all())
        kept = [a for a in node.attribute if a.name == "mode"]
        kept.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        kept.append(helper.make_attribute("nearest_mode", "floor" if up else "ceil"))
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del node.attribute[:]
        node.attribute.extend(copies)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], numpy_helper.to_array(node.attribute[0].t)


def _refused(source: onnx.ModelProto) -> str:
    """The first node that the converter does not take by itself, in words."""
    types = {v.name: v for v in (*source.graph.value_info, *source.graph.input)}
    for node in source.graph.node:
        reads = [types.get(n) or helper.make_tensor_value_info(n, 1, None) for n in node.input if n]
        makes = [helper.make_tensor_value_info(n, 1, None) for n in node.output if n]
        graph = helper.make_graph([node], "node", reads, makes)
        alone = helper.make_model(graph, opset_imports=source.opset_import)
        try:
            version_converter.convert_version(alone, OPSET)
        except REFUSALS:
            return f"node {node.name or node.output[0]!r} ({node.op_type}) of"
    return "the model of"


def _restore(upgraded: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Edits `upgraded`: node names, which the converter drops where it can, come back."""
    names = {output: node.name for node in source.graph.node for output in node.output if output}
    for node in upgraded.graph.node:
        node.name = next((names[o] for o in node.output if o in names), node.name)
