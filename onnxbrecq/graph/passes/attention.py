"""onnxruntime's Attention, written as the products that it is made of.

    softmax(scale Q K' + bias + mask) V,   Q, K, V = x W + b, cut into heads

for constant W and b. Query, key and value have a product each: their steps may then differ.
Attention with a past, a rotation or a causal mask stays what it is.
"""

import math

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.values import integers, number
from onnxbrecq.graph.passes.written import Written

_X, _WEIGHTS, _BIASES, _MASK, _PAST, _BIAS, _PAST_LENGTH = range(7)  # inputs
_HIDDEN = -10000.0  # what is added to scores that the mask hides
# How the axes [N, S, heads, channels] of each part go into its product.
_PERMUTATIONS = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}


def attention(written: Written) -> bool:
    """Writes the node; says whether it is one of those that can be."""
    node, heads = written.node, int(number(written.node, "num_heads", 0))
    later = any(map(written.input, (_PAST, _PAST_LENGTH))) or bool(written.output(1))
    turned = attribute(node, "unidirectional", 0) or attribute(node, "do_rotary", 0)
    parts = None if later or turned else _parts(written, heads)
    mask = None if parts is None else _mask(written)
    if parts is None or mask is None:
        return False
    stem = node.name or node.output[0]
    (query, width), (key, _), (value, size) = (
        _projected(written, f"{stem}/{part}", perm, weight, bias, heads)
        for (part, perm), (weight, bias) in zip(_PERMUTATIONS.items(), parts, strict=True)
    )
    scale = number(node, "scale", 0.0) or 1 / math.sqrt(width // heads)
    scores = written.add("MatMul", query, key, name=f"{stem}/scores")
    scores = written.add("Mul", scores, written.scalar("scale", scale))
    for term in filter(None, (written.input(_BIAS), mask)):
        scores = written.add("Add", scores, term)
    weighed = written.add("Softmax", scores, axis=-1)
    y = written.add("MatMul", weighed, value, name=f"{stem}/weighed")
    y = written.add("Transpose", y, perm=[0, 2, 1, 3])
    written.add("Reshape", y, written.constant("joined", np.array([0, 0, size])), last=True)
    return True


def _parts(
    written: Written, heads: int
) -> list[tuple[NDArray[np.generic], NDArray[np.generic]]] | None:
    """Weight and bias of query, key and value; None where they are not known, or do not fit."""
    weights, biases = (written.editor.constant(written.input(i)) for i in (_WEIGHTS, _BIASES))
    shape = written.editor.shape(written.input(_X))  # of rank 3, if it is not known
    if weights is None or biases is None or weights.ndim != 2 or len(shape or "NSC") != 3:
        return None
    width = weights.shape[1]
    sizes = integers(written.node, "qkv_hidden_sizes") or [width // 3] * 3
    whole = len(sizes) == 3 and sum(sizes) == width and biases.shape == (width,)
    if not whole or sizes[0] != sizes[1] or heads < 1 or any(n < 1 or n % heads for n in sizes):
        return None
    ends = np.cumsum(sizes)[:-1]
    return list(zip(np.split(weights, ends, axis=1), np.split(biases, ends), strict=True))


def _projected(  # noqa: PLR0917 -- one part, in full
    written: Written,
    name: str,
    perm: list[int],
    weight: NDArray[np.generic],
    bias: NDArray[np.generic],
    heads: int,
) -> tuple[str, int]:
    """The heads of a part, and how many channels they have together."""
    size = weight.shape[1]
    w, b = written.constant("weight", weight), written.constant("bias", bias)
    shape = written.constant("heads", np.array([0, 0, heads, size // heads]))
    y = written.add("Add", written.add("MatMul", written.input(_X), w, name=name), b)
    return written.add("Transpose", written.add("Reshape", y, shape), perm=perm), size


def _mask(written: Written) -> str | None:
    """What is added to the scores that are hidden, empty if there are none; None: it is unknown.

    Hidden is where a mask [N, T] or [N, S, T] is 0, or behind as many tokens as [N] says. Of a mask
    of one value for all tokens onnxruntime takes no notice.
    """
    editor, name = written.editor, written.input(_MASK)
    shape, dtype = editor.shape(name), editor.dtype(name)
    if not name or (shape is not None and len(shape) == 2 and shape[1] == 1):
        return ""
    if shape is None or len(shape) not in (1, 2, 3) or dtype != np.int32:
        return None
    if len(shape) == 1:  # lengths, if as many as samples
        dims = editor.dims(written.input(_X))
        if not dims or not dims[0] or editor.dims(name) != dims[:1]:
            return None
        seen, axes = _before(written, name), []
    else:
        zero = written.constant("zero", np.zeros((), np.int32))
        seen, axes = written.add("Greater", name, zero), [1, 2] if len(shape) == 2 else [1]
    hidden = written.scalar("hidden", number(written.node, "mask_filter_value", _HIDDEN))
    added = written.add("Where", seen, written.scalar("seen", 0.0), hidden)
    return written.add("Unsqueeze", added, _ints(written, axes)) if axes else added


def _before(written: Written, lengths: str) -> str:
    """Of each sample whether a token is one of the first, as many as `lengths` says."""
    first, step = (written.constant(f"{i}", np.array(i)) for i in (0, 1))
    count = written.add("Shape", written.input(_X), start=1, end=2)
    count = written.add("Squeeze", count, _ints(written, [0]))
    places = written.add("Range", first, count, step)
    each = written.add("Unsqueeze", lengths, _ints(written, [1, 2, 3]))
    return written.add("Less", places, written.add("Cast", each, to=TensorProto.INT64))


def _ints(written: Written, values: list[int]) -> str:
    return written.constant("axes", np.array(values))
