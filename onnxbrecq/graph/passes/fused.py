"""What onnxruntime fused when it saved a model becomes operators of ONNX itself again.

A session that writes its graph down (`optimized_model_filepath`; Optimum's O1 to O4; the optimizer
for transformers) puts operators of its own domain in the place of layers, of which neither the
weights could be quantized nor the work counted. What is written here is what they compute:

    FusedConv, FusedGemm            the layer, Z added to it, an activation function of it
    FusedMatMul, TransposeMatMul    alpha A' B', of A or B or both transposed
    Gelu, BiasGelu, FastGelu        Gelu(x + bias), by erf or by tanh
    QuickGelu                       x sigmoid(alpha x)
    SkipLayerNormalization          LayerNormalization(input + skip + bias)
    Attention                       its products and their softmax (`passes/attention.py`)
    EmbedLayerNormalization         its tables and its norm (`passes/embedding.py`)

What stands in a subgraph stays what it is, and so does what needs a rank or a type that is not
known, or an operator that the opset of a file which cannot be lifted does not have.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import onnx
from onnx import AttributeProto

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.attention import attention
from onnxbrecq.graph.passes.editor import Editor, altered
from onnxbrecq.graph.passes.embedding import embedding
from onnxbrecq.graph.passes.values import number
from onnxbrecq.graph.passes.written import Written

_DOMAIN = "com.microsoft"
_GELU, _LAYER_NORM = 20, 17  # the first opsets that have them
_ACTIVATION = "activation"  # begins the names of all attributes that say which
# Activation functions of layers → the attributes that their parameters are; Clip takes inputs.
_ACTIVATIONS = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": (), "LeakyRelu": ("alpha",),
    "Elu": ("alpha",), "ThresholdedRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": (),
}  # fmt: skip
_QUICK = 1.702  # alpha of QuickGelu
_EPSILON = 1e-12  # of SkipLayerNormalization


def edit_fused(editor: Editor) -> None:
    """Fused operators of onnxruntime become those of ONNX (see above)."""
    for node in editor.nodes:
        if node.domain == _DOMAIN and node.op_type in _OPERATORS and _is_sound(node):
            written = Written(editor, node)
            if written.typed and _OPERATORS[node.op_type].write(written):
                editor.replace([node], written.nodes)


def _is_sound(node: onnx.NodeProto) -> bool:
    """Whether the node has what its operator takes, which nobody checks for other domains."""
    operator = _OPERATORS[node.op_type]
    return (
        operator.least <= len(node.input) <= operator.most
        and all(n for i, n in enumerate(node.input[: operator.least]) if i not in operator.missing)
        and any(node.output[:1])
        and not any(node.output[operator.outputs :])
        and all(operator.attributes.get(item.name) == item.type for item in node.attribute)
    )


def _layer(op: str) -> Callable[[Written], bool]:
    """A layer of three inputs, the fourth added to it, and its activation function."""

    def write(written: Written) -> bool:
        node, z = written.node, written.input(3)
        function = attribute(node, _ACTIVATION, b"")
        kind = function.decode(errors="replace") if isinstance(function, bytes) else ""
        if kind and kind not in _ACTIVATIONS:
            return False
        dropped = [item.name for item in node.attribute if item.name.startswith(_ACTIVATION)]
        y = written.tensor(op) if z or kind else node.output[0]
        layer = altered(node, inputs=node.input[:3], output=y, attributes=dict.fromkeys(dropped))
        layer.domain, layer.op_type = "", op
        written.nodes.append(layer)
        if z:
            y = written.add("Add", y, z, last=not kind)
        return not kind or _activate(written, kind, y)

    return write


def _activate(written: Written, kind: str, y: str) -> bool:
    """Writes an activation function of `y`; says whether its parameters are known."""
    node = written.node
    given = attribute(node, f"{_ACTIVATION}_params", ())
    values = [float(v) for v in given] if isinstance(given, Sequence) else []
    if kind == "Clip":
        if len(values) != 2:
            return False
        written.add("Clip", y, *(written.scalar("bound", value) for value in values), last=True)
        return True
    names = _ACTIVATIONS[kind]
    if not values:  # FusedGemm has an attribute for each
        found = [attribute(node, f"{_ACTIVATION}_{name}", None) for name in names]
        values = [float(v) for v in found if isinstance(v, int | float)]
    if len(values) < len(names):
        return False
    parameters: dict[str, Any] = dict(zip(names, values, strict=False))
    written.add(kind, y, last=True, **parameters)
    return True


def _product(written: Written) -> bool:
    alpha, sides = number(written.node, "alpha", 1.0), []
    for i, side in enumerate("AB"):
        perm, name = _permutation(written, i, side), written.input(i)
        if perm is None:
            return False
        moved = perm != sorted(perm)
        sides.append(written.add("Transpose", name, perm=perm) if moved else name)
    product = written.add("MatMul", *sides, name=written.node.name, last=alpha == 1)
    if alpha != 1:
        written.add("Mul", product, written.scalar("alpha", alpha), last=True)
    return True


def _permutation(written: Written, i: int, side: str) -> list[int] | None:
    """How the axes of input `i` go into the product; None where its rank is not known."""
    swapped = bool(attribute(written.node, f"trans{side}", 0))
    rolled = bool(attribute(written.node, f"transBatch{side}", 0))
    if not swapped and not rolled:
        return []
    shape = written.editor.shape(written.input(i))
    if shape is None or len(shape) < 2:
        return None
    rank = len(shape)
    axes = [*range(1, rank - 1), 0, rank - 1] if rolled else list(range(rank))
    return [*axes[:-2], axes[-1], axes[-2]] if swapped else axes


def _from(opset: int, write: Callable[[Written], bool]) -> Callable[[Written], bool]:
    """Writes from that opset on."""
    return lambda written: written.editor.opset >= opset and write(written)


def _gelu(approximate: str) -> Callable[[Written], bool]:
    def write(written: Written) -> bool:
        x, bias = written.input(0), written.input(1)
        x = written.add("Add", x, bias) if bias else x
        written.add("Gelu", x, name=written.node.name, last=True, approximate=approximate)
        return True

    return _from(_GELU, write)


def _quick_gelu(written: Written) -> bool:
    x, alpha = written.input(0), number(written.node, "alpha", _QUICK)
    gate = written.add("Sigmoid", written.add("Mul", x, written.scalar("alpha", alpha)))
    written.add("Mul", x, gate, name=written.node.name, last=True)
    return True


def _skip_layer_norm(written: Written) -> bool:
    node = written.node
    if written.output(1) or written.output(2):
        return False
    x, skip, gamma, beta, bias = (written.input(i) for i in range(5))
    total = written.add("Add", x, skip)
    total = written.add("Add", total, bias) if bias else total
    if written.output(3):
        written.nodes[-1].output[0] = total = written.output(3)
    scales = [name for name in (gamma, beta) if name]
    epsilon = number(node, "epsilon", _EPSILON)
    written.add(
        "LayerNormalization", total, *scales, name=node.name, last=True, axis=-1, epsilon=epsilon
    )
    return True


class _Operator(NamedTuple):
    """How a fused operator is written, and what it has.

    Attributes:
        write: does it; says whether it could.
        least: inputs, at least.
        most: inputs, at most.
        attributes: their types by name.
        outputs: at most.
        missing: which of the least inputs may be.
    """

    write: Callable[[Written], bool]
    least: int
    most: int
    attributes: Mapping[str, int] = MappingProxyType({})
    outputs: int = 1
    missing: tuple[int, ...] = ()


_FLOAT, _INT, _INTS = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS
_OF_CONV = {
    "auto_pad": AttributeProto.STRING, "group": _INT,
    **dict.fromkeys(("pads", "strides", "dilations", "kernel_shape"), _INTS),
    _ACTIVATION: AttributeProto.STRING, f"{_ACTIVATION}_params": AttributeProto.FLOATS,
}  # fmt: skip
_OF_GEMM = {
    "alpha": _FLOAT, "beta": _FLOAT, "transA": _INT, "transB": _INT,
    _ACTIVATION: AttributeProto.STRING,
    **{f"{_ACTIVATION}_{name}": _FLOAT for name in ("alpha", "beta", "gamma")},
}  # fmt: skip
_OF_PRODUCT = {
    "alpha": _FLOAT, **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), _INT)
}  # fmt: skip
_OF_ATTENTION = {
    **dict.fromkeys(
        ("num_heads", "unidirectional", "do_rotary", "rotary_embedding_dim",
         "past_present_share_buffer"), _INT,
    ),
    "qkv_hidden_sizes": _INTS, "scale": _FLOAT, "mask_filter_value": _FLOAT,
}  # fmt: skip
_OPERATORS = {
    "FusedConv": _Operator(_layer("Conv"), 2, 4, _OF_CONV),
    "FusedGemm": _Operator(_layer("Gemm"), 2, 3, _OF_GEMM),
    "FusedMatMul": _Operator(_product, 2, 2, _OF_PRODUCT),
    "TransposeMatMul": _Operator(_product, 2, 2, _OF_PRODUCT),
    "Gelu": _Operator(_gelu("none"), 1, 1),
    "BiasGelu": _Operator(_gelu("none"), 2, 2),
    "FastGelu": _Operator(_gelu("tanh"), 1, 2),
    "QuickGelu": _Operator(_quick_gelu, 1, 1, {"alpha": _FLOAT}),
    "SkipLayerNormalization": _Operator(
        _from(_LAYER_NORM, _skip_layer_norm), 3, 5, {"epsilon": _FLOAT}, 4
    ),
    "Attention": _Operator(attention, 3, 7, _OF_ATTENTION, 2),
    "EmbedLayerNormalization": _Operator(
        _from(_LAYER_NORM, embedding),
        7,
        9,
        {"epsilon": _FLOAT, "mask_index_type": _INT},
        3,
        missing=(1, 4),
    ),
}
