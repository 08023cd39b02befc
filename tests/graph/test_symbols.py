import onnx
import onnx.parser
import pytest

from onnxbrecq.graph.symbols import edit_symbols, multiple


def symbols(text: str) -> dict[str, list[str]]:
    """Tensor → names of its dimensions."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    edit_symbols(graph)
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}


WINDOWS = """<int64[6] apart = {-1, 2, 3, 4, 3, 5}, int64[4] windows = {-1, 3, 3, 5},
int64[4] back = {-1, 6, 12, 5}>
{ a = Reshape (x, apart) b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
  w = Reshape (b, windows) y = Reshape (w, back) }"""


def test_windows_are_a_multiple_of_the_batch_and_come_together_again() -> None:
    found = symbols(f"g (float[N, 6, 12, 5] x) => (float[?, 6, 12, 5] y) {WINDOWS}")
    assert found["a"][0] == "N"
    assert found["w"][0] == "8*N"
    assert found["y"][0] == "N"


def test_a_name_that_an_input_has_is_not_given_to_another_number() -> None:
    text = 'g (float[N, 6, 12, 5] x, float["8*N"] z) => (float[?, 6, 12, 5] y)'
    found = symbols(f"{text} {WINDOWS}")
    assert found["z"] == ["8*N"]
    assert found["w"][0] not in ("8*N", "N", "")


def test_rows_are_those_of_the_first_factor_and_a_vector_has_none() -> None:
    text = """g (float[N, T, 5] x, float[5] v, float[N, 5] a, float[5, 3] w)
    => (float[rows, T] m, float[lines, 3] g) { m = MatMul (x, v) g = Gemm (a, w) }"""
    found = symbols(text)
    assert found["m"] == ["rows", "T"]
    assert found["g"] == ["N", ""]


@pytest.mark.parametrize(
    ("dim", "count"),
    [("N", 1), ("197*N", 197), ("1/4*N", 0.25), ("M", None), ("3*M", None), ("x*N", None),
     ("1/0*N", None)],
)  # fmt: skip
def test_multiples_are_read_from_names(dim: str, count: float | None) -> None:
    assert multiple(dim, "N") == count


def test_a_dimension_without_a_name_is_no_multiple() -> None:
    assert multiple("", "") is None
