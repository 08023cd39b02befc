"""Every rewriting pass keeps what the model computes, and leaves alone what only looks like it."""

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.passes.editor import Editor
from onnxbrecq.runtime.session import Session

# A chain of float32 operations against another order of the same: some roundings of 6e-8 each, of
# values that may cancel to a few percent of their terms.
_ROUNDING = 1e-5

_SHAPES: dict[str, tuple[int, ...]] = {
    "w": (8, 4, 3, 3), "wt": (4, 8, 3, 3), "m": (6, 5), "b": (8,), "c": (8, 1, 1),
    "d": (1, 8, 1, 1), "s": (), "row": (5,), "row2": (1, 5), "map": (8, 4, 4), "scalar1": (1,),
    "gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,),
    "g5": (5,), "b5": (5,), "m5": (5,), "v5": (5,), "g6": (6,), "b6": (6,),
}  # fmt: skip
_IMAGE, _ROWS, _TOKENS = "float[N, 4, 6, 6] x", "float[N, 6] x", "float[N, 4, 6] x"
_SAMPLE = {_IMAGE: (2, 4, 6, 6), _ROWS: (2, 6), _TOKENS: (2, 4, 6)}


def _model(body: str, takes: str = _IMAGE, opset: int = 17) -> onnx.ModelProto:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> net ({takes}) => (float y)'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, shape in _SHAPES.items():
        array = random.normal(size=shape).astype(np.float32)
        array = np.abs(array) + np.float32(0.5) if name in ("var", "v5", "s") else array
        if name in read:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _operators(proto: onnx.ModelProto, takes: str = _IMAGE) -> list[str]:
    """The operators of the canonical model, which computes what its source does."""
    model = from_proto(proto)
    x = np.random.default_rng(1).normal(size=_SAMPLE[takes]).astype(np.float32)
    source = Session(proto, threads=1).run({"x": x})["y"]
    made = Session(model.proto, threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(made, source, atol=_ROUNDING * float(np.abs(source).max()), rtol=0)
    twice = from_proto(model.proto)
    assert [n.op_type for n in twice.nodes] == [n.op_type for n in model.nodes]
    return [node.op_type for node in model.nodes]


_NORM = "BatchNormalization (h, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    "body",
    [
        "h = Conv (x, w) y = Add (h, c)",
        "h = Conv (x, w) y = Add (d, h)",
        "h = Conv (x, w, b) y = Sub (c, h)",
        "h = Conv (x, w, b) y = Sub (h, c)",
        "h = Conv (x, w, b) y = Div (h, d)",
        "h = Conv (x, w, b) k = Mul (h, c) y = Add (k, d)",
        "h = Conv (x, w, b) k = Mul (h, s) l = Add (k, d) y = Div (l, c)",
        "k = Conv (x, w) h = Mul (k, s) l = " + _NORM + " y = Sub (l, c)",
        "k = Conv (x, w) l = Add (k, c) m2 = Mul (d, l) h = Sub (m2, s) y = " + _NORM,
        "h = ConvTranspose (x, wt) k = Mul (h, c) y = Add (k, d)",
        "h = ConvTranspose <group = 2> (x, wg) k = Mul (h, c) y = Add (k, d)",
    ],
)
def test_scales_and_shifts_go_into_a_convolution(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SHAPES, "wg", (4, 4, 3, 3))
    assert _operators(_model(body)) in (["Conv"], ["ConvTranspose"])


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul (x, m) y = Add (h, row)",
        "h = MatMul (x, m) y = Add (row2, h)",
        "h = MatMul (x, m) k = Mul (h, row) y = Sub (k, s)",
        "h = MatMul (x, m) y = BatchNormalization (h, g5, b5, m5, v5)",
        "h = Gemm (x, m) y = BatchNormalization (h, g5, b5, m5, v5)",
        "h = Gemm (x, m, row) k = Div (h, s) y = Add (k, row2)",
        "y = Gemm <alpha = 0.5, beta = 2.0> (x, m, row)",
        "y = Gemm <alpha = 3.0> (x, m)",
        "y = Gemm (x, m, row2)",
        "y = Gemm <beta = 0.25> (x, m, scalar1)",
    ],
)
def test_scales_and_shifts_go_into_a_matrix_product(body: str) -> None:
    assert _operators(_model(body, _ROWS), _ROWS) == ["Gemm"]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("h = MatMul (x, m) y = Mul (h, row)", ["MatMul"]),
        ("h = MatMul (x, m) y = Add (h, row)", ["MatMul", "Add"]),
        ("h = MatMul (x, m) k = Add (h, row) y = Div (k, s)", ["MatMul", "Add"]),
        ("h = MatMul (x, m) k = Add (h, row) l = Add (k, s) y = Mul (l, row2)", ["MatMul", "Add"]),
    ],
)
def test_a_product_of_tokens_keeps_its_bias_as_a_node(body: str, left: list[str]) -> None:
    assert _operators(_model(body, _TOKENS), _TOKENS) == left


