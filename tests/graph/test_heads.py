"""Last layers that are cut apart become one for each part, and compute what they did."""

import tracemalloc
from itertools import pairwise
from math import prod

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.passes.editor import Editor
from onnxbrecq.graph.passes.kinds import Kinds, sources
from onnxbrecq.graph.points import find_points
from onnxbrecq.runtime.session import Session

# Convs of four inputs: four roundings of 6e-8, of terms that may be a few times their sum.
_ROUNDING = 1e-6
_FAR = 2**63 - 1
_WEIGHTS = {
    "w": (21, 4, 1, 1), "v": (21, 4, 1, 1), "w2": (22, 2, 1, 1), "many": (17, 4, 1, 1),
    "b": (21,), "gfl": (20, 4, 1, 1), "mean": (1, 4, 1, 1), "deep": (2, 4, 1, 1, 1),
}  # fmt: skip
_NUMBERS = {
    "zero": [0], "one": [1], "two": [2], "four": [4], "five": [5], "six": [6], "seven": [7],
    "last": [-1], "minus3": [-3], "minus8": [-8], "third": [3], "far": [_FAR],
    "three": 3, "at0": 0, "at2": 2, "at4": 4, "some": [5, 6],
    # of Split
    "sizes": [2, 2, 3], "ends": [14, 7], "rows": [1, 2], "halves": [31, 32], "parts": [16, 4],
    "even": [11, 11], "ones": [1] * 17,
    # of Reshape
    "anchors": [0, 3, 7, 3, 3], "inside": [0, 7, 3, 3, 3], "flat": [0, -1, 7],
    "tail": [0, 3, 3, 3, 7], "mixed": [0, -1, 63], "sides": [0, 4, 4, -1], "boxes": [0, 4, 9],
    # of Slice, of five axes
    "axes": list(range(5)), "all": [0] * 5, "most": [_FAR] * 5, "most4": [_FAR] * 4 + [4],
    "from4": [0] * 4 + [4], "corner": [_FAR, _FAR, 1, 1, 4],
}  # fmt: skip
_HEAD = "h = Conv (x, w, b) r = Reshape (h, anchors) t = Transpose <perm = [0, 1, 3, 4, 2]> (r)"
_JOIN = "y = Concat <axis = -1> (p, q, s)"


def _proto(body: str, size: str = "3", outputs: str = "float y") -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    proto = onnx.parser.parse_model(
        f"{head} net (float[N, 4, {size}, {size}] x) => ({outputs}) {{ {body} }}"
    )
    branches = [item.g for n in proto.graph.node for item in n.attribute if item.HasField("g")]
    for output in (value for graph in (proto.graph, *branches) for value in graph.output):
        output.type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, shape in _WEIGHTS.items():
        array = random.normal(size=shape).astype(np.float32)
        if name in read:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for name in read & _NUMBERS.keys():
        array = np.array(_NUMBERS[name], np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    corners = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])
    proto.graph.initializer.append(numpy_helper.from_array(corners.astype(np.float32), "corners"))
    return proto


def _canonical(proto: onnx.ModelProto) -> Model:
    """The canonical model, which computes what its source does, and is canonical itself."""
    model = from_proto(proto)
    x = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype(np.float32)
    source = Session(proto, threads=1).run({"x": x})
    made = Session(model.proto, threads=1).run({"x": x})
    assert list(made) == list(source)
    for name, value in source.items():
        atol = _ROUNDING * float(np.abs(value).max())
        np.testing.assert_allclose(made[name], value, atol=atol, rtol=0, err_msg=name)
    twice = from_proto(model.proto)
    assert [n.op_type for n in twice.nodes] == [n.op_type for n in model.nodes]
    return model


def _channels(model: Model) -> list[int]:
    """Output channels of the Convs, in order."""
    return [
        len(model.initializers[node.input[1]]) for node in model.nodes if node.op_type == "Conv"
    ]


_SLICES = """p = Slice (t, zero, two, last) q = Slice (t, two, four, last)
    s = Slice (t, four, far, last) """
