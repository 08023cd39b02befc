"""What a node is to quantization, as ONNX Runtime's CPU provider has kernels for it.

- *layers* multiply data by a constant: Conv, ConvTranspose, Gemm, MatMul;
- *products* are MatMuls of two activations, in attention;
- *integer operators* run on integers when all their inputs and their output are quantized;
- *carriers* move values, and compute nothing;
- *activation functions* Relu and Clip(0, c) are done by the saturation of a quantizer behind them.
"""

import math

import onnx

from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute

ROWS = frozenset({"Gemm", "MatMul"})  # layers whose channels are the last axis
LAYERS = frozenset({"Conv", "ConvTranspose"}) | ROWS
INTEGER_OPERATORS = frozenset(
    {"Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Sigmoid", "LeakyRelu"}
)
CARRIERS = frozenset(
    {"DepthToSpace", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
     "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip
_FLOAT = onnx.TensorProto.FLOAT


def activation_bounds(model: Model, tensor: str) -> tuple[bool, float | None]:
    """Whether a Relu or Clip(0, c) produces `tensor`, and c (None for a Relu)."""
    node = model.producer.get(tensor)
    if node is None or node.domain not in STANDARD_DOMAINS:
        return False, None
    if node.op_type == "Relu":
        return True, None
    if node.op_type == "Clip" and len(node.input) == 3 and node.input[1] and node.input[2]:
        low, high = (model.initializers.get(name) for name in node.input[1:3])
        if low is not None and high is not None and low.size == high.size == 1:
            bounds = float(low.reshape(())), float(high.reshape(()))
            if bounds[0] == 0 < bounds[1]:
                return True, bounds[1] if math.isfinite(bounds[1]) else None
    return False, None


def carried(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node only moves values of its first input (or adds zeros, always a level)."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in CARRIERS:
        return False
    if node.input[0] in model.initializers:  # a table that is looked up in
        return False
    if node.op_type == "Resize":
        # Outside the image, where only this mode looks, stands a value of its own.
        mode = attribute(node, "coordinate_transformation_mode", b"half_pixel")
        return attribute(node, "mode", b"nearest") == b"nearest" and mode != b"tf_crop_and_resize"
    if node.op_type != "Pad":
        return True
    filling = model.initializers.get(node.input[2]) if len(node.input) > 2 else None
    known = len(node.input) < 3 or not node.input[2] or filling is not None
    return (
        attribute(node, "mode", b"constant") == b"constant"
        and known
        and (filling is None or not filling.any())
        and not any(node.input[3:])
    )


def is_product(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node multiplies two activations, which integer kernels can."""
    return (
        node.op_type == "MatMul"
        and node.domain in STANDARD_DOMAINS
        and not any(name in model.initializers for name in node.input)
        and all(model.dtypes.get(name) == _FLOAT for name in node.input)
        and not dequantized(model, node)
    )


def dequantized(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node's operands come in integers, as the file has them."""
    makers = [model.producer.get(name) for name in node.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def data_inputs(model: Model, node: onnx.NodeProto) -> list[str]:
    """The inputs that are activations."""
    return [name for name in node.input if name and name not in model.initializers]


def behind(model: Model, tensor: str) -> str:
    """`tensor`, or the output of the Relu or Clip(0, c) that alone reads it."""
    readers = model.consumers.get(tensor, ())
    if len(readers) == 1 and tensor not in model.outputs:
        follower = readers[0]
        if activation_bounds(model, follower.output[0])[0] and follower.input[0] == tensor:
            return str(follower.output[0])
    return tensor
