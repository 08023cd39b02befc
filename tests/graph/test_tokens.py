"""Networks over any number of tokens, written as exporters write them, fall into blocks.

Shapes are computed from the first tensor on: positions are a constant row cut to the length, heads
are cut by shapes that are put together of dimensions, and every layer computes its own mask.
"""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.runtime.session import Session

_ROUNDING = 1e-5  # some float32 operations in another order
_LAYERS = 2
_START = """
    e = Gather (words, ids) s = Shape (ids) l = Gather (s, one) n = Unsqueeze (l, first)
    p = Slice (places, first, n, last) t = Gather (table, p) h0 = Add (e, t)
    {count} l2 = Cast <to = 7> (length) r = Range (zero, l2, one)
    row = Unsqueeze (r, first) column = Unsqueeze (r, last)"""
_COUNTS = {
    "ids": "length = Identity (l)",
    "index": "sh = Shape (h0) length = Gather (sh, one)",
    "from-behind": "sh = Shape (h0) length = Gather (sh, minus_two)",
    "range": "sh = Shape (h0) part = Slice (sh, last, two) length = Squeeze (part, first)",
    "range-from-behind": "sh = Shape (h0) part = Slice (sh, minus_twos, minus_ones, first, last) "
    "length = Squeeze (part, first)",
    "attributes": "part = Shape <start = 1, end = 2> (h0) length = Squeeze (part, first)",
}
_LAYER = """
    q{i} = MatMul (h{i}, w{i}) s{i} = Shape (q{i}) b{i} = Gather (s{i}, zero)
    t{i} = Gather (s{i}, one) ub{i} = Unsqueeze (b{i}, first) ut{i} = Unsqueeze (t{i}, first)
    c{i} = Concat <axis = 0> (ub{i}, ut{i}, heads, width) r{i} = Reshape (q{i}, c{i})
    a{i} = Transpose <perm = [0, 2, 1, 3]> (r{i}) k{i} = Transpose <perm = [0, 2, 3, 1]> (r{i})
    m{i} = MatMul (a{i}, k{i}) below{i} = LessOrEqual (row, column)
    bias{i} = Where (below{i}, seen, hidden) z{i} = Add (m{i}, bias{i})
    f{i} = Softmax <axis = -1> (z{i}) o{i} = MatMul (f{i}, a{i})
    v{i} = Transpose <perm = [0, 2, 1, 3]> (o{i}) d{i} = Concat <axis = 0> (ub{i}, ut{i}, left)
    y{i} = Reshape (v{i}, d{i}) g{i} = MatMul (y{i}, u{i}) h{j} = Add (h{i}, g{i})"""
# As GPT-2 ends: the width comes from the first tensor's shape, by a Slice.
_END = """ last_shape = Shape (h0) wide = Slice (last_shape, two, three) few = Squeeze (wide, first)
    many = Unsqueeze (few, first) end = Concat <axis = 0> (n_all, n, many)
    y = Reshape (h{j}, end)"""


def _proto(end: str = " y = Identity (h{j})", count: str = "ids") -> onnx.ModelProto:
    body = _START.format(count=_COUNTS[count]) + "".join(
        _LAYER.format(i=i, j=i + 1) for i in range(_LAYERS)
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (int64[N, S] ids) => (float[N, S, 6] y) {{ {body}{end.format(j=_LAYERS)} }}"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    floats = {"words": (9, 6), "table": (16, 6)}
    floats |= {f"{name}{i}": (6, 6) for i in range(_LAYERS) for name in "wu"}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in floats.items()}
    arrays |= {"seen": np.float32(0), "hidden": np.float32(-1e4)}
    whole = {"zero": 0, "one": 1, "first": [0], "last": [1], "heads": [2], "width": [3],
             "left": [-1], "two": [2], "three": [3], "places": [list(range(16))],
             "n_all": [-1], "minus_two": -2, "minus_twos": [-2], "minus_ones": [-1]}  # fmt: skip
    arrays |= {name: np.array(value, np.int64) for name, value in whole.items()}
    read = {name for node in proto.graph.node for name in node.input}
    for name in sorted(read & arrays.keys()):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(arrays[name]), name))
    return proto


