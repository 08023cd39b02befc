"""What the layers of a canonical model may not be, so that no integer stands for a NaN.

A constant anywhere else may hold what it likes: minus infinity masks attention and pads a MaxPool.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute
from onnxbrecq.graph.passes.values import integers, number

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NORMALIZATIONS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization",
     "RMSNormalization"}
)  # fmt: skip
_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
     "ConvInteger", "MatMulInteger"}
)  # fmt: skip
_KERNEL_LISTS = ("kernel_shape", "strides", "dilations", "pads")


def check_layers(model: Model, where: str) -> None:
    """Refuses layers that cannot be computed, or only to NaN.

    Raises:
        ModelError: a weight, a bias or a norm's parameter is not finite, or does not fit the data.
    """
    for node in model.nodes:
        if node.domain not in STANDARD_DOMAINS:
            continue
        if node.op_type in _LAYERS | _NORMALIZATIONS:
            _check_finite(model, node, where)
        for problem in _misfits(model, node):
            raise ModelError(
                f"{where}: node {node.name!r} ({node.op_type}): {problem}; export the model again"
            )


def check_unquantized(model: Model, where: str) -> None:
    """Refuses a model that is quantized already, with no layer left to quantize.

    Raises:
        ModelError: names one of its quantized nodes.
    """
    done = next((node for node in model.nodes if node.op_type in _QUANTIZED), None)
    if done is not None and not weight_layers(model):
        raise ModelError(
            f"{where}: node {done.name!r} is a {done.op_type}, and no layer has a float weight: "
            "the model is already quantized; give the float model"
        )


def _check_finite(model: Model, node: onnx.NodeProto, where: str) -> None:
    for name in node.input:
        constant = model.initializers.get(name)
        if constant is not None and not _all_finite(constant):
            raise ModelError(
                f"{where}: the constant {name!r} holds NaN or infinite values, which node "
                f"{node.name!r} ({node.op_type}) multiplies; repair the model before quantizing it"
            )


def _all_finite(constant: NDArray[np.generic]) -> bool:
    return bool(np.isfinite(constant.astype(np.float32, copy=False)).all())


def _misfits(model: Model, node: onnx.NodeProto) -> Iterator[str]:
    """Why the node cannot be computed, where shapes and attributes show it."""
    if node.op_type not in _LAYERS:
        return
    data, weight = (model.shapes.get(name) for name in node.input[:2])
    if data is None or weight is None:
        return
    if node.op_type in ("Gemm", "MatMul"):
        yield from _unequal_sums(node, data, weight)
    else:
        yield from _wrong_kernel(node, data, weight)


def _unequal_sums(
    node: onnx.NodeProto, data: tuple[int | None, ...], weight: tuple[int | None, ...]
) -> Iterator[str]:
    if not data or not weight:
        yield "an operand is a scalar"
        return
    first = data[0] if attribute(node, "transA", 0) else data[-1]
    second = weight[-1] if attribute(node, "transB", 0) else weight[-2:][0]
    if None not in (first, second) and first != second:
        yield f"its operands sum over {first} and over {second} values"


def _wrong_kernel(
    node: onnx.NodeProto, data: tuple[int | None, ...], weight: tuple[int | None, ...]
) -> Iterator[str]:
    if len(data) != len(weight):
        yield f"its data has {len(data)} dimensions, its weight {len(weight)}"
        return
    spatial = len(weight) - 2
    for name in _KERNEL_LISTS:
        given, wanted = len(integers(node, name)), 2 * spatial if name == "pads" else spatial
        if given not in (0, wanted):
            yield f"its attribute {name} has {given} numbers, {wanted} are needed"
    split = number(node, "group", 1) if node.op_type == "Conv" else 1
    channels = weight[1] if node.op_type == "Conv" else weight[0]
    if data[1] is not None and channels is not None and data[1] != channels * split:
        yield f"its data has {data[1]} channels, its weight takes {channels * split}"
