"""What is mutated: small models of every kind that the package takes, with their data.

conv        a residual unit, pooling, a classifier
attention   token ids, a mask, products of activations, LayerNormalization, two outputs
exported    shapes computed by nodes, Resize, Slice, Pad, BatchNormalization, auto_pad
control     an If with two branches, a local function
half        float16, with a Clip and a HardSwish
integers    layers that are quantized already beside one that is not
external    constants in a file beside the model
fused       tokens of any number under a mask, in operators as onnxruntime saves them
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxbrecq.data.dataset import Dataset

SAMPLES = 4
Array = np.ndarray


@dataclass(frozen=True)
class Seed:
    """Files by name; the model is `model.onnx`, its calibration samples `model.calib.npz`."""

    name: str
    files: dict[str, bytes]


def seeds(folder: Path) -> list[Seed]:
    """All seeds; `folder`, which is empty, is where they are made."""
    found = []
    for name, (text, constants, feed) in SEEDS.items():
        place = folder / name
        place.mkdir()
        proto = _with_constants(onnx.parser.parse_model(text), constants)
        if name == "half":
            _edit_half(proto)
        external = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        onnx.save(proto, place / "model.onnx", **(external if name == "external" else {}))
        np.savez(place / "model.calib.npz", **feed(np.random.default_rng(1)))
        found.append(Seed(name, {path.name: path.read_bytes() for path in place.iterdir()}))
    return found


def residual_network() -> onnx.ModelProto:
    """A chain of convolutions around a skip, in three blocks."""
    text = f"{_HEAD} net (float[N, 3, 8, 8] x) => (float[N, 5] y) {{ {_CONV} }}"
    shapes = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "w2": (5, 8), "b2": (5,)}
    return _with_constants(onnx.parser.parse_model(text), shapes)


def residual_data() -> Dataset:
    """64 samples for it."""
    x = np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float32)
    return Dataset({"x": x})


def _with_constants(
    proto: onnx.ModelProto, constants: dict[str, tuple[int, ...] | Array]
) -> onnx.ModelProto:
    """The model with its constants; those given by a shape are random."""
    random = np.random.default_rng(0)
    for name, value in constants.items():
        array = value
        if isinstance(value, tuple):
            array = random.normal(0, 0.5, value).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def _edit_half(proto: onnx.ModelProto) -> None:
    """Edits the model: all its floats become float16."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _normal(name: str, *shape: int) -> Callable[[np.random.Generator], dict[str, Array]]:
    return lambda random: {name: random.normal(size=(SAMPLES, *shape)).astype(np.float32)}


def _tokens(random: np.random.Generator) -> dict[str, Array]:
    shape = (SAMPLES, 5)
    return {"ids": random.integers(0, 12, shape), "mask": np.ones(shape, np.int64)}


def _masked(random: np.random.Generator) -> dict[str, Array]:
    shape = (SAMPLES, 5)
    ids = random.integers(0, 9, shape).astype(np.int32)
    return {"ids": ids, "keep": np.ones(shape, np.int32)}


_HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
_CONV = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w1) d = Add (b, r) e = Relu (d)
    g = GlobalAveragePool (e) h = Flatten (g) y = Gemm <transB = 1> (h, w2, b2)"""
_IMAGE = f"{_HEAD} net (float[N, 2, 6, 6] x) => (float[N, 3] y) {{ {_CONV} }}"
_CONV_WEIGHTS = {"w0": (4, 2, 3, 3), "b0": (4,), "w1": (4, 4, 3, 3), "w2": (3, 4), "b2": (3,)}

SEEDS = {
    "conv": (_IMAGE, _CONV_WEIGHTS, _normal("x", 2, 6, 6)),
    "attention": (
        f"""{_HEAD} net
        (int64[N, 5] ids, int64[N, 5] mask) => (float[N, 5, 8] far, float[N, 3] y) {{
        e = Gather (table, ids) f = Cast <to = 1> (mask) i = Sub (one, f) m = Mul (i, big)
        bias = Unsqueeze (m, axis) q = MatMul (e, wq) k = MatMul (e, wk)
        t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) a = Add (s, bias)
        p = Softmax <axis = -1> (a) c = MatMul (p, e) o = Add (e, c)
        far = LayerNormalization <axis = -1> (o, gain, shift)
        u = ReduceMean <axes = [1], keepdims = 0> (far) y = MatMul (u, wy) }}""",
        {"table": (12, 8), "one": np.float32(1), "big": np.float32(-10000), "axis": np.array([1]),
         "wq": (8, 8), "wk": (8, 8), "gain": (8,), "shift": (8,), "wy": (8, 3)},
        _tokens,
    ),
    "exported": (
        f"""{_HEAD} net (float[N, 2, 6, 6] x) => (float[N, 3] y) {{
        p = Pad (x, pads) a = Conv <strides = [2, 2]> (p, w0)
        n = BatchNormalization (a, s, t, mean, var) i = Sigmoid (n) r = Mul (n, i)
        u = Resize <mode = "nearest"> (r, , scales) c = Slice (u, begin, end, last)
        m = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (c)
        shape = Shape (m) batch = Gather (shape, first) rows = Unsqueeze (batch, zero)
        dims = Concat <axis = 0> (rows, rest) h = Reshape (m, dims)
        big = Gemm (h, w1, b1) y = Clip (big, least, most) }}""",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w0": (4, 2, 3, 3), "s": (4,), "t": (4,),
         "mean": (4,), "var": np.ones(4, np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
         "begin": np.array([1]), "end": np.array([5]), "last": np.array([3]),
         "first": np.int64(0), "zero": np.array([0]), "rest": np.array([-1]), "w1": (96, 3),
         "b1": (3,), "least": np.float32(-3), "most": np.float32(3)},
        _normal("x", 2, 6, 6),
    ),
    "control": (
        """<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
        net (float[N, 6] x) => (float[N, 4] y) {
        a = MatMul (x, w0) r = own.act (a) z = ReduceMax <keepdims = 0> (r) o = Greater (z, zero)
        d = If (o) <then_branch = one () => (float[N, 6] t) { t = Relu (r) },
                    else_branch = two () => (float[N, 6] f) { f = Neg (r) }>
        y = MatMul (d, w1) }
        <domain: "own", opset_import: ["" : 17]> act (v) => (o) { u = Tanh (v) o = Add (u, v) }""",
        {"w0": (6, 6), "zero": np.float32(0), "w1": (6, 4)},
        _normal("x", 6),
    ),
    "half": (
        f"""{_HEAD} net (float[N, 2, 6, 6] x) => (float[N, 4, 6, 6] y) {{
        a = Conv <auto_pad = "SAME_UPPER"> (x, w0) r = HardSwish (a)
        b = Conv <group = 4> (r, w1, b1) c = Clip (b, least, most) y = Conv (c, w2) }}""",
        {"w0": (4, 2, 3, 3), "w1": (4, 1, 1, 1), "b1": (4,), "w2": (4, 4, 1, 1),
         "least": np.float32(0), "most": np.float32(6)},
        lambda random: {"x": random.normal(size=(SAMPLES, 2, 6, 6)).astype(np.float16)},
    ),
    "integers": (
        f"""{_HEAD} net (float[N, 6] x) => (float[N, 4] y) {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) u = DequantizeLinear (v, s)
        h = MatMul (d, u) r = Relu (h) y = MatMul (r, w) }}""",
        {"s": np.float32(0.05), "z": np.uint8(128), "w": (6, 4),
         "v": np.arange(-18, 18, dtype=np.int8).reshape(6, 6)},
        _normal("x", 6),
    ),
    "external": (_IMAGE, _CONV_WEIGHTS, _normal("x", 2, 6, 6)),
    "fused": (
        """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
        net (int32[N, S] ids, int32[N, S] keep) => (float[N, 3] y) {
        h, left = com.microsoft.EmbedLayerNormalization (ids, , words, places, , g0, b0, keep)
        a = com.microsoft.Attention <num_heads = 2> (h, qkv, qb, left) o = MatMul (a, wo)
        m = com.microsoft.SkipLayerNormalization (h, o, g1, b1)
        u = com.microsoft.FusedMatMul <transB = 1> (m, up) f = com.microsoft.BiasGelu (u, bu)
        d = MatMul (f, down) e = Add (d, m) s = Shape (m) n = Gather (s, one)
        l = Unsqueeze (n, zero) c = Concat <axis = 0> (rest, l, parts) r = Reshape (e, c)
        p = ReduceMean <axes = [1, 2], keepdims = 0> (r)
        y = com.microsoft.FusedGemm <activation = "Relu"> (p, wy, by) }""",
        {"words": (9, 8), "places": (7, 8), "g0": (8,), "b0": (8,), "qkv": (8, 24), "qb": (24,),
         "wo": (8, 8), "g1": (8,), "b1": (8,), "up": (12, 8), "bu": (12,), "down": (12, 8),
         "one": np.int64(1), "zero": np.array([0]), "rest": np.array([-1]),
         "parts": np.array([2, 4]), "wy": (4, 3), "by": (3,)},
        _masked,
    ),
}  # fmt: skip
