"""What a default session runs, operator by operator: the optimised graph of small models."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq import affine
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.read import stored_bits, stored_blocks
from onnxbrecq.emit.targets import ORT_CPU, ORT_CPU_AVX2
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.kernels import executed
from onnxbrecq.runtime.session import Session

_CONSTANTS = """
    zero = Constant <value = float {0}> () six = Constant <value = float {6}> ()
    first = Constant <value = int64[1] {0}> () axis = Constant <value = int64[1] {2}> ()
    half = Constant <value = int64[2] {2, 2}> () twice = Constant <value = float[4] {1, 1, 2, 2}> ()
    flat = Constant <value = int64[4] {0, 2, 2, 36}> ()
    full = Constant <value = int64[4] {0, 4, 6, 6}> ()
    pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
"""
_SHAPES = {
    **dict.fromkeys(("w0", "w1", "w2"), (4, 4, 1, 1)),
    "grouped": (4, 2, 3, 3), "depthwise": (4, 1, 3, 3), "transposed": (4, 4, 2, 2),
    "squeeze": (2, 4, 1, 1), "excite": (4, 2, 1, 1), "slopes": (4, 1, 1), "slope": (1,),
    "l0": (4, 4, 3), "l1": (4, 4, 3), "v0": (4, 4, 3, 3, 3), "v1": (4, 4, 3, 3, 3),
    **dict.fromkeys(("m0", "m1", "m2", "m3"), (8, 8)), "gain": (8,), "shift": (8,),
    "table": (10, 8), "k0": (8, 72), "k1": (72, 12), "k2": (8, 72), "s0": (72, 72), "bias": (72,),
    "t1": (4, 2, 3), "t2": (4, 1, 2), "t3": (4, 4, 2, 2, 2),
}  # fmt: skip
_IMAGE, _LINE, _VOLUME, _TOKENS, _IDS = (
    "float[N, 4, 6, 6] x", "float[N, 4, 9] x", "float[N, 4, 5, 5, 5] x", "float[N, 5, 8] x",
    "int64[N, 5] x",
)  # fmt: skip
_FRAME = {"QuantizeLinear", "DequantizeLinear", "Transpose"}  # of any graph of images
_PAIR = "QLinearConv QLinearConv"

# Name → input, what stands between two layers, and the kernels that are left, a set of pairs around
# float ones included.
_INTEGER = {
    "relu": (_IMAGE, "a = Conv (x, w0) b = Relu (a) y = Conv (b, w1)", _PAIR),
    "relu6": (_IMAGE, "a = Conv (x, w0) b = Clip (a, zero, six) y = Conv (b, w1)", _PAIR),
    "silu": (_IMAGE, "a = Conv (x, w0) s = Sigmoid (a) b = Mul (a, s) y = Conv (b, w1)",
             "QLinearConv QLinearSigmoid QLinearMul QLinearConv"),
    "leaky": (_IMAGE, "a = Conv (x, w0) b = LeakyRelu <alpha = 0.1> (a) y = Conv (b, w1)",
              "QLinearConv QLinearLeakyRelu QLinearConv"),
    "prelu-one-slope": (_IMAGE, "a = Conv (x, w0) b = PRelu (a, slope) y = Conv (b, w1)",
                        "QLinearConv QLinearLeakyRelu QLinearConv"),
    "residual": (_IMAGE, "a = Conv (x, w0) b = Conv (a, w1) c = Add (b, a) y = Conv (c, w2)",
                 f"{_PAIR} QLinearAdd QLinearConv"),
    "squeeze-excite": (
        _IMAGE, """a = Conv (x, w0) p = GlobalAveragePool (a) q = Conv (p, squeeze) r = Relu (q)
        t = Conv (r, excite) s = Sigmoid (t) b = Mul (a, s) y = Conv (b, w1)""",
        f"QLinearConv QLinearGlobalAveragePool {_PAIR} QLinearSigmoid QLinearMul QLinearConv"),
    "concat": (_IMAGE, """a = Conv (x, w0) b = Conv (x, w1) c = Concat <axis = 2> (a, b)
               y = Conv (c, w2)""", f"{_PAIR} QLinearConcat QLinearConv"),
    "resize": (_IMAGE, "a = Conv (x, w0) b = Resize (a, , twice) y = Conv (b, w1)",
               "QLinearConv Resize QLinearConv"),
    "max": (_IMAGE, "a = Conv (x, w0) b = MaxPool <kernel_shape = [2, 2]> (a) y = Conv (b, w1)",
            "QLinearConv NhwcMaxPool QLinearConv"),
    "average": (_IMAGE, """a = Conv (x, w0) b = AveragePool <kernel_shape = [2, 2]> (a)
                y = Conv (b, w1)""", "QLinearConv QLinearAveragePool QLinearConv"),
    "pad": (_IMAGE, """a = Conv (x, w0) b = Pad (a, pads) c = Transpose <perm = [0, 1, 3, 2]> (b)
            y = Conv (c, w1)""", "QLinearConv Pad QLinearConv"),
    "depth-to-space": (_IMAGE, """a = Conv (x, w0) b = DepthToSpace <blocksize = 2> (a)
                       c = SpaceToDepth <blocksize = 2> (b) y = Conv (c, w1)""",
                       "QLinearConv DepthToSpace SpaceToDepth QLinearConv"),
    "slice": (_IMAGE, "a = Conv (x, w0) b = Slice (a, first, axis, axis) y = Conv (b, w1)",
              "QLinearConv Slice QLinearConv"),
    "split": (_IMAGE, """a = Conv (x, w0) b, c = Split <axis = 1> (a, half)
              d = Concat <axis = 1> (c, b) y = Conv (d, w1)""",
              "QLinearConv Split QLinearConcat QLinearConv"),
    "shuffle": (_IMAGE, """a = Conv (x, w0) b = Reshape (a, flat)
                c = Transpose <perm = [0, 2, 1, 3]> (b) d = Reshape (c, full) y = Conv (d, w1)""",
                "QLinearConv Reshape Reshape QLinearConv"),
    "groups": (_IMAGE, """a = Conv <group = 2, pads = [1, 1, 1, 1]> (x, grouped)
               y = Conv <group = 4, pads = [1, 1, 1, 1]> (a, depthwise)""", _PAIR),
    "one-dimension": (_LINE, "a = Conv (x, l0) b = Relu (a) y = Conv (b, l1)", _PAIR),
    "three-dimensions": (_VOLUME, "a = Conv (x, v0) b = Relu (a) y = Conv (b, v1)", _PAIR),
    "shared-weight": (_IMAGE, "a = Conv (x, w0) b = Relu (a) y = Conv (b, w0)", _PAIR),
    "gather": (_TOKENS, """a = MatMul (x, m0) b = Relu (a) c = Gather <axis = 1> (b, first)
               y = MatMul (c, m1)""", "QLinearMatMul Gather MatMulIntegerToFloat"),
    "attention": (
        _TOKENS, """q = MatMul (x, m0) k = MatMul (x, m1) t = Transpose <perm = [0, 2, 1]> (k)
        a = MatMul (q, t) b = Softmax (a) c = MatMul (b, k) y = MatMul (c, m2)""",
        """QLinearMatMul QLinearMatMul MatMulIntegerToFloat Softmax QLinearMatMul
        MatMulIntegerToFloat"""),
    "tied-embedding": (_IDS, """e = Gather (table, x) a = MatMul (e, m0)
                       t = Transpose <perm = [1, 0]> (table) y = MatMul (a, t)""",
                       "Gather QLinearMatMul MatMulIntegerToFloat"),
    # Float by their nature, with one conversion on each side at most:
    "softmax": (_TOKENS, "a = MatMul (x, m0) b = Softmax (a) y = MatMul (b, m1)",
                "MatMulIntegerToFloat Softmax MatMulIntegerToFloat"),
    "layer-norm": (_TOKENS, """a = MatMul (x, m0) b = LayerNormalization (a, gain, shift)
                   y = MatMul (b, m1)""",
                   "MatMulIntegerToFloat LayerNormalization MatMulIntegerToFloat"),
    "gelu": (_TOKENS, "a = MatMul (x, m0) b = Gelu (a) y = MatMul (b, m1)",
             "MatMulIntegerToFloat Gelu MatMulIntegerToFloat"),
    "hard-swish": (_IMAGE, "a = Conv (x, w0) b = HardSwish (a) y = Conv (b, w1)",
                   "QLinearConv HardSigmoid Mul QLinearConv"),
    "prelu-slopes": (_IMAGE, "a = Conv (x, w0) b = PRelu (a, slopes) y = Conv (b, w1)",
                     "QLinearConv PRelu QLinearConv"),
    "transposed": (_IMAGE, """a = Conv (x, w0) b = ConvTranspose <strides = [2, 2]> (a, transposed)
                   y = Conv (b, w1)""", "QLinearConv ConvTranspose QLinearConv"),
}  # fmt: skip

_WEIGHT_ONLY = {
    "matmul": (_TOKENS, "a = MatMul (x, m0) b = MatMul (a, m1) y = MatMul (b, m2)",
               "MatMul MatMulNBits MatMul"),
    "gemm": ("float[N, 8] x", """a = Gemm (x, m0, shift) b = Gemm <transB = 1> (a, m1, shift)
             c = Gemm (b, m2, shift) y = Gemm (c, m3, shift)""",
             "Gemm MatMulNBits MatMulNBits Gemm"),
    "conv": (_IMAGE, "a = Conv (x, w0) b = Conv (a, w1) y = Conv (b, w2)", "Conv Conv Conv"),
    "transposed": (_IMAGE, """a = Conv (x, w0) b = ConvTranspose <strides = [2, 2]> (a, transposed)
                   y = Conv (b, w1)""", "Conv ConvTranspose Conv"),
    "transposed-groups": (_LINE, """a = Conv (x, l0) b = ConvTranspose <group = 2> (a, t1)
                          c = ConvTranspose <group = 4> (b, t2) y = Conv (c, l1)""",
                          "Conv ConvTranspose ConvTranspose Conv"),
    "transposed-volume": (_VOLUME, """a = Conv (x, v0) b = ConvTranspose (a, t3)
                          y = Conv (b, v1)""", "Conv ConvTranspose Conv"),
    "shared": (_TOKENS, """a = MatMul (x, m0) b = MatMul (a, m1) c = MatMul (b, m1)
               y = MatMul (c, m2)""", "MatMul MatMul MatMul MatMul"),
}  # fmt: skip


def _model(signature: str, body: str) -> Model:
    head = f'<ir_version: 10, opset_import: ["" : 21]> small ({signature}) => (y)'
    proto = onnx.parser.parse_model(f"{head} {{ {_CONSTANTS} {body} }}")
    random = np.random.default_rng(3)
    for name in sorted({name for node in proto.graph.node for name in node.input}):
        if name in _SHAPES:
            scale = 1 / np.sqrt(max(1, np.prod(_SHAPES[name][1:])))
            weight = random.normal(0, scale, _SHAPES[name]).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return from_proto(onnx.shape_inference.infer_shapes(proto))


def _data(model: Model) -> Dataset:
    random = np.random.default_rng(4)
    shape = (6, *(size or 1 for size in model.shapes["x"][1:]))
    floats = model.dtypes["x"] == onnx.TensorProto.FLOAT
    return Dataset({"x": random.normal(size=shape).astype(np.float32) if floats
                    else random.integers(0, 10, shape)})  # fmt: skip


def _planned(
    model: Model, data: Dataset, weights: int, activations: int | None, **more: int
) -> QuantPlan:
    recipe = Recipe(weights=weights, activations=activations, threads=1, **more)  # type: ignore[arg-type]
    return calibrate(model, find_points(model), data, recipe)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=["W8A8", "W4A4"])
@pytest.mark.parametrize("name", _INTEGER)
def test_kernels(name: str, bits: tuple[int, int]) -> None:
    signature, body, wanted = _INTEGER[name]
    model = fork(_model(signature, body), bits[1])
    data = _data(model)
    plan = _planned(model, data, *bits)
    proto = emit(model, plan, ORT_CPU_AVX2)
    onnx.checker.check_model(proto, full_check=True)
    found = [node.op for node in executed(proto, threads=1)]
    copies = {"Clip", *(["QLinearLeakyRelu"] if bits[1] < 8 else [])}  # cuts, and `fork`'s
    kernels = [op for op in found if op not in _FRAME | (copies - set(wanted.split()))]
    assert sorted(kernels) == sorted(wanted.split())
    told = {node.op for node in find_points(model).float_nodes}
    assert not told & {op.removeprefix("QLinear") for op in wanted.split() if "QLinear" in op}

    # Law 1, and optimised against unoptimised: rounding ties at most.
    whole = Session(proto, optimize=False, threads=1).run(data.inputs)["y"]
    values = dict(data.inputs)
    for block in partition(model):
        part = Session(emit(extract(model, block), plan, ORT_CPU_AVX2), optimize=False, threads=1)
        values.update(part.run({name: values[name] for name in block.inputs}))
    np.testing.assert_array_equal(values["y"], whole)
    fast = Session(proto, threads=1).run(data.inputs)["y"]
    assert np.square(fast - whole).sum() < 1e-2 * np.square(whole).sum()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", _WEIGHT_ONLY)
def test_weights_alone(name: str, bits: int) -> None:
    signature, body, wanted = _WEIGHT_ONLY[name]
    model = _model(signature, body)
    data = _data(model)
    proto = emit(model, _planned(model, data, bits, None), ORT_CPU_AVX2)
    onnx.checker.check_model(proto, full_check=True)
    found = [node.op for node in executed(proto, threads=1) if "Reorder" not in node.op]
    assert found == wanted.split()
    layers = find_points(model).layers
    inner = [name for name, layer in layers.items() if not layer.edge]
    stored = stored_bits(proto, tuple(layers))
    assert {stored[name] for name in inner} == {(bits, None)}
    # MatMulNBits rounds its data to 8 bits, block by block.
    plain = Session(proto, optimize=False, threads=1).run(data.inputs)["y"]
    fast = Session(proto, threads=1).run(data.inputs)["y"]
    assert np.square(fast - plain).sum() < 1e-3 * np.square(plain).sum()


_BLOCKS = {
    "matmul": (_TOKENS, "a = MatMul (x, k0) y = MatMul (a, k1)", "MatMulNBits MatMulNBits"),
    "gemm": ("float[N, 8] x", "a = Gemm (x, k0, bias) y = Gemm <transB = 1> (a, k2, shift)",
             "MatMulNBits MatMulNBits"),
    "shared": (_TOKENS, "a = MatMul (x, k0) b = MatMul (a, s0) y = MatMul (b, s0)",
               "MatMulNBits MatMul MatMul"),
    "conv": (_IMAGE, "y = Conv (x, w0)", "Conv"),
}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", _BLOCKS)
def test_blocks_of_inputs_with_a_scale_each_are_multiplied_packed(name: str, bits: int) -> None:
    signature, body, wanted = _BLOCKS[name]
    model = _model(signature, body)
    data = _data(model)
    plan = _planned(model, data, bits, None, first_last=bits, block_size=32)
    proto = emit(model, plan, ORT_CPU_AVX2)
    onnx.checker.check_model(proto, full_check=True)
    found = [node.op for node in executed(proto, threads=1) if "Reorder" not in node.op]
    assert found == wanted.split()
    layers = find_points(model).layers
    assert set(stored_bits(proto, tuple(layers)).values()) == {(bits, None)}
    blocks = stored_blocks(proto, tuple(layers))
    assert blocks == ({} if name == "conv" else dict.fromkeys(layers, 32))

    # The graph computes what the decisions say, up to the order of float sums...
    decoded = onnx.ModelProto()
    decoded.CopyFrom(model.proto)
    for tensor in decoded.graph.initializer:
        quant = plan.tensors.get(tensor.name)
        if quant is not None:
            made = affine.dequantize(quant.levels, quant)  # type: ignore[arg-type]
            tensor.CopyFrom(numpy_helper.from_array(made, tensor.name))
    wanted_y = Session(decoded, optimize=False, threads=1).run(data.inputs)["y"]
    plain = Session(proto, optimize=False, threads=1).run(data.inputs)["y"]
    np.testing.assert_allclose(plain, wanted_y, rtol=0, atol=1e-5 * np.abs(wanted_y).max())
    # ... and MatMulNBits rounds its data to 8 bits, block by block.
    fast = Session(proto, threads=1).run(data.inputs)["y"]
    assert np.square(fast - plain).sum() < 1e-3 * np.square(plain).sum()


@pytest.mark.parametrize("outputs", [1, 6, 8, 130])
def test_two_bits_of_outputs_that_do_not_go_by_four(outputs: int) -> None:
    """onnxruntime 1.32 computes something else of them in a MatMulNBits: they are decoded."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> '
        "net (float[N, 64] x) => (float[N, M] y) { y = MatMul (x, w) }"
    )
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, outputs)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = from_proto(proto)
    data = Dataset({"x": random.normal(size=(6, 64)).astype(np.float32)})
    made = emit(model, _planned(model, data, 2, None, first_last=2, block_size=32), ORT_CPU_AVX2)
    (kernel,) = [node.op for node in executed(made, threads=1)]
    assert kernel == ("MatMul" if outputs % 4 else "MatMulNBits")
    plain = Session(made, optimize=False, threads=1).run(data.inputs)["y"]
    fast = Session(made, threads=1).run(data.inputs)["y"]
    assert np.square(fast - plain).sum() < 1e-3 * np.square(plain).sum()


