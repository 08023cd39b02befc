"""What onnxruntime really executes: the nodes left after its optimisations, and which of them
compute with integers.

onnxruntime keeps a layer's name when it fuses the layer into a QLinearConv, QGemm, QLinearMatMul,
MatMulIntegerToFloat or MatMulNBits. What it appends is known (measured on 1.32, see
test_names_survive_fusion in tests/runtime/test_kernels.py): `_token_N` where the layout of images
changes to NHWC, `/MatMulAddFusion` where a MatMul and an Add become a Gemm. A layer whose name is
found under none of these counts as float: integer execution is proven or not claimed.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxbrecq.runtime.trace import optimized

INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)

_APPENDED = re.compile(r"(_token_\d+|/MatMulAddFusion)+$")


@dataclass(frozen=True)
class ExecutedNode:
    """A node of the optimised graph: what onnxruntime dispatches to one kernel."""

    name: str
    op: str
    domain: str


def executed(model: onnx.ModelProto | Path, threads: int | None = None) -> tuple[ExecutedNode, ...]:
    """The nodes that a default session of `model` executes, subgraphs included.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    graph = optimized(model, threads, weights=False).graph
    return tuple(ExecutedNode(n.name, n.op_type, n.domain) for n in _nodes(graph))


def integer_kernels(
    names: Sequence[str], nodes: Sequence[ExecutedNode]
) -> Mapping[str, str | None]:
    """Layer name → the integer kernel that executes it, or None: a float kernel, or unknown.

    Args:
        names: of the layers, as in the model that was loaded.
        nodes: what `executed` returned for it.
    """
    wanted = set(names)
    operators: dict[str, set[str]] = {}
    for node in nodes:
        operators.setdefault(written_name(node.name, wanted), set()).add(node.op)
    return {name: _integer(operators.get(name, set())) for name in names}


def written_name(executed_name: str, names: Collection[str]) -> str:
    """The name that an executed node had in the model that was loaded, whose `names` these are."""
    # A name of the model may itself end like something appended: the whole name comes first.
    return executed_name if executed_name in names else _APPENDED.sub("", executed_name)


def _integer(operators: set[str]) -> str | None:
    """The one integer kernel among the operators that bear a layer's name."""
    return operators.pop() if len(operators) == 1 and operators <= INTEGER_KERNELS else None


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)