_FOUND = {
    "directly": ("h = Conv (x, w, b) p, q = Split <axis = 1> (h, ends) z = Sigmoid (p) "
                 "y = Concat <axis = 1> (q, z)", [14, 7]),
    "strided": ("h = Conv <strides = [2, 2]> (x, w) p, q = Split <axis = 1> (h, ends) "
                "y = Concat <axis = 1> (q, p)", [14, 7]),
    "split": (f"{_HEAD} p, q, s = Split <axis = 4> (t, sizes) {_JOIN}", [6, 6, 9]),
    "sigmoid": (f"{_HEAD} g = Sigmoid (t) p, q, s = Split <axis = -1> (g, sizes) {_JOIN}",
                [6, 6, 9]),
    "slices": (f"{_HEAD} {_SLICES} {_JOIN}", [6, 6, 9]),
    "read-in-between": (f"{_HEAD} p = Slice (t, zero, two, last) z = Exp (p) "
                        f"q = Slice (t, two, four, last) k = Mul (z, q) "
                        f"s = Slice (t, four, far, last) {_JOIN.replace('p,', 'k,')}", [6, 6, 9]),
    "read-twice": (f"{_HEAD} {_SLICES} e = Exp (p) f = Mul (e, p) {_JOIN.replace('p,', 'f, p,')}",
                   [6, 6, 9]),
    "negative": (f"{_HEAD} p = Slice (t, minus8, four, last) q = Slice (t, minus3, seven, last) "
                 "y = Concat <axis = -1> (p, q)", [12, 9]),
    "steps": (f"{_HEAD} p = Slice (t, zero, far, last, two) q = Slice (t, one, far, last, two) "
              "y = Concat <axis = -1> (p, q)", [12, 9]),
    "backwards": (f"{_HEAD} p = Slice (t, five, one, last, last) q = Slice (t, six, far, last) "
                  "y = Concat <axis = -1> (p, q)", [12, 3]),
    "every-axis": (f"{_HEAD} p = Slice (t, all, most4, axes) q = Slice (t, from4, most, axes) "
                   "y = Concat <axis = -1> (q, p)", [12, 9]),
    "not-all": (f"{_HEAD} p = Slice (t, zero, two, last) q = Slice (t, four, five, last) "
                "y = Concat <axis = -1> (q, p)", [6, 3]),
    "picked": (f"{_HEAD} p = Slice (t, zero, four, last) k = Gather <axis = -1> (t, at4) "
               "s = Gather <axis = 4> (t, some) q = Unsqueeze (k, last) " + _JOIN, [12, 3, 6]),
    "anchors-inside": ("h = Conv (x, w, b) r = Reshape (h, inside) "
                       "p, q, s = Split <axis = 1> (r, sizes) "
                       + _JOIN.replace("-1", "1"), [6, 6, 9]),
    "channels-last": ("h = Conv (x, w, b) t = Transpose <perm = [0, 2, 3, 1]> (h) "
                      "r = Reshape (t, tail) p, q, s = Split <axis = 4> (r, sizes) " + _JOIN,
                      [6, 6, 9]),
    "twice-reshaped": (f"{_HEAD} f = Reshape (t, flat) p, q, s = Split <axis = 2> (f, sizes) "
                       + _JOIN, [6, 6, 9]),
    "levels": (f"{_HEAD} f = Reshape (t, flat) k = Conv (x, v) l = Transpose <perm = [0, 2, 3, 1]> "
               "(k) m = Reshape (l, flat) j = Concat <axis = 1> (f, m) "
               "p, q, s = Split <axis = 2> (j, sizes) " + _JOIN, [6, 6, 9] * 2),
    "distribution": ("h = Conv (x, gfl) d, c = Split <axis = 1> (h, parts) r = Reshape (d, sides) "
                     "t = Transpose <perm = [0, 2, 1, 3]> (r) e = Softmax <axis = 1> (t) "
                     "m = Conv (e, mean) p = Reshape (m, boxes) q = Reshape (c, boxes) "
                     "y = Concat <axis = 1> (p, q)", [16, 4, 1]),
    "corners": (f"{_HEAD} f = Slice (t, zero, four, last) p = MatMul (f, corners) "
                "q = Slice (t, four, far, last) y = Concat <axis = -1> (p, q)", [12, 9]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "channels"), _FOUND.values(), ids=_FOUND)
