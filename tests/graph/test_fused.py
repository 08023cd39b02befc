"""What onnxruntime fused becomes ONNX's own operators, which compute what it computed."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.load import from_proto, load
from onnxbrecq.graph.points import find_points
from onnxbrecq.runtime.session import Session

_ROUNDING = 1e-5  # chains of float32 operations in another order, or another erf or tanh
_SHAPES = {
    "w": (8, 4, 3, 3), "b": (8,), "m": (6, 5), "mt": (5, 6), "row": (5,), "bias6": (6,),
    "gamma": (6,), "beta": (6,), "qkv": (6, 24), "qkv_bias": (24,), "odd": (6, 20),
    "odd_bias": (20,), "near": (1, 4, 3, 3),
}  # fmt: skip
_IMAGE = ("float[N, 4, 6, 6] x, float[N, 8, 4, 4] z", {"x": (2, 4, 6, 6), "z": (2, 8, 4, 4)})
_ROWS = ("float[N, 6] x", {"x": (2, 6)})
_TOKENS = ("float[N, 3, 6] x, float[N, 3, 6] z", {"x": (2, 3, 6), "z": (2, 3, 6)})
_HEADS = ("float[N, 4, 3, 6] x, float[N, 4, 5, 6] z", {"x": (2, 4, 3, 6), "z": (2, 4, 5, 6)})
_MASKED = ("float[N, 3, 6] x, int32[N, 3] keep", {"x": (2, 3, 6), "keep": (2, 3)})
_SEEN = ("float[N, 3, 6] x, int32[N, 3, 3] keep", {"x": (2, 3, 6), "keep": (2, 3, 3)})

_FIXTURES = Path(__file__).parents[2] / "fixtures"
Given = tuple[str, dict[str, tuple[int, ...]]]


def _model(body: str, takes: str, opset: int = 21) -> onnx.ModelProto:
    text = f"""<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>
        net ({takes}) => (float y) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, shape in _SHAPES.items():
        if name in read:
            array = random.normal(size=shape).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _feed(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    feed = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if "keep" in shapes:  # no row hides everything
        keep = random.integers(0, 2, shapes["keep"]).astype(np.int32)
        keep[..., 0] = 1
        feed["keep"] = keep
    if "lengths" in shapes:
        feed["lengths"] = np.arange(1, 1 + len(feed["x"]), dtype=np.int32)
    return feed


def _operators(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The operators of the canonical model, which computes what its source does."""
    model = from_proto(proto)
    feed = {name: array for name, array in _feed(shapes).items() if name in model.inputs}
    source = Session(proto, threads=1).run(feed)["y"]
    made = Session(model.proto, threads=1).run(feed)["y"]
    np.testing.assert_allclose(made, source, atol=_ROUNDING * float(np.abs(source).max()), rtol=0)
    return [f"{node.domain}.{node.op_type}".lstrip(".") for node in model.nodes]


@pytest.mark.parametrize(
    ("body", "given", "left"),
    [
        ("y = com.microsoft.FusedConv <pads = [0, 0, 0, 0]> (x, w, b)", _IMAGE, ["Conv"]),
        *(
            (f'y = com.microsoft.FusedConv <activation = "{kind}"> (x, w, b)', _IMAGE,
             ["Conv", kind])
            for kind in ("Relu", "Sigmoid", "Tanh")
        ),
        ('y = com.microsoft.FusedConv <activation = "Relu", strides = [2, 2]> (x, w)', _IMAGE,
         ["Conv", "Relu"]),
        ('y = com.microsoft.FusedConv <activation = "LeakyRelu", activation_params = [0.3]> '
         "(x, w, b)", _IMAGE, ["Conv", "LeakyRelu"]),
        ('y = com.microsoft.FusedConv <activation = "Clip", activation_params = [-1.0, 2.0]> '
         "(x, w, b)", _IMAGE, ["Conv", "Clip"]),
        ('y = com.microsoft.FusedConv <activation = "HardSigmoid", activation_params = [0.3, 0.4]>'
         " (x, w, b)", _IMAGE, ["Conv", "HardSigmoid"]),
        ('y = com.microsoft.FusedConv <activation = "Relu"> (x, w, b, z)', _IMAGE,
         ["Conv", "Add", "Relu"]),
        ("y = com.microsoft.FusedConv (x, w, b, z)", _IMAGE, ["Conv", "Add"]),
        ('y = com.microsoft.FusedConv <activation = "Relu"> (x, w, , z)', _IMAGE,
         ["Conv", "Add", "Relu"]),
        ('y = com.microsoft.FusedGemm <activation = "Relu"> (x, m, row)', _ROWS, ["Gemm", "Relu"]),
        ('y = com.microsoft.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.3, '
         "transB = 1, alpha = 0.5> (x, mt, row)", _ROWS, ["Gemm", "LeakyRelu"]),
        ('y = com.microsoft.FusedGemm <activation = "HardSigmoid", activation_alpha = 0.3, '
         "activation_beta = 0.4> (x, m)", _ROWS, ["Gemm", "HardSigmoid"]),
        ('y = com.microsoft.FusedGemm <activation = "Softplus"> (x, m)', _ROWS,
         ["Gemm", "Softplus"]),
    ],
)  # fmt: skip
def test_a_layer_and_its_activation_function(body: str, given: Given, left: list[str]) -> None:
    takes, shapes = given
    assert _operators(_model(body, takes), shapes) == left


@pytest.mark.parametrize(
    ("attributes", "reads", "left"),
    [
        ("", "x, m", ["MatMul"]),
        ("alpha = 0.5", "x, m", ["MatMul"]),  # in the weight
        ("transB = 1", "x, mt", ["MatMul"]),
        ("transB = 1, alpha = 0.25", "x, z", ["Transpose", "MatMul", "Mul"]),
        ("transA = 1", "x, x2", ["Transpose", "MatMul"]),
        ("transBatchA = 1, transBatchB = 1, transB = 1", "x, x2",
         ["Transpose", "Transpose", "MatMul"]),
        ("transBatchA = 1, transA = 1, transBatchB = 1", "x, x2",
         ["Transpose", "Transpose", "MatMul"]),
    ],
)  # fmt: skip
def test_a_product_of_what_is_transposed(attributes: str, reads: str, left: list[str]) -> None:
    takes, shapes = _HEADS
    before = "x2 = Neg (x) " if "x2" in reads else ""
    said = f" <{attributes}>" if attributes else ""
    body = f"{before}y = com.microsoft.FusedMatMul{said} ({reads})"
    made = _operators(_model(body, takes), shapes)
    assert [op for op in made if op != "Neg"] == left


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = com.microsoft.Gelu (x)", ["Gelu"]),
        ("y = com.microsoft.BiasGelu (x, bias6)", ["Add", "Gelu"]),
        ("y = com.microsoft.FastGelu (x)", ["Gelu"]),
        ("y = com.microsoft.FastGelu (x, bias6)", ["Add", "Gelu"]),
        ("y = com.microsoft.QuickGelu (x)", ["Mul", "Sigmoid", "Mul"]),
        ("y = com.microsoft.QuickGelu <alpha = 1.0> (x)", ["Sigmoid", "Mul"]),
        ("y = com.microsoft.SkipLayerNormalization (x, z, gamma)", ["Add", "LayerNormalization"]),
        ("y = com.microsoft.SkipLayerNormalization <epsilon = 0.01> (x, z, gamma, beta, bias6)",
         ["Add", "Add", "LayerNormalization"]),
        ("h, , , s = com.microsoft.SkipLayerNormalization (x, z, gamma, beta) y = Mul (h, s)",
         ["Add", "LayerNormalization", "Mul"]),
        ("h, , , s = com.microsoft.SkipLayerNormalization (x, z, gamma, , bias6) y = Mul (h, s)",
         ["Add", "Add", "LayerNormalization", "Mul"]),
    ],
)  # fmt: skip
def test_functions_and_normalizations(body: str, left: list[str]) -> None:
    takes, shapes = _TOKENS
    assert _operators(_model(body, takes), shapes) == left


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias)", _TOKENS),
        ("y = com.microsoft.Attention <num_heads = 2, scale = 0.7> (x, qkv, qkv_bias)", _TOKENS),
        ("y = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [6, 6, 8]> "
         "(x, odd, odd_bias)", _TOKENS),
        ("y = com.microsoft.Attention <num_heads = 4> (x, qkv, qkv_bias, keep)", _MASKED),
        ("y = com.microsoft.Attention <num_heads = 2, mask_filter_value = -2.0> "
         "(x, qkv, qkv_bias, keep)", _MASKED),
        ("y = com.microsoft.Attention <num_heads = 2, mask_filter_value = -3.0> "
         "(x, qkv, qkv_bias, keep)", _SEEN),
        ("y = com.microsoft.Attention <num_heads = 1> (x, qkv, qkv_bias, , , near)", _TOKENS),
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, keep, , far)", _MASKED),
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, keep)",
         ("float[N, 3, 6] x, int32[N, 1] keep", {"x": (2, 3, 6), "keep": (2, 1)})),
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, lengths)",
         ("float[N, S, 6] x, int32[N] lengths", {"x": (3, 5, 6), "lengths": (3,)})),
        (f"shift = Constant <value = float[24] {{{', '.join(map(str, range(24)))}}}> () "
         "y = com.microsoft.Attention <num_heads = 2> (x, qkv, shift)", _TOKENS),
        ("k = Constant <value = int32[2, 3] {1, 1, 0, 1, 0, 0}> () "
         "y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, k)",
         ("float[2, 3, 6] x", {"x": (2, 3, 6)})),
    ],
)  # fmt: skip
def test_attention_has_a_layer_for_each_part(
    body: str, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SHAPES, "near", (1, 1, 3, 3))
    monkeypatch.setitem(_SHAPES, "far", (1, 1, 1, 3))
    takes, shapes = given
    proto = _model(body, takes)
    for tensor in proto.graph.initializer:
        if tensor.name == "far":  # a score that only a strong mask hides
            array = np.full((1, 2, 3, 3), 200, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, "far"))
    assert not [op for op in _operators(proto, shapes) if "." in op]
    layers = find_points(from_proto(proto)).layers
    assert [name.rpartition("/")[2] for name in layers] == ["query", "key", "value"]


def test_attention_over_nothing() -> None:
    """No sample, or none of its tokens: onnxruntime makes an empty output of it."""
    body = "y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias)"
    proto = _model(body, "float[N, 3, 6] x")
    x = np.zeros((0, 3, 6), np.float32)
    assert Session(from_proto(proto).proto).run({"x": x})["y"].shape == (0, 3, 8)


@pytest.mark.parametrize(
    ("reads", "makes", "left"),
    [
        ("ids, seg, words, places, kinds, gamma, beta", "y, left", 3),
        ("ids, , words, places, , gamma, beta", "y, left", 2),
        ("ids, , words, places, , gamma, beta, , at", "y, left", 2),
        ("ids, seg, words, places, kinds, gamma, beta, , at", "h, left, s", 3),
        ("ids, seg, words, places, kinds, gamma, beta, keep, at", "h, left, s", 3),
    ],
)
def test_embeddings_are_looked_up_in_tables(
    reads: str, makes: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in {"words": 9, "places": 7, "kinds": 2}.items():
        monkeypatch.setitem(_SHAPES, name, (rows, 6))
    takes = ", ".join(f"int32[N, S] {name}" for name in ("ids", "seg", "at", "keep"))
    end = "" if makes.startswith("y") else " t = Add (h, s)"
    if "keep" in reads:
        end += " c = Cast <to = 1> (left) u = Unsqueeze (c, two) y = Add (t, u)"
        end = " two = Constant <value_ints = [1, 2]> ()" + end
    elif end:
        end += " y = Neg (t)"
    body = f"{makes} = com.microsoft.EmbedLayerNormalization <epsilon = 0.01> ({reads}){end}"
    proto = _model(body, takes)
    random = np.random.default_rng(0)
    feed = {name: random.integers(0, most, (2, 5)).astype(np.int32)
            for name, most in {"ids": 9, "seg": 2, "at": 7, "keep": 2}.items()}  # fmt: skip
    model = from_proto(proto)
    kinds = [node.op_type for node in model.nodes]
    assert not [node.op_type for node in model.nodes if node.domain]
    assert kinds.count("Gather") == left - (", at" not in reads)
    assert kinds.count("Slice") == (", at" not in reads)
    wanted, made = (Session(p, threads=1).run(feed)["y"] for p in (proto, model.proto))
    np.testing.assert_allclose(made, wanted, atol=_ROUNDING * float(np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize(
    ("body", "given", "op"),
    [
        ('y = com.microsoft.FusedGemm <activation = "ScaledTanh", activation_alpha = 1.0, '
         "activation_beta = 1.0> (x, m)", _ROWS, "FusedGemm"),
        ("h, i, , = com.microsoft.SkipLayerNormalization (x, z, gamma) y = Mul (h, i)", _TOKENS,
         "SkipLayerNormalization"),
        ("y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, qkv, qkv_bias)",
         _TOKENS, "Attention"),
        ("h, p = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias) y = Add (h, p)",
         _TOKENS, "Attention"),
        ("y = com.microsoft.Attention <num_heads = 2, do_rotary = 1> (x, qkv, qkv_bias)", _TOKENS,
         "Attention"),
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, lengths)",
         ("float[N, 3, 6] x, int32[M] lengths", {}), "Attention"),  # starts too, perhaps
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, , past)",
         ("float[N, 3, 6] x, float[2, N, 2, 4, 4] past", {}), "Attention"),
        ("y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias, , , , length)",
         ("float[N, 3, 6] x, int32[1] length", {}), "Attention"),
        ("h, left = com.microsoft.EmbedLayerNormalization (ids, , m, m, , row, row) "
         "c = Cast <to = 1> (left) r = ReduceMean (c) y = Add (h, r)",
         ("int32[N, S] ids", {}), "EmbedLayerNormalization"),
        ("p = com.microsoft.FusedMatMul <alpha = 0.5> (i, i) y = Cast <to = 1> (p)",
         ("int64[N, N] i", {}), "FusedMatMul"),
        ("y = com.microsoft.Inverse (x)", ("float[N, 3, 3] x", {"x": (2, 3, 3)}), "Inverse"),
    ],
)  # fmt: skip
def test_what_has_no_like_in_onnx_stays(body: str, given: Given, op: str) -> None:
    takes, _ = given
    made = from_proto(_model(body, takes))
    assert [node.op_type for node in made.nodes if node.domain] == [op]


@pytest.mark.parametrize(
    "body",
    [
        'y = com.microsoft.FusedConv <activation = 3> (x, w)',
        "y = com.microsoft.FusedConv <alpha = 2.0> (x, w)",
        "y, q = com.microsoft.Gelu (x)",
        "y, , , , q = com.microsoft.SkipLayerNormalization (x, x, b)",
        "y = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [8, 6, 10]> "
        "(x, qkv, qkv_bias)",
        "y = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias)",  # of an image
        'y = com.microsoft.FusedConv <group = "one"> (x, w)',
        "y = com.microsoft.FusedConv <own = 1> (x, w)",
        "y = com.microsoft.FusedConv (x)",
        "y = com.microsoft.FusedConv (x, w, b, z, z)",
        'y = com.microsoft.FusedConv <activation = "Clip", activation_params = [1.0]> (x, w)',
        'y = com.microsoft.FusedConv <activation = "LeakyRelu"> (x, w)',
        "y = com.microsoft.FusedMatMul (x, )",
        'y = com.microsoft.FusedMatMul <alpha = "half"> (x, z)',
        "y = com.microsoft.SkipLayerNormalization (x, , b)",
        "y = com.microsoft.Attention <num_heads = 0> (x, qkv, qkv_bias)",
        "y = com.microsoft.Attention <num_heads = 5> (x, qkv, qkv_bias)",
        "y = com.microsoft.Attention <num_heads = 2> (x, b, b)",
        "y = com.microsoft.Attention <num_heads = 2, qkv_hidden_sizes = [8, 8]> (x, qkv, qkv_bias)",
        "y = com.microsoft.Attention <num_heads = 2> (x, qkv, b)",
    ],
)  # fmt: skip
def test_what_is_no_such_operator_is_left_to_onnxruntime_to_refuse(body: str) -> None:
    (node,) = from_proto(_model(body, _IMAGE[0])).nodes
    assert node.domain == "com.microsoft"


def _halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in half precision."""
    for tensor in proto.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return proto


def test_half_precision_is_widened_through_what_was_fused() -> None:
    body = 'a = com.microsoft.FusedConv <activation = "Clip", activation_params = [0.0, 6.0]> '
    model = from_proto(_halved(_model(f"{body} (x, w, b) y = com.microsoft.Gelu (a)", _IMAGE[0])))
    inner = [node.op_type for node in model.nodes if node.op_type != "Cast"]
    assert inner == ["Conv", "Clip", "Gelu"]
    assert model.dtypes["a"] == onnx.TensorProto.FLOAT


def test_a_mask_of_half_precision_that_hides_all_leaves_numbers() -> None:
    body = """y = com.microsoft.Attention <num_heads = 2, mask_filter_value = -3.4e38>
        (x, qkv, qkv_bias, keep)"""
    model = from_proto(_halved(_model(body, _MASKED[0])))
    assert not [node.op_type for node in model.nodes if node.domain]
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float16)
    made = Session(model.proto).run({"x": x, "keep": np.zeros((2, 3), np.int32)})["y"]
    assert np.isfinite(made).all()


@pytest.mark.parametrize(
    "body",
    ["y = com.microsoft.Gelu (x)", "y = com.microsoft.SkipLayerNormalization (x, z, gamma)"],
)
def test_an_opset_that_lacks_the_operator_keeps_the_fused_one(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> onnx.ModelProto:
        raise RuntimeError("not today")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuses)
    model = from_proto(_model(body, _TOKENS[0], opset=16))
    assert model.opset == 16
    assert [node.domain for node in model.nodes] == ["com.microsoft"]


def _saved(source: Path | bytes, folder: Path) -> onnx.ModelProto:
    """The model as onnxruntime saves it with extended optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "saved.onnx")
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "saved.onnx")


@pytest.mark.parametrize("name", ["residual", "detector", "vit", "language"])
def test_a_network_saved_by_onnxruntime_is_the_network_again(name: str, tmp_path: Path) -> None:
    saved = _saved(_FIXTURES / f"{name}.onnx", tmp_path)
    assert any(node.domain == "com.microsoft" for node in saved.graph.node)
    source, again = load(_FIXTURES / f"{name}.onnx"), from_proto(saved)
    assert not [node.op_type for node in again.nodes if node.domain]
    assert [entry.domain for entry in again.proto.opset_import] == [""]
    layers = [
        sorted(
            (layer.op, model.initializers[layer.weight].shape)
            for layer in find_points(model).layers.values()
        )
        for model in (source, again)
    ]
    assert layers[0] == layers[1]
    with np.load(_FIXTURES / f"{name}.calib.npz") as file:
        feed = {key: file[key][:4] for key in source.inputs}
    wanted, made = (Session(model.proto, threads=1).run(feed) for model in (source, again))
    for key, value in wanted.items():
        atol = 10 * _ROUNDING * float(np.abs(value).max())  # a whole network deep
        np.testing.assert_allclose(made[key], value, atol=atol, rtol=0)


_MEAN = "e = ReduceMean <axes = [{axis}]> (x) d = Sub (x, e) "
_SQUARES = "p = Pow (d, two) v = ReduceMean <axes = [{axis}]> (p) "
_DIVIDED = "a = Add (v, small) r = Sqrt (a) n = Div (d, r) g = Mul (n, gamma) "
_CONSTANTS = "two = Constant <value = float {2.0}> () small = Constant <value = float {1e-5}> () "


@pytest.mark.parametrize("opset", [11, 13, 16, 17])
@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("centred", [True, False])
def test_normalizations_that_onnxruntime_saved_in_the_domain_of_onnx(
    opset: int, axis: int, centred: bool, tmp_path: Path
) -> None:
    start = _MEAN.format(axis=axis) if centred else "d = Identity (x) "
    end = "h = Add (g, beta) " if centred else "h = Identity (g) "
    body = f"{_CONSTANTS}{start}{_SQUARES.format(axis=axis)}{_DIVIDED}{end}y = MatMul (h, m)"
    body = body.replace(" = ReduceMean", " = ReduceMean").replace(
        "m = ReduceMean", "e = ReduceMean"
    )
    body = body.replace("Sub (x, m)", "Sub (x, e)")
    source = _model(body, "float[N, 3, 6] x", opset)
    saved = _saved(source.SerializeToString(), tmp_path)
    kinds = {node.op_type for node in saved.graph.node}
    assert kinds & {"LayerNormalization", "SimplifiedLayerNormalization"}
    model = from_proto(saved)
    assert ("LayerNormalization" in {node.op_type for node in model.nodes}) == centred
    assert len(find_points(model).layers) == 1
    x = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)
    wanted, made = (Session(p, threads=1).run({"x": x})["y"] for p in (source, model.proto))
    np.testing.assert_allclose(made, wanted, atol=_ROUNDING * float(np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize(
    "body",
    ["y, e = LayerNormalization (x, gamma) z = Neg (e)",
     "y = LayerNormalization <axis = 9> (x, gamma)",
     "y = SimplifiedLayerNormalization <axis = 1.5> (x, gamma)"],
)  # fmt: skip
def test_a_normalization_that_cannot_be_written_out_is_refused(body: str) -> None:
    with pytest.raises(ModelError, match="which opset 14 does not have"):
        from_proto(_model(body, "float[N, 3, 6] x", 14))


@pytest.mark.parametrize("kind", [np.str_, np.int64, np.bool_, ml_dtypes.int4])
def test_a_normalization_whose_scale_is_no_float_is_refused(kind: type) -> None:
    proto = _model("y = SimplifiedLayerNormalization (x, gamma)", "float[N, 3, 6] x", 14)
    scale = numpy_helper.from_array(np.ones(6).astype(kind), "gamma")
    proto.graph.initializer[0].CopyFrom(scale)
    with pytest.raises(ModelError, match="which opset 14 does not have"):
        from_proto(proto)


@pytest.mark.parametrize("lengths", [False, True])
def test_a_transformer_as_an_optimizer_saves_it_falls_into_blocks(lengths: bool) -> None:
    """Attention over embeddings, what is fused around it, and masks that all layers share."""
    layers = 2
    shapes = {"words": (9, 6), "places": (7, 6), "up": (6, 8), "down": (8, 6), "bias8": (8,)}
    mask = "left" if lengths else "keep"
    reads = "ids, , words, places, , gamma, beta, keep"
    body = f"h0, left = com.microsoft.EmbedLayerNormalization ({reads})"
    for i in range(layers):
        body += f"""
        a{i} = com.microsoft.Attention <num_heads = 2> (h{i}, qkv{i}, qkv_bias{i}, {mask})
        o{i} = MatMul (a{i}, out{i})
        m{i} = com.microsoft.SkipLayerNormalization (h{i}, o{i}, g{i}, b{i}, ob{i})
        u{i} = MatMul (m{i}, up{i}) f{i} = com.microsoft.BiasGelu (u{i}, bias8{i})
        d{i} = MatMul (f{i}, down{i})
        h{i + 1} = com.microsoft.SkipLayerNormalization (d{i}, m{i}, k{i}, l{i})"""
        names = {"qkv": (6, 18), "qkv_bias": (18,), "out": (6, 6), "up": (6, 8), "bias8": (8,),
                 "down": (8, 6), **dict.fromkeys(("g", "b", "ob", "k", "l"), (6,))}  # fmt: skip
        shapes |= {f"{name}{i}": shape for name, shape in names.items()}
    proto = _model(f"{body} y = Identity (h{layers})", "int32[N, S] ids, int32[N, S] keep")
    random = np.random.default_rng(0)
    known = {tensor.name for tensor in proto.graph.initializer}
    read = {name for node in proto.graph.node for name in node.input}
    for name in sorted(read & shapes.keys() - known):
        array = random.normal(size=shapes[name]).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = from_proto(proto)
    assert not [node.op_type for node in model.nodes if node.domain]
    blocks = [len(block.weights) for block in partition(model)]
    assert blocks == [4, 2, 4, 2]
    keep = np.arange(5)[None] < np.array([[5], [3], [1]])
    feed = {"ids": random.integers(0, 9, (3, 5)).astype(np.int32), "keep": keep.astype(np.int32)}
    wanted, made = (Session(p, threads=1).run(feed)["y"] for p in (proto, model.proto))
    np.testing.assert_allclose(made, wanted, atol=10 * _ROUNDING * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("inside", [False, True])
def test_a_graph_laid_out_for_one_processor_is_refused(inside: bool) -> None:
    laid_out = helper.make_opsetid("com.microsoft.nchwc", 1)
    proto = _model("y = Conv (x, w)", _IMAGE[0])
    node = proto.graph.node[0]
    node.domain = "own" if inside else "com.microsoft.nchwc"
    if inside:
        conv = helper.make_node("Conv", ["a", "b"], ["c"], domain="com.microsoft.nchwc")
        function = helper.make_function("own", "Conv", ["a", "b"], ["c"], [conv], [laid_out])
        proto.functions.append(function)
        proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.opset_import.append(laid_out)
    with pytest.raises(ModelError, match=r"com\.microsoft\.nchwc\.Conv.*ORT_ENABLE_EXTENDED"):
        from_proto(proto)


def test_nodes_of_other_domains_that_hold_weights_are_named() -> None:
    body = "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, qkv, qkv_bias)"
    proto = _model(body, _TOKENS[0])
    proto.graph.node[0].name = "attend"
    note = next(note for note in from_proto(proto).notes if "not quantized" in note)
    assert note.startswith("144 values")
    assert note.endswith("'attend' (com.microsoft.Attention)")


def test_a_node_of_another_domain_without_a_matrix_is_not_named() -> None:
    proto = _model("y = com.microsoft.BiasSplitGelu (x, bias6)", _TOKENS[0])
    assert [node.domain for node in from_proto(proto).nodes] == ["com.microsoft"]
    assert not any("not quantized" in note for note in from_proto(proto).notes)
