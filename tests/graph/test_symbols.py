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
    return {
        v.name: [d.dim_param or str(d.dim_value or "") for d in v.type.tensor_type.shape.dim]
        for v in values
    }


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
    assert found["g"] == ["N", "3"]


_POSITIONS = """g (int64[N, S] x, float[N, S, 4] z) => (float[a, b, 4] y)
<int64[1, 9] places = {0, 1, 2, 3, 4, 5, 6, 7, 8}, int64 one = {1}, int64[1] zero = {0},
int64[1] first = {1}, float[9, 4] table> """


def test_positions_up_to_a_length_join_tokens_of_that_length() -> None:
    """As exporters write positions: so many of a constant row, looked up in a table."""
    found = symbols(
        _POSITIONS
        + """{ s = Shape (x) l = Gather (s, one) n = Unsqueeze (l, zero)
        p = Slice (places, zero, n, first) e = Gather (table, p) y = Add (z, e) }"""
    )
    assert found["p"][0] == found["e"][0] == "1"
    assert found["p"][1] not in ("S", "9", "1")  # fewer, where S is more than 9
    assert found["y"] == ["N", "S", "4"]


@pytest.mark.parametrize(
    "cut",
    [
        "p = Slice (places, first, n, first)",  # not from the first on
        "two = Constant <value = int64[1] {2}> () p = Slice (places, zero, n, first, two)",
        "m = Add (n, n) p = Slice (places, zero, m, first)",
        "p = Slice (places, zero, n, axis)",
    ],
)
def test_another_piece_of_the_positions_may_have_another_length(cut: str) -> None:
    text = _POSITIONS.replace("(int64[N, S] x", "(int64[N, S] x, int64[1] axis")
    found = symbols(
        f"""{text} {{ s = Shape (x) l = Gather (s, one) n = Unsqueeze (l, zero) {cut}
        e = Gather (table, p) y = Add (z, e) }}"""
    )
    assert found["y"][1] != "S"


@pytest.mark.parametrize(
    ("axis", "dims"),
    [(0, ["N", "S", "2", "4"]), (1, ["3", "N", "S", "4"]), (-1, ["3", "2", "N", "S"])],
)  # fmt: skip
def test_rows_of_a_table_are_as_many_as_are_looked_up(axis: int, dims: list[str]) -> None:
    text = f"""g (int64[N, S] x) => (float[a, b, c, d] y) <float[3, 2, 4] table>
    {{ i = Abs (x) y = Gather <axis = {axis}> (table, i) }}"""
    assert symbols(text)["y"] == dims


@pytest.mark.parametrize(
    ("dim", "count"),
    [("N", 1), ("197*N", 197), ("1/4*N", 0.25), ("M", None), ("3*M", None), ("x*N", None),
     ("1/0*N", None)],
)  # fmt: skip
def test_multiples_are_read_from_names(dim: str, count: float | None) -> None:
    assert multiple(dim, "N") == count


def test_a_dimension_without_a_name_is_no_multiple() -> None:
    assert multiple("", "") is None