def _canonical(proto: onnx.ModelProto) -> Model:
    """The canonical model, which computes what its source does, for any numbers."""
    model = from_proto(proto)
    onnx.checker.check_model(model.proto)  # its nodes are in order, too
    for shape in ((2, 5), (3, 1), (1, 16), (4, 4)):
        feed = {"ids": np.random.default_rng(1).integers(0, 9, shape)}
        wanted, made = (Session(p, threads=1).run(feed)["y"] for p in (proto, model.proto))
        np.testing.assert_allclose(made, wanted, atol=_ROUNDING * np.abs(wanted).max(), rtol=0)
    return model


@pytest.mark.parametrize("count", _COUNTS)
@pytest.mark.parametrize("end", [" y = Identity (h{j})", _END])
def test_each_layer_is_a_block(end: str, count: str) -> None:
    model = _canonical(_proto(end, count))
    blocks = partition(model)
    assert [len(block.weights) for block in blocks] == [2, 2]
    assert [set(block.inputs) <= {"ids", "h1"} for block in blocks] == [True, True]


def test_shapes_of_heads_are_constants() -> None:
    """What a tensor had before at the same place is copied: 0."""
    model = _canonical(_proto())
    kinds = Counter(node.op_type for node in model.nodes)
    assert kinds["Reshape"] == 2 * _LAYERS
    assert kinds["Concat"] == 0
    shapes = [
        model.initializers[node.input[1]].tolist()
        for node in model.nodes if node.op_type == "Reshape"
    ]  # fmt: skip
    assert shapes == [[0, 0, 2, 3], [0, 0, 6]] * _LAYERS


def test_tokens_are_counted_at_hand() -> None:
    """No layer but the first reads the length from what the network takes."""
    model = _canonical(_proto())
    reads = [node.input[0] for node in model.nodes if node.op_type == "Shape"]
    assert len(reads) > _LAYERS
    behind = [name for name in reads if name not in ("ids", "e", "t", "h0")]
    assert behind
    first, second = partition(model)
    for node in model.nodes:
        if node.name in second.nodes and node.op_type == "Shape":
            assert node.input[0] != "ids"
            assert model.producer[node.input[0]].name in (*second.nodes, first.nodes[-1])


_WHOLE = {"zero": [0], "one": [1], "two": [2], "three": [3], "six": [6], "all": [-1],
          "far": [1 << 62], "places": [[0, 1, 2, 3]]}  # fmt: skip
_DIMS = "s = Shape (x) n = Slice (s, zero, one) t = Slice (s, one, two) "


