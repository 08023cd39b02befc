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
