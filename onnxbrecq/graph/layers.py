"""Weight layers and their cost: the nodes that multiply activations by a constant.

Multiply-accumulates (MACs) count one sample. With O the output's elements per sample:

    Conv             O * (C_in / groups) * prod(kernel)
    ConvTranspose    I * (C_out / groups) * prod(kernel)      I: the input's elements per sample
    Gemm, MatMul     O * K                                    K: the summed dimension

The batch dimension counts once, of a multiple of it (windows, or tokens laid end to end) the
factor, and once a dimension that shape inference left unknown. A fixed batch is told by where it
leads.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

import onnx

from onnxbrecq.graph.batch import BATCH
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute
from onnxbrecq.graph.symbols import multiple

WEIGHT_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class WeightLayer:
    """A node whose work is a product with a constant.

    Attributes:
        name: the node's name.
        op: its operator.
        weight: initializer name.
        macs: multiply-accumulates of one sample.
        parameters: elements of the weight.
    """

    name: str
    op: str
    weight: str
    macs: int
    parameters: int


def weight_layers(model: Model) -> tuple[WeightLayer, ...]:
    """The weight layers of the main graph, in topological order."""
    return tuple(
        WeightLayer(
            node.name, node.op_type, weight, _macs(model, node, weight), model.elements(weight)
        )
        for node in model.nodes
        if (weight := _weight(model, node)) is not None
    )


def _weight(model: Model, node: onnx.NodeProto) -> str | None:
    """The constant float factor of `node`, or None if it is no weight layer."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in WEIGHT_OPERATORS:
        return None
    either_side = node.op_type in ("Gemm", "MatMul")
    factors = (node.input[1], node.input[0]) if either_side else (node.input[1],)
    constants = (n for n in factors if n in model.initializers and model.dtypes[n] in _FLOATS)
    return next(constants, None)


def _macs(model: Model, node: onnx.NodeProto, weight: str) -> int:
    shape = tuple(size or 0 for size in model.shapes[weight])
    if node.op_type == "Conv":
        return ceil(_per_sample(model, node.output[0]) * prod(shape[1:]))
    if node.op_type == "ConvTranspose":
        return ceil(_per_sample(model, node.input[0]) * prod(shape[1:]))
    summed = _summed(node, shape, first=weight == node.input[0])
    return ceil(_per_sample(model, node.output[0]) * summed)


def _summed(node: onnx.NodeProto, shape: tuple[int, ...], *, first: bool) -> int:
    """K of a Gemm or MatMul whose first or second factor has `shape`."""
    if len(shape) == 1:
        return shape[0]
    flipped = attribute(node, "transA" if first else "transB", 0) == 1
    return shape[-1] if first != flipped else shape[-2]


def _per_sample(model: Model, tensor: str) -> Fraction:
    """Elements of `tensor` for one sample; a fraction where a row holds several."""
    first = next((name for name in model.inputs if model.shapes.get(name)), None)
    size, symbol = (model.shapes[first][0], model.symbols[first][0]) if first else (None, "")
    symbol = BATCH if model.batched else symbol
    dims = zip(model.shapes.get(tensor, ()), model.symbols.get(tensor, ()), strict=True)
    counts = [
        Fraction((multiple(name, symbol) or 1) if known is None else known) for known, name in dims
    ]
    leads = bool(size and counts and counts[0] % size == 0)
    return prod(counts, start=Fraction(1)) / (size if size and leads else 1)
