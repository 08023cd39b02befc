"""The oldest operator set that holds a model as it is, for runtimes of any age.

A node means the same in every version of its operator that takes the same attributes, inputs and
types, with the few exceptions below; whether one does, onnx's own checker and type inference say.
The axes of reductions became an input at opset 18 and go back into an attribute before.
"""

from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from onnxbrecq.graph.check import objection
from onnxbrecq.graph.model import STANDARD_DOMAINS, graphs
from onnxbrecq.graph.skeleton import skeleton

OLDEST = 13  # the first whose DequantizeLinear has an axis
_IR_VERSIONS = {18: 8, 20: 9, 22: 10, 24: 11}  # newest opset → IR version it came with
_NEWEST_IR = 12
_AXES_ARE_INPUTS = 18
_REDUCTIONS = frozenset(
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)
# Operator and value of an attribute → the opset that gave it this meaning.
_SINCE: Mapping[tuple[str, bytes], int] = {
    ("GridSample", b"linear"): 20,
    ("GridSample", b"cubic"): 20,
    ("Pad", b"wrap"): 19,
    ("Resize", b"half_pixel_symmetric"): 19,
}


def ir_version(opset: int) -> int:
    """The IR version that the opset came with; 8 for all older ones."""
    return next((ir for newest, ir in _IR_VERSIONS.items() if opset <= newest), _NEWEST_IR)


def lowered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model at the oldest opset, from 13 on, that takes it; itself where there is none."""
    newest = max(o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS)
    light = skeleton(proto)
    for opset in range(max(OLDEST, _meant_since(proto)), newest):
        if objection(_at(light, opset)) is None:
            return _at(proto, opset)
    return proto


def _meant_since(proto: onnx.ModelProto) -> int:
    return max(
        (
            _SINCE.get((node.op_type, attribute.s), OLDEST)
            for graph in graphs(proto.graph)
            for node in graph.node
            for attribute in node.attribute
        ),
        default=OLDEST,
    )


def _at(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy that declares `opset`."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for entry in made.opset_import:
        if entry.domain in STANDARD_DOMAINS:
            entry.version = opset
    made.ir_version = ir_version(opset)
    if opset < _AXES_ARE_INPUTS:
        _edit_reductions(made.graph)
    return made


def _edit_reductions(graph: onnx.GraphProto) -> None:
    """Edits the graph: constant axes of reductions become attributes."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _REDUCTIONS and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            del node.input[1]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
    reads = {name for part in graphs(graph) for node in part.node for name in node.input}
    reads |= {value.name for value in graph.output}
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in reads:
            del graph.initializer[i]