def test_layers_that_share_a_weight_share_its_bytes() -> None:
    signature, body, _ = _INTEGER["shared-weight"]
    model = _model(signature, body)
    proto = emit(model, _planned(model, _data(model), 8, 8), ORT_CPU_AVX2)
    assert sum(list(tensor.dims) == [4, 4, 1, 1] for tensor in proto.graph.initializer) == 1


def test_the_weight_of_a_transposed_convolution_is_stored_in_few_bits() -> None:
    """... beside integers too, and the node is named as one that computes in floats."""
    signature, body, _ = _INTEGER["transposed"]
    model = _model(signature, body)
    proto = emit(model, _planned(model, _data(model), 4, 8), ORT_CPU_AVX2)
    layers = find_points(model).layers
    (name,) = (node for node, layer in layers.items() if layer.op == "ConvTranspose")
    assert stored_bits(proto, (name,))[name][0] == 4
    packed = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.UINT4]
    assert [list(tensor.dims) for tensor in packed] == [[4, 4, 2, 2]]
    told = {node.name: node.reason for node in find_points(model).float_nodes}
    assert "its weight alone is quantized" in told[name]


_TIED = {
    "matmul": """e = Gather (table, x) a = MatMul (e, m0)
              t = Transpose <perm = [1, 0]> (table) y = MatMul (a, t)""",
    "gemm": """one = Constant <value = int64 {0}> () e = Gather (table, x)
            p = Gather <axis = 1> (e, one) a = Gemm (p, m0) y = Gemm <transB = 1> (a, table)""",
    "nothing": "e = Gather (table, x) a = MatMul (e, m0) y = MatMul (a, m1)",
}


