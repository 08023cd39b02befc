"""What onnxruntime fused when it saved a model becomes operators of ONNX itself again.

A session that writes its graph down (`optimized_model_filepath`; Optimum's O1 to O4; the optimizer
for transformers) puts operators of its own domain in the place of layers, of which neither the
weights could be quantized nor the work counted. What is written here is what they compute:

    FusedConv, FusedGemm            the layer, Z added to it, an activation function of it
    FusedMatMul, TransposeMatMul    alpha A' B', of A or B or both transposed
    Gelu, BiasGelu, FastGelu        Gelu(x + bias), by erf or by tanh
    QuickGelu                       x sigmoid(alpha x)
    SkipLayerNormalization          LayerNormalization(input + skip + bias)
    Attention                       query, key and value of x, softmax(scale Q K' + mask) V

Attention with a past, a rotation, a causal mask or lengths in place of a mask stays what it is, and
so does whatever needs a rank or a type that is not known.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.editor import Editor, altered
from onnxbrecq.graph.passes.values import integers, number

_DOMAIN = "com.microsoft"
_GELU, _LAYER_NORM = 20, 17  # the first opsets that have them
_ACTIVATION = "activation"  # begins the names of all attributes that say which
# Activation functions of layers → the attributes that their parameters are; Clip takes inputs.
_ACTIVATIONS = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": (), "LeakyRelu": ("alpha",),
    "Elu": ("alpha",), "ThresholdedRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": (),
}  # fmt: skip
_QUICK = 1.702  # alpha of QuickGelu
_MASKED = -10000.0  # what Attention adds to scores that a mask hides
_EPSILON = 1e-12  # of SkipLayerNormalization
# How the axes [N, S, heads, channels] of each part of Attention go into its product.
_HEADS = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}


# Every attribute that these operators have, and its type.
_TYPES = {
    **dict.fromkeys(
        ("alpha", "beta", "epsilon", "scale", "mask_filter_value", "activation_alpha",
         "activation_beta", "activation_gamma"), AttributeProto.FLOAT,
    ),
    **dict.fromkeys(
        ("transA", "transB", "transBatchA", "transBatchB", "group", "num_heads", "unidirectional",
         "do_rotary", "rotary_embedding_dim", "past_present_share_buffer"), AttributeProto.INT,
    ),
    **dict.fromkeys(
        ("pads", "strides", "dilations", "kernel_shape", "qkv_hidden_sizes"), AttributeProto.INTS
    ),
    **dict.fromkeys((_ACTIVATION, "auto_pad"), AttributeProto.STRING),
    f"{_ACTIVATION}_params": AttributeProto.FLOATS,
}  # fmt: skip


class _Written:
    """The nodes that are written in the place of one."""

    def __init__(self, editor: Editor, node: onnx.NodeProto) -> None:
        self.editor = editor
        self.node = node
        self.nodes: list[onnx.NodeProto] = []

    def add(
        self, op: str, *inputs: str, name: str = "", last: bool = False, **attributes: Any
    ) -> str:
        """Writes a node; the tensor that it makes: the first output of what goes, if `last`."""
        made = self.node.output[0] if last else self.name(op)
        self.nodes.append(onnx.helper.make_node(op, inputs, [made], name, **attributes))
        return made

    def name(self, what: str) -> str:
        """A name for a tensor."""
        return self.editor.free(f"{self.node.output[0]}~{what}{len(self.nodes)}")

    def constant(self, what: str, value: NDArray[np.generic]) -> str:
        """The name of a new constant."""
        return self.editor.add_constant(f"{self.node.output[0]}~{what}", value)

    @property
    def typed(self) -> bool:
        """Whether the type of the first output is known."""
        return self.editor.dtype(self.node.output[0]) is not None

    def scalar(self, what: str, value: float) -> str:
        """A constant of the type of the first output, which must be known."""
        dtype = self.editor.dtype(self.node.output[0])
        return self.constant(what, np.asarray(value, dtype))

    def input(self, i: int) -> str:
        """The node's input, empty where it has none."""
        return str(self.node.input[i]) if i < len(self.node.input) else ""

    def output(self, i: int) -> str:
        """The node's output, empty where it has none."""
        return str(self.node.output[i]) if i < len(self.node.output) else ""


def edit_fused(editor: Editor) -> None:
    """Fused operators of onnxruntime become those of ONNX (see above)."""
    for node in editor.nodes:
        if node.domain == _DOMAIN and node.op_type in _OPERATORS and _is_sound(node):
            written = _Written(editor, node)
            if _OPERATORS[node.op_type].write(written):
                editor.replace([node], written.nodes)


def _is_sound(node: onnx.NodeProto) -> bool:
    """Whether the node has what its operator takes, which nobody checks for other domains."""
    operator = _OPERATORS[node.op_type]
    return (
        operator.least <= len(node.input) <= operator.most
        and all(node.input[: operator.least])
        and any(node.output[:1])
        and all(_TYPES.get(item.name) == item.type for item in node.attribute)
    )


def _layer(op: str) -> Callable[[_Written], bool]:
    """A layer of three inputs, the fourth added to it, and its activation function."""

    def write(written: _Written) -> bool:
        node, z = written.node, written.input(3)
        function = attribute(node, _ACTIVATION, b"")
        kind = function.decode(errors="replace") if isinstance(function, bytes) else ""
        if kind and kind not in _ACTIVATIONS:
            return False
        dropped = [item.name for item in node.attribute if item.name.startswith(_ACTIVATION)]
        y = written.name(op) if z or kind else node.output[0]
        layer = altered(node, inputs=node.input[:3], output=y, attributes=dict.fromkeys(dropped))
        layer.domain, layer.op_type = "", op
        written.nodes.append(layer)
        if z:
            y = written.add("Add", y, z, last=not kind)
        return not kind or _activate(written, kind, y)

    return write