def test_a_last_convolution_that_is_cut_apart_becomes_one_for_each_part(
    body: str, channels: list[int]
) -> None:
    model = _canonical(_proto(body))
    assert sorted(_channels(model)) == sorted(channels)
    assert not {"Split", "Slice", "Gather"} & {node.op_type for node in model.nodes}
    assert model.batch is None


def test_parts_that_are_outputs_keep_their_names() -> None:
    body = f"{_HEAD} g = Sigmoid (t) p, q, s = Split <axis = 4> (g, sizes)"
    model = _canonical(_proto(body, outputs="float p, float q, float s"))
    assert sorted(_channels(model)) == [6, 6, 9]


_TURNED = """s = Slice (t, four, far, last) q = Slice (t, two, four, last)
    p = Slice (t, zero, two, last) """


@pytest.mark.parametrize("cut", ["p, q, s = Split <axis = 4> (t, sizes)", _SLICES, _TURNED])
def test_a_whole_that_is_an_output_is_joined_again(cut: str) -> None:
    """Raw predictions beside decoded ones, as YOLOv5 exported them up to 6.0."""
    body = f"{_HEAD} g = Sigmoid (t) {cut.replace('(t', '(g')} {_JOIN}"
    model = _canonical(_proto(body, outputs="float y, float t, float g"))
    assert sorted(_channels(model)) == [6, 6, 9]
    points = find_points(model).points
    assert not {"t", "g", "y"} & points.keys()


@pytest.mark.parametrize(
    ("cut", "outputs"),
    [
        (f"{_SLICES} {_JOIN}", "float y, float h"),
        ("p = Slice (t, zero, two, last) q = Slice (t, four, far, last) y = Add (p, p)",
         "float y, float q, float t"),
        ("p = Slice (t, zero, far, last, two) q = Slice (t, one, far, last, two) y = Relu (p)",
         "float y, float q, float t"),
    ],
    ids=["anchor-by-anchor", "not-all", "interleaved"],
)  # fmt: skip
def test_a_whole_that_is_not_its_parts_side_by_side_stays(cut: str, outputs: str) -> None:
    assert _channels(_canonical(_proto(f"{_HEAD} {cut}", outputs=outputs))) == [21]


_DIMENSION = "d{0} = Shape (h) g{0} = Gather (d{0}, at{0}) u{0} = Unsqueeze (g{0}, zero) "
_COMPUTED = (
    "h = Conv (x, w, b) " + "".join(_DIMENSION.format(i) for i in (0, 2, 4)).replace("at4", "three")
    + "to = Concat <axis = 0> (u0, third, seven, u2, u4) r = Reshape (h, to) "
    f"t = Transpose <perm = [0, 1, 3, 4, 2]> (r) p, q, s = Split <axis = 4> (t, sizes) {_JOIN}"
)  # fmt: skip


@pytest.mark.parametrize("size", ["3", "H"])
def test_shapes_may_be_computed(size: str) -> None:
    """Batch, or batch and size of the picture, are free."""
    model = _canonical(_proto(_COMPUTED, size))
    assert sorted(_channels(model)) == [6, 6, 9]
    assert ("Shape" in {node.op_type for node in model.nodes}) == (size == "H")


