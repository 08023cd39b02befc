"""Scales and shifts go into the weights and the bias of the layer in front of them.

A node that multiplies each channel by a constant a and adds a constant c, alone behind a layer
with weight W and bias b, is part of the layer:

    a (W x + b) + c = (a W) x + (a b + c)

Such nodes are BatchNormalization, with a = gamma / sqrt(var + epsilon) and c = beta - a mean, and
Mul, Div, Add and Sub with a constant of one value per channel, or one at all. A MatMul of matrices
becomes a Gemm when it gets a bias; one of more dimensions keeps its Add, and takes in the scales in
front of and behind it. The arithmetic is done in float64 and rounded once; where that would
overflow, the nodes stay.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.editor import Editor, altered, is_a
from onnxbrecq.graph.passes.values import number

_BIASED = ("Conv", "ConvTranspose", "Gemm")
_ARITHMETIC = ("Mul", "Div", "Add", "Sub")
_GEMM_RANK = 2
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Affine:
    """x -> scale * x + shift, each broadcast to x."""

    scale: Array
    shift: Array


def edit_gemms(editor: Editor) -> None:
    """A Gemm's alpha and beta go into its constants; its bias gets one value per channel.

    alpha A B + beta C = A (alpha B) + (beta C)
    """
    for node in editor.nodes:
        if not is_a(node, "Gemm") or attribute(node, "transA", 0):
            continue
        alpha, beta = (number(node, name, 1.0) for name in ("alpha", "beta"))
        shape, name = editor.shape(node.input[1]), "".join(node.input[2:])
        bias = editor.constant(name) if name else np.zeros(0)
        if shape is None or bias is None or not editor.is_constant(node.input[1]):
            continue
        channels = shape[0 if attribute(node, "transB", 0) else 1]
        if alpha == beta == 1.0 and (not name or bias.shape == (channels,)):
            continue
        row = bias.size == 1 or bias.shape in ((channels,), (1, channels))
        if name and not row:
            continue
        weight = editor.constant(node.input[1])
        if weight is None or channels is None:
            continue
        inputs = [node.input[0], _stored(editor, node, "weight", _times(weight, alpha), weight)]
        if name:
            value = np.broadcast_to(beta * _exact(bias).reshape(-1), channels)
            inputs.append(_stored(editor, node, "bias", value, bias))
        new = altered(node, inputs=inputs, attributes={"alpha": None, "beta": None})
        editor.replace([node], [new])


def edit_scales(editor: Editor) -> None:
    """BatchNormalization, Mul, Div, Add and Sub go into the layer in front (see above)."""
    for node in editor.nodes:
        data = _data(editor, node)
        if data is None or not editor.has(node):
            continue
        layer = editor.producer(data, *_BIASED, "MatMul")
        if layer is not None and editor.reader(data) is node:
            _edit_layer(editor, layer, node)
            continue
        shift = editor.producer(data, "Add")
        if shift is not None and editor.reader(data) is node:
            _edit_matmul_and_bias(editor, shift, node)


def _edit_layer(editor: Editor, layer: onnx.NodeProto, node: onnx.NodeProto) -> None:
    """Folds `node` into the layer whose output it alone reads, where the algebra allows."""
    weight = editor.constant(layer.input[1])
    name = "".join(layer.input[2:])
    bias = editor.constant(name) if name else np.zeros(1)
    if weight is None or bias is None or not _plain(editor, layer, weight):
        return
    channels = _channels(layer, weight)
    affine = _affine(editor, node, layer, channels)
    matrix = len(editor.shape(layer.input[0]) or ()) == _GEMM_RANK
    if affine is None or (layer.op_type == "MatMul" and affine.shift.any() and not matrix):
        return
    inputs = [*layer.input[:2]]
    if (affine.scale != 1).any():
        inputs[1] = _stored(editor, node, "weight", _scaled(affine, layer, weight), weight)
    if layer.op_type != "MatMul" or affine.shift.any():
        value = affine.scale * _exact(bias) + affine.shift
        inputs.append(_stored(editor, node, "bias", np.broadcast_to(value, channels), weight))
    if all(_finite(editor, name) for name in inputs[1:]):
        new = altered(layer, inputs=inputs, output=node.output[0])
        new.op_type = "Gemm" if len(inputs) > len(layer.input[:2]) and matrix else new.op_type
        editor.replace([layer, node], [new])


def _edit_matmul_and_bias(editor: Editor, add: onnx.NodeProto, node: onnx.NodeProto) -> None:
    """Folds a node behind MatMul and Add: a (x W + b) + c = x (a W) + (a b + c)."""
    product = _data(editor, add)
    layer = editor.producer(product, "MatMul") if product is not None else None
    if product is None or layer is None or editor.reader(product) is not add:
        return
    weight = editor.constant(layer.input[1])
    if weight is None or not _plain(editor, layer, weight):
        return
    channels = _channels(layer, weight)
    bias, affine = (_affine(editor, part, layer, channels) for part in (add, node))
    if bias is None or affine is None or (bias.scale != 1).any():
        return
    shift = np.broadcast_to(affine.scale * bias.shift + affine.shift, channels)
    names = [
        _stored(editor, node, "weight", _scaled(affine, layer, weight), weight),
        _stored(editor, node, "bias", shift, weight),
    ]
    if all(_finite(editor, name) for name in names):
        new = altered(layer, inputs=[layer.input[0], names[0]])
        behind = altered(add, inputs=[product, names[1]], output=node.output[0])
        editor.replace([layer, add, node], [new, behind])


def _data(editor: Editor, node: onnx.NodeProto) -> str | None:
    """The one input that is no constant, of a node that may scale and shift it."""
    if is_a(node, "BatchNormalization"):
        return str(node.input[0])
    if not is_a(node, *_ARITHMETIC):
        return None
    data = [name for name in node.input if not editor.is_constant(name)]
    return data[0] if len(data) == 1 else None


def _plain(editor: Editor, layer: onnx.NodeProto, weight: NDArray[np.generic]) -> bool:
    """Whether the layer is W x + b as `_channels` and `_scaled` take it."""
    if layer.op_type == "Gemm":
        return number(layer, "alpha", 1.0) == number(layer, "beta", 1.0) == 1.0
    if layer.op_type == "MatMul":
        return weight.ndim == _GEMM_RANK and editor.shape(layer.input[0]) is not None
    return True


def _channels(layer: onnx.NodeProto, weight: NDArray[np.generic]) -> int:
    """Output channels of the layer."""
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1] * number(layer, "group", 1))
    first = layer.op_type == "Conv" or attribute(layer, "transB", 0)
    return int(weight.shape[0 if first else 1])


def _scaled(
    affine: _Affine, layer: onnx.NodeProto, weight: NDArray[np.generic]
) -> NDArray[np.generic]:
    """The weight, each output channel times its scale."""
    scale = np.broadcast_to(affine.scale, _channels(layer, weight))
    if layer.op_type == "ConvTranspose":  # [C_in, C_out / groups, ...]
        groups = int(number(layer, "group", 1))
        rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return _times(weight, rows.reshape(*rows.shape, *[1] * (weight.ndim - 2)))
    if layer.op_type == "Conv" or attribute(layer, "transB", 0):
        return _times(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return _times(weight, scale)


def _times(weight: NDArray[np.generic], factor: Array | float) -> NDArray[np.generic]:
    """The product in float64, rounded to the weight's type; a large weight's is never whole."""
    made = np.empty_like(weight)
    with np.errstate(over="ignore"):
        np.multiply(weight, factor, out=made, dtype=np.float64, casting="same_kind")
    return made


def _affine(
    editor: Editor, node: onnx.NodeProto, layer: onnx.NodeProto, channels: int
) -> _Affine | None:
    """What `node` does to each of the layer's output channels; arrays [channels] or [1]."""
    shape = editor.shape(layer.input[0])
    if is_a(layer, "Gemm"):
        rank, axis = _GEMM_RANK, 1
    elif is_a(layer, "MatMul"):
        rank = len(shape or ())
        axis = rank - 1
    else:
        rank, axis = len(editor.shape(layer.input[1]) or ()), 1
    if is_a(node, "BatchNormalization"):
        return _normalization(editor, node) if axis == 1 else None
    first = editor.constant(node.input[0])
    array = editor.constant(node.input[1]) if first is None else first
    value = None if array is None else _per_channel(_exact(array), rank, axis, channels)
    if value is None:
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Mul":
        return _Affine(value, zero)
    if node.op_type == "Add":
        return _Affine(one, value)
    if node.op_type == "Sub":
        return _Affine(one, -value) if first is None else _Affine(-one, value)
    return _Affine(1 / value, zero) if first is None and value.all() else None