@pytest.mark.parametrize("asked", [(8, 8, None), (4, 8, None), (4, None, None), (4, None, 32)],
                         ids=["W8A8", "W4A8", "W4", "W4 in blocks"])  # fmt: skip
@pytest.mark.parametrize("name", _TIED)
def test_a_table_has_8_bits_and_is_stored_once(
    name: str, asked: tuple[int, int | None, int | None]
) -> None:
    model = _model(_IDS, _TIED[name])
    data = _data(model)
    bits, activations, size = asked
    plan = _planned(model, data, bits, activations, **({"block_size": size} if size else {}))
    tables = find_points(model).tables
    (table,) = tables.values()
    assert (table.tied is None) == (name == "nothing")
    for target in (ORT_CPU, ORT_CPU_AVX2):
        proto = emit(model, plan, target)
        onnx.checker.check_model(proto, full_check=True)
        large = [t for t in proto.graph.initializer if sorted(t.dims) == [8, 10]]
        assert [t.data_type in {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} for t in large] == [
            True
        ]
        looked_up = [node for node in executed(proto, threads=1) if node.op == "Gather"]
        assert looked_up
        assert not {"Cast", "Transpose"} & {node.op for node in executed(proto, threads=1)}
        plain = Session(proto, optimize=False, threads=1).run(data.inputs)["y"]
        wanted = Session(model.proto, threads=1).run(data.inputs)["y"]
        assert np.square(plain - wanted).sum() < 3e-2 * np.square(wanted).sum()