@pytest.mark.parametrize(
    ("body", "kept", "takes"),
    [
        ("h = Conv (x, w) k = Mul (h, s) y = Add (h, k)", "Mul", _IMAGE),  # read twice
        ("h = Conv (x, w) y = Add (h, map)", "Add", _IMAGE),  # differs from pixel to pixel
        ("h = Conv (x, w) y = Div (c, h)", "Div", _IMAGE),  # not linear
        ("h = Conv (x, w) k = Relu (h) y = Mul (k, c)", "Mul", _IMAGE),
        ("h = MatMul (x, m) y = Mul (h, row4)", "Mul", _TOKENS),  # scales tokens, not channels
        ("h = Gemm (x, m) y = Mul (h, tall)", "Mul", _ROWS),  # has more dimensions
    ],
)
def test_what_is_no_scale_of_channels_stays(
    body: str, kept: str, takes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SHAPES, "row4", (4, 1))
    monkeypatch.setitem(_SHAPES, "tall", (3, 1, 5))
    assert kept in _operators(_model(body, takes), takes)


def test_a_scale_that_overflows_the_weights_stays() -> None:
    proto = _model("h = Conv (x, w) y = Mul (h, huge)")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(3e38), "huge"))
    model = from_proto(proto)
    assert [node.op_type for node in model.nodes] == ["Conv", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        "p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 3, 0]> () h = Pad (x, p) y = Conv (h, w, b)",
        "p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 3, 0]> () h = Pad (x, p) "
        "y = Conv <pads = [1, 1, 0, 0], strides = [2, 1]> (h, w)",
        "p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () "
        "z = Constant <value = float {0}> () h = Pad (x, p, z) "
        'y = Conv <auto_pad = "VALID"> (h, w)',
    ],
)  # fmt: skip
def test_padding_goes_into_a_convolution(body: str) -> None:
    assert _operators(_model(body)) == ["Conv"]


def test_padding_of_named_axes_goes_into_a_convolution() -> None:
    body = """p = Constant <value_ints = [1, 2]> () a = Constant <value_ints = [-1]> ()
    h = Pad (x, p, , a) y = Conv (h, w)"""
    assert _operators(_model(body, opset=18)) == ["Conv"]


def _padded_pooling(filling: float, pooling: str) -> list[str]:
    pads = "p = Constant <value = int64[8] {0, 0, 0, 0, 0, 0, 1, 1}> ()"
    pool = f"MaxPool <kernel_shape = [3, 3], {pooling}>"
    proto = _model(f"{pads} h = Pad (x, p, filling) y = {pool} (h)")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(filling), "filling"))
    return _operators(proto)


def test_padding_with_minus_infinity_goes_into_a_max_pool() -> None:
    assert _padded_pooling(-np.inf, "strides = [2, 2], pads = [1, 1, 0, 0]") == ["MaxPool"]


@pytest.mark.parametrize(
    ("filling", "pooling"),
    [
        (0, "strides = [2, 2]"),
        (9, "strides = [2, 2]"),
        (-np.inf, "strides = [2, 2], ceil_mode = 1"),
        (-np.inf, "strides = [4, 4], pads = [0, 0, 2, 2]"),
    ],
    ids=["zeros", "nines", "ceil", "wide"],
)
def test_other_padding_of_a_max_pool_stays(filling: float, pooling: str) -> None:
    assert _padded_pooling(filling, pooling) == ["Pad", "MaxPool"]