_KEPT = {
    "a-layer-follows": f"{_HEAD} p, q, s = Split <axis = 4> (t, sizes) k = Concat <axis = 4> "
    "(q, p) m = Transpose <perm = [0, 4, 1, 2, 3]> (k) z = Conv (m, deep) y = Relu (z)",
    "read-whole": f"{_HEAD} p, q, s = Split <axis = 4> (t, sizes) z = Concat <axis = -1> (s, q, p) "
    "y = Add (z, t)",
    "read-on-the-way": f"{_HEAD} g = Sigmoid (t) p, q, s = Split <axis = 4> (g, sizes) "
    "z = Concat <axis = -1> (s, q, p) y = Add (z, t)",
    "overlapping": f"{_HEAD} p = Slice (t, zero, five, last) q = Slice (t, four, far, last) "
    "y = Concat <axis = -1> (p, q)",
    "rows": "h = Conv (x, w, b) p, q = Split <axis = 2> (h, rows) y = Concat <axis = 2> (q, p)",
    "pixels-too": f"{_HEAD} p = Slice (t, all, corner, axes) q = Slice (t, from4, most, axes) "
    "k = Slice (q, zero, one, two) l = Slice (k, zero, one, third) "
    "y = Concat <axis = 4> (p, l)",
    "grouped": "h = Conv <group = 2> (x, w2) p, q = Split <axis = 1> (h, even) "
    "y = Concat <axis = 1> (q, p)",
    "pixels-and-channels": "h = Conv (x, w, b) r = Reshape (h, mixed) "
    "p, q = Split <axis = 2> (r, halves) y = Concat <axis = 2> (q, p)",
    "computed-bounds": f"{_HEAD} n = Shape (x) m = Gather (n, zero) p = Slice (t, m, five, last) "
    "q = Slice (t, five, far, last) y = Concat <axis = -1> (p, q)",
    "channels-counted": "h = Conv (x, w, b) n = Shape (h) p, q = Split <axis = 1> (h, ends) "
    "k = Concat <axis = 1> (q, p) m = Slice (n, one, far) y = Expand (k, n)",
    "no-convolution": f"{_HEAD} k = Conv (x, v) l = Softmax <axis = 1> (k) "
    "m = Reshape (l, anchors) n = Transpose <perm = [0, 1, 3, 4, 2]> (m) "
    "j = Concat <axis = 1> (t, n) p, q, s = Split <axis = 4> (j, sizes) " + _JOIN,
    "joined-with-itself": f"{_HEAD} k = Concat <axis = 1> (t, t) "
    f"p, q, s = Split <axis = 4> (k, sizes) {_JOIN}",
    "too-many": "h = Conv (x, many) a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, "
    "a14, a15, a16 = Split <axis = 1> (h, ones) y = Concat <axis = 1> (a1, a0)",
    "bounds-without-an-axis": f"{_HEAD} p = Slice (t, at0, at4, at4) "
    "q = Slice (t, four, far, last) y = Concat <axis = -1> (q, p)",
    "lengths-unknown": "m = ReduceMax <keepdims = 0> (x) i = Cast <to = 7> (m) o = Mul (i, zero) "
    "k = Add (o, seven) n = Add (o, third) a = Concat <axis = 0> (zero, third, k, n, third) "
    "h = Conv (x, w, b) "
    "r = Reshape (h, anchors) g = Conv (x, w, b) l = Reshape (g, a) t = Concat <axis = 3> (r, l) "
    "u = Sigmoid (t) p, q, s = Split <axis = 2> (u, sizes) y = Concat <axis = 2> (s, q, p)",
    "captured": f"{_HEAD} p, q, s = Split <axis = 4> (t, sizes) k = ReduceMax <keepdims = 0> (x) "
    "c = Cast <to = 9> (k) z = If (c) <then_branch = one () => (float a) { a = Exp (t) }, "
    "else_branch = other () => (float e) { e = Relu (t) }> y = Concat <axis = -1> (z, p, q, s)",
}


@pytest.mark.parametrize("body", _KEPT.values(), ids=_KEPT)
def test_a_convolution_that_is_needed_whole_stays(body: str) -> None:
    model = _canonical(_proto(body))
    assert {"Split", "Slice"} & {node.op_type for node in model.nodes}


def test_one_sample_or_many() -> None:
    """Exported for one sample, all dimensions constants."""
    proto = _proto(f"{_HEAD} p, q, s = Split <axis = 4> (t, sizes) {_JOIN}")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    shape = next(tensor for tensor in proto.graph.initializer if tensor.name == "anchors")
    shape.CopyFrom(numpy_helper.from_array(np.array([1, 3, 7, 3, 3]), "anchors"))
    model = from_proto(proto)
    assert sorted(_channels(model)) == [6, 6, 9]
    assert model.batched
    x = np.random.default_rng(1).normal(size=(2, 4, 3, 3)).astype(np.float32)
    alone = [Session(proto, threads=1).run({"x": part[None]})["y"] for part in x]
    made = Session(model.proto, threads=1).run({"x": x})["y"]
    atol = _ROUNDING * float(np.abs(made).max())
    np.testing.assert_allclose(made, np.concatenate(alone), atol=atol, rtol=0)


