import onnx
import onnx.parser
import pytest

from onnxbrecq.graph.layers import WeightLayer, weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.symbols import edit_symbols


def model(text: str) -> Model:
    header = '<ir_version: 10, opset_import: ["": 21]>'
    proto = onnx.shape_inference.infer_shapes(
        onnx.parser.parse_model(f"{header} {text}"), strict_mode=True, data_prop=True
    )
    edit_symbols(proto.graph)
    return Model(proto, (tuple(proto.graph.input), tuple(proto.graph.output)), batched=True)


def zeros(*shape: int) -> str:
    count = 1
    for size in shape:
        count *= size
    return "{" + ", ".join(["0.0"] * count) + "}"


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        (
            f"""g (float[N, 4, 6, 6] x) => (float[N, 2, 2, 2] y)
            <float[2, 2, 3, 3] w = {zeros(2, 2, 3, 3)}>
            {{ [a] y = Conv <group = 2, strides = [2, 2]> (x, w) }}""",
            WeightLayer("a", "Conv", "w", 8 * 2 * 9, 36),
        ),
        (
            f"""g (float[1, 4, 6, 6] x) => (float[1, 6, 12, 12] y)
            <float[4, 6, 2, 2] w = {zeros(4, 6, 2, 2)}>
            {{ [a] y = ConvTranspose <strides = [2, 2]> (x, w) }}""",
            WeightLayer("a", "ConvTranspose", "w", 144 * 6 * 4, 96),
        ),
        (
            f"""g (float[N, 5] x) => (float[N, 3] y) <float[3, 5] w = {zeros(3, 5)}>
            {{ [a] y = Gemm <transB = 1> (x, w) }}""",
            WeightLayer("a", "Gemm", "w", 15, 15),
        ),
        (
            f"""g (float[N, 7, 5] x) => (float[N, 7, 3] y) <float[5, 3] w = {zeros(5, 3)}>
            {{ [a] y = MatMul (x, w) }}""",
            WeightLayer("a", "MatMul", "w", 7 * 15, 15),
        ),
        (
            f"""g (float[N, 7, 5] x) => (float["7*N", 3] y)
            <float[5, 3] w = {zeros(5, 3)}, int64[2] s = {{-1, 5}}>
            {{ rows = Reshape (x, s) [a] y = MatMul (rows, w) }}""",
            WeightLayer("a", "MatMul", "w", 7 * 15, 15),
        ),
        (
            f"""g (float[N, 7, 5] x) => (float[tokens, 3] y)
            <float[5, 3] w = {zeros(5, 3)}, int64[2] s = {{-1, 5}}>
            {{ rows = Reshape (x, s) [a] y = MatMul (rows, w) }}""",
            WeightLayer("a", "MatMul", "w", 7 * 15, 15),
        ),
        (
            f"""g (float[N, 7, 5] x) => (float[tokens, 3] y)
            <float[5, 3] w = {zeros(5, 3)}, int64[2] s = {{-1, 5}}>
            {{ rows = Reshape (x, s) [a] y = Gemm (rows, w) }}""",
            WeightLayer("a", "Gemm", "w", 7 * 15, 15),
        ),
        (
            f"""g (float[N, 10] x) => (float[M, 3] y)
            <float[40, 3] w = {zeros(40, 3)}, int64[2] s = {{-1, 40}}>
            {{ rows = Reshape (x, s) [a] y = MatMul (rows, w) }}""",
            WeightLayer("a", "MatMul", "w", 30, 120),
        ),
        (
            f"""g (float[3, 5] x) => (float[3] y) <float[5] w = {zeros(5)}>
            {{ [a] y = MatMul (x, w) }}""",
            WeightLayer("a", "MatMul", "w", 5, 5),
        ),
        (
            f"""g (float[5, 3] x) => (float[2, 3] y) <float[2, 5] w = {zeros(2, 5)}>
            {{ [a] y = MatMul (w, x) }}""",
            WeightLayer("a", "MatMul", "w", 30, 10),
        ),
        (
            f"""g (float[4, 7, 5] x) => (float[4, 7] y) <float[5] w = {zeros(5)}>
            {{ [a] y = MatMul (x, w) }}""",
            WeightLayer("a", "MatMul", "w", 35, 5),
        ),
    ],
    ids=[
        "grouped-conv", "conv-transpose", "gemm", "tokens", "tokens-end-to-end",
        "named-by-the-file", "named-gemm", "several-a-row", "one-value", "constant-first",
        "vector",
    ],
)  # fmt: skip
def test_multiply_accumulates_of_one_sample(text: str, layer: WeightLayer) -> None:
    assert weight_layers(model(text)) == (layer,)


def test_a_fixed_batch_leads_a_multiple_of_itself() -> None:
    text = f"""g (float[4, 6, 5] x) => (float[24, 3] y)
    <float[5, 3] w = {zeros(5, 3)}, int64[2] s = {{-1, 5}}>
    {{ rows = Reshape (x, s) [a] y = MatMul (rows, w) }}"""
    assert [layer.macs for layer in weight_layers(model(text))] == [6 * 15]


def test_a_layer_may_read_a_constant() -> None:
    text = f"""g (float[N, 2] x) => (float[1, 1, 4, 4] y)
    <float[1, 1, 2, 2] c = {zeros(1, 1, 2, 2)}, float[1, 1, 2, 2] w = {zeros(1, 1, 2, 2)}>
    {{ [a] y = ConvTranspose <strides = [2, 2]> (c, w) }}"""
    assert [layer.macs for layer in weight_layers(model(text))] == [4 * 4]


def test_the_batch_is_that_of_any_input() -> None:
    text = f"""g (float[S] m, float[N, 6, 5] x) => (float[tokens, 3] y)
    <float[5, 3] w = {zeros(5, 3)}, int64[2] s = {{-1, 5}}>
    {{ rows = Reshape (x, s) [a] y = MatMul (rows, w) }}"""
    assert [layer.macs for layer in weight_layers(model(text))] == [6 * 15]


def test_products_of_activations_are_no_weight_layers() -> None:
    text = "g (float[N, 2, 2] x) => (float[N, 2, 2] y) { [a] y = MatMul (x, x) }"
    assert weight_layers(model(text)) == ()


def test_integer_constants_are_no_weights() -> None:
    text = """g (int32[N, 2] x) => (int32[N, 1] y) <int32[2, 1] w = {1, 2}>
        { [a] y = MatMul (x, w) }"""
    assert weight_layers(model(text)) == ()