def _same(text: str, *shapes: tuple[int, ...]) -> Model:
    """The canonical model of what takes x of these shapes, and computes what its source does."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    read = {name for node in proto.graph.node for name in node.input}
    for name in sorted(read & _WHOLE.keys()):
        array = np.array(_WHOLE[name], np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = from_proto(proto)
    onnx.checker.check_model(model.proto)
    for shape in shapes:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        wanted, made = (Session(p, threads=1).run({"x": x}) for p in (proto, model.proto))
        for name, value in wanted.items():
            np.testing.assert_array_equal(made[name], value)
    return model


def test_a_dimension_that_has_moved_is_not_copied() -> None:
    body = f"""{_DIMS} c = Concat <axis = 0> (n, six, t) k = Reshape (x, c)
        d = Concat <axis = 0> (t, n, six) z = Reshape (k, d) y = Relu (z)"""
    _same(f"g (float[N, S, 6] x) => (float[A, B, C] y) {{ {body} }}", (2, 5, 6), (3, 3, 6))


def test_two_unknown_dimensions_are_not_both_what_is_left() -> None:
    """Half of the one and twice the other."""
    body = f"""{_DIMS} h = Div (t, two) m = Mul (n, two) c = Concat <axis = 0> (m, h, six)
        k = Reshape (x, c) y = Relu (k)"""
    _same(f"g (float[N, S, 6] x) => (float[A, B, C] y) {{ {body} }}", (2, 4, 6), (3, 6, 6))


def test_products_of_symbols_are_no_multiple_of_one() -> None:
    body = """rows = Concat <axis = 0> (all, six) r = Reshape (x, rows) q = Shape (r)
        m = Slice (q, zero, one) c = Concat <axis = 0> (m, two, three) k = Reshape (r, c)
        y = Relu (k)"""
    _same(f"g (float[N, S, 6] x) => (float[A, B, C] y) {{ {body} }}", (2, 4, 6), (3, 5, 6))


@pytest.mark.parametrize("axis", [0, 1])
def test_what_only_the_file_says_of_an_output_is_not_believed(axis: int) -> None:
    """It is declared as long as x, but one token, or sample, is cut off."""
    where = "one" if axis else "zero"
    order = "all, t, six" if axis else "n, all, six"
    body = f"""r = Relu (x) y = Slice (r, one, far, {where}) {_DIMS}
        c = Concat <axis = 0> ({order}) p = Transpose <perm = [1, 0, 2]> (r) k = Reshape (p, c)
        v = Relu (k) z = Transpose <perm = [0, 2, 1]> (v)"""
    text = f"g (float[N, S, 6] x) => (float[N, S, 6] y, float[A, B, C] z) {{ {body} }}"
    _same(text, (2, 4, 6), (3, 3, 6))


def test_positions_cut_short_are_not_as_many_as_tokens() -> None:
    """Of four there are at most four, however many tokens are taken."""
    body = f"""{_DIMS} p = Slice (places, zero, t, one) q = Shape (p) l = Slice (q, one, two)
        c = Concat <axis = 0> (one, l) f = Cast <to = 1> (p) k = Reshape (f, c) y = Relu (k)"""
    _same(f"g (float[N, S, 6] x) => (float[A, B] y) {{ {body} }}", (2, 3, 6), (2, 4, 6), (2, 7, 6))


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller", "stretch"])
def test_sizes_of_a_resize_are_those_asked_for_only_if_it_may_stretch(policy: str) -> None:
    body = f"""s = Shape (x) n = Slice (s, zero, two) c = Concat <axis = 0> (n, six, six)
        r = Resize <mode = "nearest", keep_aspect_ratio_policy = "{policy}"> (x, , , c)
        f = Relu (r) h = Shape (f) a = Slice (h, two, three) b = Concat <axis = 0> (n, all, a)
        k = Reshape (f, b) y = Relu (k)"""
    _same(f"g (float[N, 1, 4, 8] x) => (float[A, B, C, D] y) {{ {body} }}", (2, 1, 4, 8))


def test_a_shape_is_not_read_before_its_tensor_is_made() -> None:
    """What depends on no input moves back to its reader, and is not at hand before."""
    text = """g (float[N, 1] x) => (float[A, B] y, float[N, 1] w) {
        r = RandomNormal <shape = [5, 3]> () i = NonZero (r) u = Cast <to = 1> (i) s = Shape (i)
        k = Gather (s, one) c = Concat <axis = 0> (k, one) o = Abs (x) f = Relu (o)
        m = ReduceMax <keepdims = 1> (f) e = Expand (m, c) y = Relu (e)
        v = ReduceSum <keepdims = 0> (u) w = Add (x, v) }"""
    assert {"Shape", "Cast"} <= {node.op_type for node in _same(text).nodes}


def test_ranges_of_ranges_do_not_multiply() -> None:
    steps = "".join(
        f"r{i} = Range (a{i}, a{i}, a{i}) a{i + 1} = Squeeze (r{i}) " for i in range(12)
    )
    body = f"s = Shape (x) i = Constant <value = int64 {{0}}> () a0 = Gather (s, i) {steps}"
    text = f"g (float[N, 6] x) => (int64 y, float[A, B] z) {{ {body} y = Neg (a12) z = Relu (x) }}"
    assert len(_same(text).nodes) < 60


def test_operators_of_other_domains_are_not_taken_for_those_of_onnx() -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "own": 1]>
        g (float[N, S, 6] x) => (float[N, S, 6] y)
        <float[A, B] a, float[C] b> { a = own.Gather <axis = "rows"> (x, x) b = own.Range (a)
        c = own.Slice (b) y = Relu (x) }"""
    model = from_proto(onnx.parser.parse_model(text))
    assert [node.op_type for node in model.nodes] == ["Relu"]