@pytest.mark.parametrize(
    "body",
    [
        "p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () "
        "z = Constant <value = float {1}> () h = Pad (x, p, z) y = Conv (h, w)",
        "p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () "
        'h = Pad <mode = "edge"> (x, p) y = Conv (h, w)',
        "p = Constant <value_ints = [0, 0, -1, 0, 0, 0, 0, 0]> () h = Pad (x, p) y = Conv (h, w)",
        "p = Constant <value_ints = [1, 0, 0, 0, 0, 0, 0, 0]> () h = Pad (x, p) y = Conv (h, w)",
        "p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () h = Pad (x, p) "
        "k = Conv (h, w) l = Conv (h, w) y = Add (k, l)",
        "p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () h = Pad (x, p) y = "
        'Conv <auto_pad = "SAME_UPPER", strides = [4, 4]> (h, w)',
    ],
    ids=["ones", "edge", "cut", "batch", "read-twice", "same"],
)  # fmt: skip
def test_other_padding_stays(body: str) -> None:
    proto = _model(body)
    if "SAME" in body:
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    assert "Pad" in _operators(proto)


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(
    "layer",
    [
        "Conv <auto_pad = KIND> (x, w)",
        "Conv <auto_pad = KIND, strides = [2, 4]> (x, w)",
        "Conv <auto_pad = KIND, kernel_shape = [3, 3], strides = [5, 3]> (x, w)",
        "MaxPool <auto_pad = KIND, kernel_shape = [2, 3], strides = [2, 2]> (x)",
        "AveragePool <auto_pad = KIND, kernel_shape = [3, 4], strides = [4, 1]> (x)",
    ],
)
def test_automatic_padding_becomes_explicit(layer: str, kind: str) -> None:
    proto = _model("y = " + layer.replace("KIND", f'"{kind}"'))
    _operators(proto)
    names = {item.name for item in from_proto(proto).nodes[0].attribute}
    assert "auto_pad" not in names


def _scalars(**values: float) -> str:
    return " ".join(f"{n} = Constant <value = float {{{v!r}}}> ()" for n, v in values.items())


_GELU = _scalars(r=math.sqrt(2), i=math.sqrt(0.5), one=1.0, half=0.5)
_TANH = _scalars(k=math.sqrt(2 / math.pi), q=0.044715, three=3.0, one=1.0, half=0.5)
_HARD = _scalars(three=3.0, zero=0.0, six=6.0, sixth=1 / 6)


_EXPORTED = {
    "Gelu": [
        _GELU + "a = Div (x, r) e = Erf (a) f = Add (e, one) g = Mul (x, f) y = Mul (g, half)",
        _GELU + "a = Mul (i, x) e = Erf (a) f = Add (one, e) g = Mul (half, f) y = Mul (g, x)",
        _GELU + "a = Mul (x, i) e = Erf (a) f = Add (e, one) g = Mul (x, half) y = Mul (g, f)",
        _TANH + "p = Pow (x, three) a = Mul (p, q) b2 = Add (x, a) c2 = Mul (b2, k) e = Tanh (c2) "
        "f = Add (e, one) g = Mul (half, x) y = Mul (g, f)",
        _TANH + "p = Mul (x, x) a = Mul (q, p) a2 = Add (one, a) b2 = Mul (x, a2) "
        "c2 = Mul (k, b2) e = Tanh (c2) f = Add (e, one) g = Mul (f, x) y = Mul (g, half)",
    ],
    "Mish": ["s2 = Softplus (x) t = Tanh (s2) y = Mul (x, t)"],
    "HardSigmoid": [
        _HARD + "a = Add (x, three) c2 = Clip (a, zero, six) y = Div (c2, six)",
        _HARD + "a = Add (x, three) c2 = Clip (a, zero, six) y = Mul (sixth, c2)",
    ],
    "HardSwish": [
        _HARD + "a = Add (three, x) c2 = Clip (a, zero, six) d2 = Mul (x, c2) y = Div (d2, six)",
        _HARD + "a = Add (x, three) c2 = Clip (a, zero, six) d2 = Div (c2, six) y = Mul (d2, x)",
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, h)",
    ],
}


@pytest.mark.parametrize(
    ("body", "op"), [(body, op) for op, bodies in _EXPORTED.items() for body in bodies]
)
def test_functions_become_one_node(body: str, op: str) -> None:
    assert _operators(_model(body)) == [op]


@pytest.mark.parametrize(
    "body",
    [
        _GELU + "a = Mul (x, half) e = Erf (a) f = Add (e, one) g = Mul (x, f) y = Mul (g, half)",
        _GELU + "a = Div (x, r) e = Erf (a) f = Add (e, half) g = Mul (x, f) y = Mul (g, half)",
        _GELU + "a = Div (x, r) e = Erf (a) f = Add (e, one) y = Mul (x, f)",
        _GELU + "n = Neg (x) a = Div (n, r) e = Erf (a) f = Add (e, one) g = Mul (x, f) "
        "y = Mul (g, half)",
        _TANH + "p = Mul (x, x) b2 = Add (x, p) c2 = Mul (b2, k) e = Tanh (c2) "
        "f = Add (e, one) g = Mul (half, x) y = Mul (g, f)",
        "n = Neg (x) s2 = Softplus (n) t = Tanh (s2) y = Mul (x, t)",
        _HARD + "a = Add (x, three) c2 = Clip (a, zero, three) y = Div (c2, six)",
        _HARD + "a = Add (x, six) c2 = Clip (a, zero, six) y = Div (c2, six)",
        "h = HardSigmoid <alpha = 0.2, beta = 0.5> (x) y = Mul (x, h)",
    ],
)
def test_what_only_looks_like_a_function_stays(body: str) -> None:
    operators = _operators(_model(body))
    assert not {"Gelu", "Mish", "HardSwish"} & set(operators)
    assert "HardSigmoid" not in operators or len(operators) > 1