@pytest.mark.parametrize("order", ["pre-norm", "post-norm"])
def test_the_fusions_of_a_transformer_apply(order: str) -> None:
    """As in float: a sum that nobody else reads is one node with its norm, a bias with its Gelu."""
    norms = {
        "pre-norm": """a = Add (x, m) n = LayerNormalization (a, gain, shift) h = MatMul (n, m0)
            b = Add (h, shift) g = Gelu (b) k = MatMul (g, m1) s = Add (a, k)
            t = LayerNormalization (s, gain, shift) y = MatMul (t, m2)""",
        "post-norm": """a = Add (x, m) n = LayerNormalization (a, gain, shift) h = MatMul (n, m0)
            b = Add (h, shift) g = Gelu (b) k = MatMul (g, m1) s = Add (n, k)
            y = LayerNormalization (s, gain, shift)""",
    }
    body = f"m = MatMul (x, m3) {norms[order]}"
    model = _model("float[N, 5, 8] x", body)
    proto = emit(model, _planned(model, _data(model), 8, 8), ORT_CPU_AVX2)
    found, floats = ([node.op for node in executed(p, threads=1)] for p in (proto, model.proto))
    for fused in ("SkipLayerNormalization", "LayerNormalization", "BiasGelu"):
        assert found.count(fused) == floats.count(fused)
    assert found.count("SkipLayerNormalization") == {"pre-norm": 1, "post-norm": 2}[order]
    assert found.count("BiasGelu") == 1
    assert not {"Gelu", "Identity", "Erf", "ReduceMean"} & set(found)


def test_what_a_softmax_makes_is_unsigned_and_has_a_range_of_its_own() -> None:
    """Probabilities that never come near 1 do not share its scale."""
    signature, body, _ = _INTEGER["attention"]
    model = _model(signature, body)
    quant = _planned(model, _data(model), 8, 8).tensors["b"]
    assert (quant.qtype.grid, int(quant.zero_point)) == ("affine", 0)
    shared = _planned(model, Dataset({"x": np.zeros((6, 5, 8), np.float32)}), 8, 8).tensors["b"]
    assert float(shared.scale) * 255 == pytest.approx(1 / 5, rel=0.02)
    assert float(shared.scale) < float(quant.scale) <= 1.03 / 255
