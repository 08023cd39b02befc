"""Types behind operators that onnx's shape inference does not know.

While types are inferred, a *stand-in* of ONNX's own operators, whose outputs have the same types
and shapes, takes the place of such a node:

    Gelu, SkipLayerNormalization ...   Identity: the shape of an input
    FusedConv, FusedGemm               Conv, Gemm
    Attention, MatMulNBits ...         Reshape to a shape that nobody knows: the type of an input

Of what has no stand-in either, the types that the file itself declares are believed.
"""

from collections.abc import Iterator

import onnx
from onnx import helper

from onnxbrecq.graph.model import STANDARD_DOMAINS

_MICROSOFT, _ML = "com.microsoft", "ai.onnx.ml"
_SKIPPING = {0: 0, 3: 0}
# (domain, operator) → which output has the type and shape of which input.
_ALIKE: dict[tuple[str, str], dict[int, int]] = {
    ("", "GroupNormalization"): {0: 0},  # its definition is a function that inference passes over
    **{(_MICROSOFT, op): {0: 0} for op in (
        "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "FastGelu", "Gelu", "GroupNorm",
        "Inverse", "QuickGelu", "RotaryEmbedding", "Trilu",
    )},
    (_MICROSOFT, "SkipGroupNorm"): {0: 0, 1: 0},
    (_MICROSOFT, "SkipLayerNormalization"): _SKIPPING,
    (_MICROSOFT, "SkipSimplifiedLayerNormalization"): _SKIPPING,
    (_ML, "Imputer"): {0: 0},
}  # fmt: skip
# (domain, operator) → which output has the type of which input.
_TYPED: dict[tuple[str, str], dict[int, int]] = {
    **{(_MICROSOFT, op): {0: 0} for op in (
        "Attention", "BiasSplitGelu", "ComplexMul", "ComplexMulConj",
        "ConvTransposeWithDynamicPads", "CropAndResize", "DynamicQuantizeMatMul", "ExpandDims",
        "FusedMatMul", "FusedMatMulActivation", "GatherND", "GemmFastGelu", "GroupQueryAttention",
        "Irfft", "LongformerAttention", "MatMulBnb4", "MatMulNBits", "MaxpoolWithMask", "MoE",
        "MultiHeadAttention", "NhwcConv", "NhwcFusedConv", "Pad", "Rfft", "TransposeMatMul",
        "UnfoldTensor",
    )},
    (_MICROSOFT, "EmbedLayerNormalization"): {0: 2, 2: 2},
    (_MICROSOFT, "MatMulIntegerToFloat"): {0: 2},
    (_MICROSOFT, "RelativePositionBias"): {0: 0},
}  # fmt: skip
# (domain, operator) → the operator that it is with an activation function behind, and its inputs.
_FUSED = {(_MICROSOFT, "FusedConv"): ("Conv", 3), (_MICROSOFT, "FusedGemm"): ("Gemm", 3)}
_ACTIVATION = "activation"  # begins the names of the attributes that say which
_ANY_SHAPE = "~any shape"


def infer_types(bones: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the skeleton `bones` with every type that can be known.

    Raises:
        onnx.shape_inference.InferenceError: the model contradicts itself.
    """
    standing = onnx.ModelProto()
    standing.CopyFrom(bones)
    nodes = [stand_in for node in bones.graph.node for stand_in in _stand_ins(node)]
    del standing.graph.node[:]
    standing.graph.node.extend(nodes)
    standing.graph.input.append(
        helper.make_tensor_value_info(_ANY_SHAPE, onnx.TensorProto.INT64, [None])
    )
    found = onnx.shape_inference.infer_shapes(standing, data_prop=True)
    del found.graph.node[:]
    found.graph.node.extend(bones.graph.node)
    del found.graph.input[-1]
    return found


def declared_types(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the graph says of tensors that only its own word is known of."""
    alone = {name for node in graph.node if is_unknown(node) for name in node.output}
    return [_copied(value) for value in graph.value_info if value.name in alone]


def is_unknown(node: onnx.NodeProto) -> bool:
    """Whether neither onnx nor this module knows the types of what the node makes."""
    key = (node.domain, node.op_type)
    if key in _ALIKE or key in _TYPED or key in _FUSED or node.domain in STANDARD_DOMAINS:
        return False
    if not onnx.defs.has(node.op_type, node.domain):
        return True
    return not onnx.defs.get_schema(node.op_type, node.domain).has_type_and_shape_inference_function


def _stand_ins(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes that make tensors of the same types: the node itself where inference knows it."""
    key = (node.domain, node.op_type)
    if key in _FUSED:
        op, count = _FUSED[key]
        made = helper.make_node(op, node.input[:count], node.output)
        made.attribute.extend(a for a in node.attribute if not a.name.startswith(_ACTIVATION))
        yield made
        return
    if key not in _ALIKE and key not in _TYPED:
        yield node
        return
    for output, source in _ALIKE.get(key, {}).items():
        if len(node.output) > output and node.output[output]:
            yield helper.make_node("Identity", [node.input[source]], [node.output[output]])
    for output, source in _TYPED.get(key, {}).items():
        if len(node.output) > output and node.output[output]:
            reads = [node.input[source], _ANY_SHAPE]
            yield helper.make_node("Reshape", reads, [node.output[output]])


def _copied(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    return copy