def _activate(written: _Written, kind: str, y: str) -> bool:
    """Writes an activation function of `y`; says whether its parameters are known."""
    node = written.node
    given = attribute(node, f"{_ACTIVATION}_params", ())
    values = [float(v) for v in given] if isinstance(given, Sequence) else []
    if kind == "Clip":
        if len(values) != 2 or not written.typed:
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


def _product(written: _Written) -> bool:
    alpha, sides = number(written.node, "alpha", 1.0), []
    if alpha != 1 and not written.typed:
        return False
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


def _permutation(written: _Written, i: int, side: str) -> list[int] | None:
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


def _gelu(approximate: str) -> Callable[[_Written], bool]:
    def write(written: _Written) -> bool:
        if written.editor.opset < _GELU:
            return False
        x, bias = written.input(0), written.input(1)
        x = written.add("Add", x, bias) if bias else x
        written.add("Gelu", x, name=written.node.name, last=True, approximate=approximate)
        return True

    return write


def _quick_gelu(written: _Written) -> bool:
    x, alpha = written.input(0), number(written.node, "alpha", _QUICK)
    if not written.typed:
        return False
    gate = written.add("Sigmoid", written.add("Mul", x, written.scalar("alpha", alpha)))
    written.add("Mul", x, gate, name=written.node.name, last=True)
    return True


def _skip_layer_norm(written: _Written) -> bool:
    node = written.node
    if written.editor.opset < _LAYER_NORM or written.output(1) or written.output(2):
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


def _attention(written: _Written) -> bool:
    """Query, key and value have a product each: their steps may then differ."""
    node, heads = written.node, int(number(written.node, "num_heads", 0))
    later = any(written.input(i) for i in (4, 6)) or bool(written.output(1))  # past and present
    turned = attribute(node, "unidirectional", 0) or attribute(node, "do_rotary", 0)
    scale = number(node, "scale", 0.0)
    parts = None if later or turned or heads < 1 else _projections(written, heads)
    mask = _mask(written) if written.input(3) else ""
    if parts is None or mask is None:
        return False
    (query, width), (key, _), (value, size) = parts
    factor = written.scalar("scale", scale or 1 / math.sqrt(width // heads))
    scores = written.add("MatMul", query, key, name=f"{node.name}/scores")
    scores = written.add("Mul", scores, factor)
    for term in filter(None, (written.input(5), mask)):
        scores = written.add("Add", scores, term)
    weighed = written.add("Softmax", scores, axis=-1)
    y = written.add("MatMul", weighed, value, name=f"{node.name}/weighed")
    y = written.add("Transpose", y, perm=[0, 2, 1, 3])
    written.add("Reshape", y, written.constant("joined", np.array([0, 0, size])), last=True)
    return True


def _projections(written: _Written, heads: int) -> list[tuple[str, int]] | None:
    """Query [N, heads, S, .], key [N, heads, ., S] and value, and how many channels each has."""
    node = written.node
    weights, biases = (written.editor.constant(written.input(i)) for i in (1, 2))
    if weights is None or biases is None or weights.ndim != 2 or not written.typed:
        return None
    width = weights.shape[1]
    sizes = integers(node, "qkv_hidden_sizes") or [width // 3] * 3
    whole = len(sizes) == 3 and sum(sizes) == width and biases.shape == (width,)
    if not whole or any(size < 1 or size % heads for size in sizes):
        return None
    shape = written.constant("heads", np.array([0, 0, heads, -1]))
    ends, parts = np.cumsum(sizes)[:-1], []
    pieces = zip(np.split(weights, ends, axis=1), np.split(biases, ends), strict=True)
    for (part, perm), (weight, bias) in zip(_HEADS.items(), pieces, strict=True):
        w, b = written.constant(part, weight), written.constant(f"{part}~bias", bias)
        y = written.add("MatMul", written.input(0), w, name=f"{node.name}/{part}")
        y = written.add("Reshape", written.add("Add", y, b), shape)
        parts.append((written.add("Transpose", y, perm=perm), weight.shape[1]))
    return parts


def _mask(written: _Written) -> str | None:
    """What is added to the scores where the mask [N, T] or [N, S, T] is 0; None: it is another."""
    name = written.input(3)
    rank = len(written.editor.shape(name) or ())
    dtype = written.editor.dtype(name)
    if rank not in (2, 3) or dtype != np.int32:
        return None
    zero, none = written.constant("zero", np.zeros((), dtype)), written.scalar("seen", 0.0)
    hidden = written.scalar("hidden", number(written.node, "mask_filter_value", _MASKED))
    seen = written.add("Greater", name, zero)
    added = written.add("Where", seen, none, hidden)
    axes = written.constant("axes", np.array([1, 2] if rank == 2 else [1]))
    return written.add("Unsqueeze", added, axes)


class _Operator(NamedTuple):
    """How a fused operator is written, and how many inputs it has, at least and at most."""

    write: Callable[[_Written], bool]
    least: int
    most: int


_OPERATORS = {
    "FusedConv": _Operator(_layer("Conv"), 2, 4),
    "FusedGemm": _Operator(_layer("Gemm"), 2, 3),
    "FusedMatMul": _Operator(_product, 2, 2),
    "TransposeMatMul": _Operator(_product, 2, 2),
    "Gelu": _Operator(_gelu("none"), 1, 1),
    "BiasGelu": _Operator(_gelu("none"), 2, 2),
    "FastGelu": _Operator(_gelu("tanh"), 1, 2),
    "QuickGelu": _Operator(_quick_gelu, 1, 1),
    "SkipLayerNormalization": _Operator(_skip_layer_norm, 3, 5),
    "Attention": _Operator(_attention, 3, 7),
}