def _norm(axes: str, tail: str, middle: str = "q = Div (z, u)") -> str:
    return f"""e = Constant <value = float {{0.01}}> () two = Constant <value = float {{2}}> ()
    half = Constant <value = float {{0.5}}> ()
    m1 = ReduceMean <axes = {axes}> (x) z = Sub (x, m1) p = Pow (z, two)
    v = ReduceMean <axes = {axes}> (p) t = Add (v, e) u = Sqrt (t) {middle} {tail}"""


@pytest.mark.parametrize(
    "body",
    [
        _norm("[-1]", "k = Mul (q, g6) y = Add (k, b6)"),
        _norm("[2]", "k = Mul (g6, q) y = Add (b6, k)"),
        _norm("[-1]", "y = Mul (q, g6)"),
        _norm("[-1]", "y = Identity (q)"),
        _norm("[-1]", "k = Mul (q, g6) y = Add (k, b6)", "i = Reciprocal (u) q = Mul (z, i)"),
        _norm("[-2, -1]", "y = Mul (q, plane)"),
    ],
)
def test_a_layer_normalization_in_pieces_is_put_together(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SHAPES, "plane", (4, 6))
    assert _operators(_model(body, _TOKENS), _TOKENS) == ["LayerNormalization"]


@pytest.mark.parametrize(
    "body",
    [
        _norm("[1]", "y = Identity (q)"),  # not the last axis
        _norm("[-1]", "y = Identity (q)", "q = Div (x, u)"),  # not centred
        _norm("[-1]", "y = Identity (q)", "q = Div (z, t)"),  # the variance, not its root
        _norm("[-1]", "y = Identity (q)").replace("(p) t", "(z) t"),  # not a square
        _norm("[-1]", "y = Identity (q)").replace("v = ReduceMean", "v = ReduceMax"),
    ],
    ids=["axis", "x", "variance", "no-square", "maximum"],
)
def test_what_only_looks_like_a_layer_normalization_stays(body: str) -> None:
    assert "LayerNormalization" not in _operators(_model(body, _TOKENS), _TOKENS)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("z = Constant <value = float {0}> () h = Relu (x) y = Add (z, h)", ["Relu"]),
        ("z = Constant <value = float {0}> () h = Sub (x, z) y = Relu (h)", ["Relu"]),
        ("z = Constant <value_floats = [1.0]> () h = Div (x, z) y = Relu (h)", ["Relu"]),
        ("z = Constant <value = float {0}> () h = Sub (z, x) y = Relu (h)", ["Sub", "Relu"]),
        ("h = Relu (x) k = Add (h, s) y = Add (row6, k)", ["Relu", "Add"]),
        ("h = Relu (x) k = Mul (h, row6) y = Mul (s, k)", ["Relu", "Mul"]),
        ("h = Relu (x) k = Mul (h, row6) y = Add (s, k)", ["Relu", "Mul", "Add"]),
    ],
)
def test_constants_of_one_chain_meet(
    body: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SHAPES, "row6", (6,))
    assert _operators(_model(body)) == left


def test_a_one_that_adds_a_dimension_stays() -> None:
    proto = _model("h = Relu (x) y = Mul (h, one)")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1,) * 5, np.float32), "one"))
    assert _operators(proto) == ["Relu", "Mul"]


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("y = Swish (x)", ["Sigmoid", "Mul"]),
        ("y = Swish <alpha = 1.5> (x)", ["Mul", "Sigmoid", "Mul"]),
    ],
)
def test_swish_becomes_operators_that_every_opset_has(body: str, operators: list[str]) -> None:
    assert _operators(_model(body, opset=24)) == operators


def test_what_replaces_a_node_that_was_written_just_now_stands_in_its_place() -> None:
    proto = _model("h = Relu (x) y = Neg (h)", _ROWS)
    editor = Editor(proto, {})
    first, _ = editor.nodes
    written = [
        onnx.helper.make_node(op, [read], [made])
        for op, read, made in (("Abs", "x", "a"), ("Exp", "a", "b"), ("Relu", "b", "h"))
    ]
    editor.replace([first], written)
    logs = [onnx.helper.make_node("Log", ["a"], ["l"]), onnx.helper.make_node("Sin", ["l"], ["b"])]
    editor.replace([written[1]], logs)
    editor.write()
    operators = [node.op_type for node in proto.graph.node]
    assert operators == ["Abs", "Log", "Sin", "Relu", "Neg"]