def test_parts_of_a_head_that_levels_share_are_one_decision_each() -> None:
    heads = "".join(
        f"h{i} = Conv ({x}, w, b) p{i}, q{i} = Split <axis = 1> (h{i}, ends) "
        f"y{i} = Concat <axis = 1> (q{i}, p{i}) "
        for i, x in enumerate(("x", "k"))
    )
    model = _canonical(
        _proto(f"k = MaxPool <kernel_shape = [2, 2]> (x) {heads}", outputs="float y0, float y1")
    )
    assert _channels(model) == [14, 7, 14, 7]
    points = find_points(model)
    weights = [points.points[layer.weight] for layer in points.layers.values()]
    assert [weight.group for weight in weights[2:]] == [weight.tensor for weight in weights[:2]]
    assert len({weight.group for weight in weights}) == 2
    made = [node.output[0] for node in model.nodes if node.op_type == "Conv"]
    assert len({points.points[name].group for name in made}) == len(made)


@settings(max_examples=50)
@given(st.data())
def test_kinds_in_front_of_a_reshape_are_found_wherever_one_axis_has_them(
    data: st.DataObject,
) -> None:
    factors = data.draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=2, max_size=5))
    before, after = (data.draw(_grouped(factors)) for _ in range(2))
    places = [
        Kinds(axis, count, inner) for axis, size in enumerate(after)
        for count in range(2, size + 1) for inner in range(1, size + 1)
        if size % (count * inner) == 0
    ]  # fmt: skip
    assume(places)
    kinds = data.draw(st.sampled_from(places))
    found = sources(_reshaping(before, after), _RESHAPE, kinds)
    wanted = _labels(after, kinds).reshape(before)
    if found is not None:
        np.testing.assert_array_equal(_labels(before, found[0][1]), wanted)
        return
    for axis, size in enumerate(before):
        for inner in range(1, size + 1):
            at = Kinds(axis, kinds.count, inner)
            assert not np.array_equal(_labels(before, at), wanted)


_RESHAPE = onnx.helper.make_node("Reshape", ["x", "to"], ["y"])


def _reshaping(before: list[int], after: list[int]) -> Editor:
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [_RESHAPE], "reshape", [onnx.helper.make_tensor_value_info("x", kind, before)],
        [onnx.helper.make_tensor_value_info("y", kind, after)],
        [numpy_helper.from_array(np.array(after), "to")],
    )  # fmt: skip
    return Editor(onnx.helper.make_model(graph), {})


def _grouped(factors: list[int]) -> st.SearchStrategy[list[int]]:
    """Dimensions: products of neighbouring factors."""
    ends = st.sets(st.integers(1, len(factors) - 1))
    return ends.map(lambda found: _products(factors, [0, *sorted(found), len(factors)]))


def _products(factors: list[int], ends: list[int]) -> list[int]:
    return [prod(factors[start:stop]) for start, stop in pairwise(ends)]


def _labels(dims: list[int], at: Kinds) -> NDArray[np.int64]:
    """The kind of each value."""
    along = np.arange(dims[at.axis]) // at.inner % at.count
    shape = [-1 if axis == at.axis else 1 for axis in range(len(dims))]
    return np.asarray(np.broadcast_to(along.reshape(shape), dims))


@pytest.mark.parametrize(
    "cut",
    [
        "c = Slice (p, one, two, axis)",
        "c = Gather <axis = 2> (p, one)",
        "c, r = Split <axis = 2, num_outputs = 2> (p)",
    ],
)
def test_an_axis_of_any_length_takes_no_memory(cut: str) -> None:
    """Its positions are not listed: 134 million are a gigabyte."""
    text = f"""
    <ir_version: 8, opset_import: ["" : 18]>
    net (float[N, 4, 8] x) => (float[N, 4, M] y) {{
        a = Conv (x, w)
        p = Pad (a, pads)
        {cut}
        y = Relu (c)
    }}"""
    proto = onnx.parser.parse_model(text)
    for name, value in {
        "w": np.ones((4, 4, 1), np.float32),
        "pads": np.array([0, 0, 0, 0, 0, 2**27], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([3], np.int64),
        "axis": np.array([2], np.int64),
    }.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    tracemalloc.start()
    from_proto(proto)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24
