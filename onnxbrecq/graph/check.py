"""What an untrusted file may not be: each refusal is one line that says what, where and what to do.

Nothing is executed, and nothing is read but the model in memory.
"""

import graphlib
import re

import onnx
from onnx import helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.check_tensors import check_tensors
from onnxbrecq.graph.constants import Constants
from onnxbrecq.graph.model import STANDARD_DOMAINS, graphs, node_inputs
from onnxbrecq.graph.skeleton import skeleton
from onnxbrecq.graph.unlisted import edit_unlisted

_OLDEST_OPSET = 7
_LAID_OUT = ("com.microsoft.nchwc", "com.ms.internal.nhwc")  # by ORT_ENABLE_ALL
_CONSTANTS_APART = 4  # the first IR version whose initializers need not be graph inputs


def check(proto: onnx.ModelProto, constants: Constants, where: str) -> int:
    """The default domain's opset, after refusing what is not a valid float model.

    Edits what runtimes forgive: nodes get into topological order, a dimension of -1 becomes
    unknown, the domain ai.onnx gets its short name, and constants need not be inputs.

    Raises:
        ModelError: one line, with the node or the tensor, and what to do.
    """
    opset = max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"{where}: opset {opset} is not supported ({_OLDEST_OPSET} to {newest} are); "
            "export the model again with another opset_version"
        )
    check_tensors(proto, constants, where)
    _edit_domains(proto)
    proto.ir_version = max(proto.ir_version, _CONSTANTS_APART)
    edit_unlisted(proto, int(opset))
    known = {function.name for function in proto.functions}
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    for node in nodes:
        if node.domain in STANDARD_DOMAINS and node.op_type not in known:
            _check_operator(node, int(opset), where)
    for node in (*nodes, *(node for function in proto.functions for node in function.node)):
        if node.domain in _LAID_OUT:
            raise ModelError(
                f"{where}: node {_named(node)} ({node.domain}.{node.op_type}) is laid out for one "
                "processor; quantize the model that onnxruntime optimized, or have it saved with "
                "ORT_ENABLE_EXTENDED at most"
            )
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        _edit_dimensions(value, where)
    _edit_order(proto.graph, where)
    try:
        check_structure(proto)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{where} is not valid ONNX: {_complaint(error)}") from error
    return int(opset)


def check_structure(proto: onnx.ModelProto) -> None:
    """Has onnx's checker look at the model, its large constants aside.

    Raises:
        onnx.checker.ValidationError: it complains.
    """
    bones = skeleton(proto)
    for value in (*bones.graph.input, *bones.graph.output):
        if value.type.HasField("tensor_type"):  # the checker wants a shape, runtimes do not
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(bones)


def objection(proto: onnx.ModelProto) -> str | None:
    """What onnx's checker or strict type inference says against the model; None: nothing."""
    try:
        check_structure(proto)
        if all(node.domain in STANDARD_DOMAINS for node in proto.graph.node):
            onnx.shape_inference.infer_shapes(skeleton(proto), check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error)
    return None


def _edit_domains(proto: onnx.ModelProto) -> None:
    """Edits the model: ONNX's own operators are of the domain "", as onnx's tools expect."""
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    owners = (proto, *proto.functions)
    for named in (*nodes, *(entry for owner in owners for entry in owner.opset_import)):
        if named.domain in STANDARD_DOMAINS:
            named.domain = ""
    for owner in owners:  # under its one name now, each domain is imported once
        versions = {entry.domain: entry.version for entry in owner.opset_import}
        del owner.opset_import[:]
        owner.opset_import.extend(helper.make_opsetid(*known) for known in versions.items())


def _complaint(error: onnx.checker.ValidationError) -> str:
    """What the checker says, on one line, with the node it says it of."""
    said, *context = (" ".join(part.split()) for part in str(error).split("==>"))
    node = re.search(r"Name: (?P<name>.*?) OpType: (?P<op>\S+)", " ".join(context))
    return f"node {node['name']!r} ({node['op']}): {said}" if node else said


def _check_operator(node: onnx.NodeProto, opset: int, where: str) -> None:
    try:
        onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise ModelError(
            f"{where}: node {_named(node)} uses the operator {node.op_type}, which opset {opset} "
            "does not have; export the model again, or give the node the domain that defines it"
        ) from error


def _edit_dimensions(value: onnx.ValueInfoProto, where: str) -> None:
    """Edits the value: some exporters write -1 for a dimension that is not known."""
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_value == -1:
            dim.Clear()
        elif dim.dim_value < 0:
            raise ModelError(
                f"{where}: {value.name!r} has the negative dimension {dim.dim_value}; export the "
                "model again"
            )


def _edit_order(graph: onnx.GraphProto, where: str) -> None:
    """Edits the graph: each node stands behind those that make what it reads.

    Raises:
        ModelError: nobody makes a tensor that a node reads, or nodes wait for each other.
    """
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in graph.input} | {t.name for t in graph.initializer}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    waits: dict[int, set[int]] = {}
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    for i, node in enumerate(graph.node):
        reads = node_inputs(node)
        missing = next((name for name in reads if name not in made), None)
        if missing is not None:
            raise ModelError(
                f"{where}: node {_named(node)} ({node.op_type}) reads {missing!r}, which is no "
                "input, constant or output of a node; export the model again"
            )
        waits[i] = {makers[name] for name in reads if name in makers}
    if all(j < i for i, others in waits.items() for j in others):
        return
    try:
        order = list(graphlib.TopologicalSorter(waits).static_order())
    except graphlib.CycleError as error:
        names = ", ".join(_named(graph.node[i]) for i in error.args[1][:-1][:4])
        raise ModelError(
            f"{where}: the nodes {names} wait for each other: the graph has a cycle; export the "
            "model again"
        ) from error
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _named(node: onnx.NodeProto) -> str:
    return repr(node.name or "".join(node.output[:1]))