def _normalization(editor: Editor, node: onnx.NodeProto) -> _Affine | None:
    """The affine map of a BatchNormalization in inference mode."""
    values = [editor.constant(name) for name in node.input[1:5]]
    if attribute(node, "training_mode", 0) or any(node.output[1:]):
        return None
    gamma, beta, mean, variance = (None if v is None else _exact(v) for v in values)
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    spread = variance + number(node, "epsilon", 1e-5)
    if (spread <= 0).any():
        return None
    scale = gamma / np.sqrt(spread)
    return _Affine(scale, beta - scale * mean)


def _per_channel(array: Array, rank: int, axis: int, channels: int) -> Array | None:
    """A constant that broadcasts along `axis` alone of a tensor of `rank`, as [channels] or [1]."""
    shape = (1,) * (rank - array.ndim) + array.shape
    if len(shape) != rank or array.size not in (1, shape[axis]):
        return None
    return array.reshape(-1) if array.size in (1, channels) else None


def _stored(
    editor: Editor,
    node: onnx.NodeProto,
    what: str,
    value: NDArray[np.generic],
    like: NDArray[np.generic],
) -> str:
    with np.errstate(over="ignore"):
        return editor.add_constant(f"{node.output[0]}~{what}", value.astype(like.dtype, copy=False))


def _finite(editor: Editor, name: str) -> bool:
    value = editor.constant(name)
    return value is not None and bool(np.isfinite(value).all())


def _exact(array: NDArray[np.generic]) -> Array:
    return array.astype(np.float64)
