"""Blocks of every family of networks: each node in one block, in order, of a bounded size."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxbrecq.graph import blocks as blocks_of_graph
from onnxbrecq.graph.blocks import REGION_LAYERS, Block, partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.runtime.kernels import executed
from onnxbrecq.runtime.session import Session

_ROUNDING = 1e-5  # blocks run as models of their own: other fusions, the same float operations


class Net:
    """Builds a network of random weights, node by node."""

    def __init__(self, *shape: int | str | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shape = shape
        self.random = np.random.default_rng(0)

    def constant(self, *shape: int) -> str:
        array = self.random.normal(0, 1 / np.sqrt(np.prod(shape[1:]) or 1), shape)
        return self.fixed(array.astype(np.float32))

    def fixed(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], f"n{name}", **attributes))
        return name

    def conv(self, x: str, before: int, after: int, size: int = 1, groups: int = 1) -> str:
        weight = self.constant(after, before // groups, size, size)
        pads = [size // 2] * 4
        return self.op("Conv", x, weight, self.constant(after), group=groups, pads=pads)

    def relu(self, *arguments: object) -> str:
        return self.op("Relu", self.conv(*arguments))  # type: ignore[arg-type]

    def linear(self, x: str, before: int, after: int) -> str:
        return self.op(
            "Add", self.op("MatMul", x, self.constant(before, after)), self.constant(after)
        )

    def normal(self, x: str, width: int) -> str:
        return self.op("LayerNormalization", x, self.constant(width), self.constant(width), axis=-1)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.fixed(np.asarray(shape, np.int64)))

    def model(self, *outputs: str, mask: tuple[object, ...] | None = None) -> Model:
        takes = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", *self.shape])]
        if mask is not None:
            takes.append(helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, mask))
        gives = [helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None) for y in outputs]
        graph = helper.make_graph(self.nodes, "net", takes, gives, self.constants)
        return from_proto(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        )


def _residual(net: Net, x: str) -> str:
    return net.op("Relu", net.op("Add", x, net.conv(net.relu(x, 8, 8, 3), 8, 8, 3)))


def _bottleneck(net: Net, x: str) -> str:
    y = net.conv(net.relu(net.relu(x, 8, 4), 4, 4, 3), 4, 8)
    return net.op("Relu", net.op("Add", y, x))


def _inverted(net: Net, x: str) -> str:
    return net.op("Add", x, net.conv(net.relu(net.relu(x, 8, 16), 16, 16, 3, 16), 16, 8))


def _inverted_without_skip(net: Net, x: str) -> str:
    return net.conv(net.relu(net.relu(x, 8, 16), 16, 16, 3, 16), 16, 8)


def _squeeze_excite(net: Net, x: str) -> str:
    y = net.relu(x, 8, 16)
    gate = net.relu(net.op("GlobalAveragePool", y), 16, 4)
    gated = net.op("Mul", y, net.op("Sigmoid", net.conv(gate, 4, 16)))
    return net.op("Add", x, net.conv(gated, 16, 8))


def _fire(net: Net, x: str) -> str:
    y = net.relu(x, 8, 4)
    return net.op("Concat", net.relu(y, 4, 4), net.relu(y, 4, 4, 3), axis=1)


def _inception(net: Net, x: str) -> str:
    pooled = net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    branches = [net.relu(x, 8, 2), net.relu(net.relu(x, 8, 4), 4, 2, 3), net.relu(pooled, 8, 4)]
    return net.op("Concat", *branches, axis=1)


def _shuffle(net: Net, x: str) -> str:
    half = net.fixed(np.asarray([4, 4], np.int64))
    net.nodes.append(helper.make_node("Split", [x, half], [f"{x}a", f"{x}b"], f"{x}s", axis=1))
    y = net.op("Concat", f"{x}a", net.relu(net.conv(f"{x}b", 4, 4, 3, 4), 4, 4), axis=1)
    y = net.op("Transpose", net.reshape(y, 0, 2, 4, 6, 6), perm=[0, 2, 1, 3, 4])
    return net.reshape(y, 0, 8, 6, 6)


def _conv_next(net: Net, x: str) -> str:
    y = net.op("Transpose", net.conv(x, 8, 8, 7, 8), perm=[0, 2, 3, 1])
    y = net.linear(net.op("Gelu", net.linear(net.normal(y, 8), 8, 16)), 16, 8)
    return net.op("Add", x, net.op("Transpose", y, perm=[0, 3, 1, 2]))


def _attention(net: Net, x: str, windows: int = 1) -> str:
    """Over 16 tokens of width 8; in windows, which a reshape puts beside the batch."""
    y = net.normal(x, 8)
    y = net.reshape(y, -1, 16 // windows, 8) if windows > 1 else y
    q, k, v = (net.linear(y, 8, 8) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    y = net.linear(net.op("MatMul", net.op("Softmax", scores, axis=-1), v), 8, 8)
    return net.op("Add", x, net.reshape(y, -1, 16, 8) if windows > 1 else y)


def _swin(net: Net, x: str) -> str:
    return _attention(net, x, windows=4)


def _mlp(net: Net, x: str) -> str:
    return net.op("Add", x, net.linear(net.op("Gelu", net.linear(net.normal(x, 8), 8, 16)), 16, 8))


_IMAGE, _TOKENS = (8, 6, 6), (16, 8)
_FAMILIES: dict[str, tuple[Callable[[Net, str], str], tuple[int, ...], int]] = {
    "residual": (_residual, _IMAGE, 2),
    "bottleneck": (_bottleneck, _IMAGE, 3),
    "inverted": (_inverted, _IMAGE, 3),
    "inverted-without-skip": (_inverted_without_skip, _IMAGE, 3),
    "squeeze-excite": (_squeeze_excite, _IMAGE, 4),
    "inception": (_inception, _IMAGE, 4),
    "shuffle": (_shuffle, _IMAGE, 2),
    "conv-next": (_conv_next, _IMAGE, 3),
    "attention": (_attention, _TOKENS, 4),
    "swin": (_swin, _TOKENS, 4),
    "mlp": (_mlp, _TOKENS, 2),
}


def _checked(model: Model) -> tuple[Block, ...]:
    """The blocks, which make up the model: by their nodes, and by what they compute."""
    blocks = partition(model)
    assert blocks == partition(model)
    assert [name for block in blocks for name in block.nodes] == [n.name for n in model.nodes]
    assert all(len(block.weights) <= REGION_LAYERS for block in blocks)
    limit = blocks_of_graph.BLOCK_WEIGHTS
    assert all(len(b.weights) == 1 or _weights(model, b) <= limit for b in blocks)
    random = np.random.default_rng(1)
    sizes = {n: [8 if d is None else d for d in model.shapes[n]] for n in model.inputs}
    values = {n: random.integers(0, 2, size=size) for n, size in sizes.items()}
    values["x"] = random.normal(size=sizes["x"]).astype(np.float32)
    inputs = dict(values)
    for block in blocks:
        feed = {name: values[name] for name in block.inputs}
        values |= Session(extract(model, block).proto, threads=1).run(feed)
    for name, expected in Session(model.proto, threads=1).run(inputs).items():
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(values[name], expected, atol=_ROUNDING * scale, rtol=0)
    return blocks


@pytest.mark.parametrize(("unit", "shape", "layers"), _FAMILIES.values(), ids=_FAMILIES)
def test_each_unit_is_a_block(
    unit: Callable[[Net, str], str], shape: tuple[int, ...], layers: int
) -> None:
    net, x = Net(*shape), "x"
    for _ in range(3):
        x = unit(net, x)
    blocks = _checked(net.model(x))
    assert sum(len(block.weights) for block in blocks) == 3 * layers
    assert max(len(block.weights) for block in blocks) == layers
    assert len([block for block in blocks if len(block.weights) == layers]) == 3


def test_a_fire_module_is_its_squeeze_and_its_expansion() -> None:
    net, x = Net(8, 6, 6), "x"
    for _ in range(2):
        x = _fire(net, x)
    assert [len(block.weights) for block in _checked(net.model(x))] == [1, 2, 1, 2]


def test_a_dense_block_is_split() -> None:
    net, features = Net(8, 6, 6), ["x"]
    for _ in range(2 * REGION_LAYERS):
        x = net.op("Concat", *features, axis=1)
        features.append(net.relu(x, 4 + 4 * len(features), 4, 3))
    x = net.op("Concat", *features, axis=1)
    assert 2 <= len(_checked(net.model(x))) <= 4


def test_a_plain_chain_is_grouped_by_layers_and_by_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net(8, 6, 6), "x"
    for _ in range(7):
        x = net.relu(x, 8, 8, 3)
    model = net.model(x)
    assert [len(block.weights) for block in _checked(model)] == [3, 3, 1]
    monkeypatch.setattr("onnxbrecq.graph.blocks.BLOCK_WEIGHTS", 1000)  # 576 each
    assert [len(block.weights) for block in _checked(model)] == [1] * 7


def test_a_pyramid_with_heads_has_blocks_of_several_outputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxbrecq.graph.blocks.REGION_LAYERS", 2)
    net = Net(8, 8, 8)
    a = net.relu("x", 8, 8, 3)
    b = net.op("MaxPool", net.relu(a, 8, 8, 3), kernel_shape=[2, 2], strides=[2, 2])
    scales = net.fixed(np.asarray([1, 1, 2, 2], np.float32))
    up = net.op("Resize", net.conv(b, 8, 8), "", scales, mode="nearest")
    fine = net.op("Add", net.conv(a, 8, 8), up)
    heads = [net.op("GlobalAveragePool", net.relu(y, 8, 4, 3)) for y in (fine, b)]
    blocks = _checked(net.model(net.op("Concat", *heads, axis=1)))
    assert max(len(block.outputs) for block in blocks) == 2
    assert max(len(block.weights) for block in blocks) <= 2


def test_resizing_to_a_computed_size_keeps_the_batch() -> None:
    """As PyTorch writes interpolate(size=...): the first two dimensions are a Slice of a Shape."""
    net, x = Net(8, None, None), "x"
    for _ in range(2):
        x = _residual(net, x)
        head = net.op("Slice", net.op("Shape", x), *(net.fixed(np.asarray([n])) for n in (0, 2, 0)))
        size = net.op("Concat", head, net.fixed(np.asarray([12, 12])), axis=0)
        x = net.op("Resize", x, "", "", size, mode="nearest")
    assert [len(block.weights) for block in _checked(net.model(_residual(net, x)))] == [2, 2, 2]


def test_a_weight_that_is_computed_does_not_join_the_blocks() -> None:
    """Too large to be folded, and made at the beginning."""
    net, x = Net(8, 6, 6), "x"
    shape = net.fixed(np.asarray([2048, 2049], np.int64))
    large = net.op("ConstantOfShape", shape)
    for _ in range(3):
        x = _residual(net, x)
    flat = net.op("ReduceMax", large, net.fixed(np.asarray([0, 1])), keepdims=0)
    assert len(_checked(net.model(net.op("Add", x, flat)))) == 3


def test_a_batch_size_read_first_and_used_everywhere_does_not_join_the_blocks() -> None:
    net, x = Net(8, 6, 6), "x"
    size = net.op("Shape", "x", start=0, end=1)
    rest = net.fixed(np.asarray([8, 6, 6], np.int64))
    for _ in range(3):
        shape = net.op("Concat", size, rest, axis=0)
        x = _residual(net, net.op("Add", x, net.op("Expand", net.constant(1, 8, 1, 1), shape)))
    blocks = _checked(net.model(x))
    assert [len(block.weights) for block in blocks] == [2, 2, 2]
    assert [len(block.inputs) for block in blocks] == [1, 1, 1]


def _masked_attention(net: Net, x: str, scores: str, mask: str) -> str:
    """Over tokens of width 8, what `mask` holds is left out, as `scores` (an operator) does it."""
    q, k, v = (net.linear(x, 8, 8) for _ in range(3))
    y = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    if scores == "Where":
        y = net.op("Where", mask, net.fixed(np.asarray(-1e4, np.float32)), y)
    else:
        y = net.op("Add", y, mask)
    y = net.linear(net.op("MatMul", net.op("Softmax", y, axis=-1), v), 8, 8)
    return net.normal(net.op("Add", x, y), 8)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_that_all_layers_read_does_not_join_the_blocks(kind: str) -> None:
    net, x = Net(16, 8), "x"
    ahead = net.op("Unsqueeze", "mask", net.fixed(np.asarray([1])))
    if kind == "bool":
        mask = net.op("Not", net.op("Cast", ahead, to=onnx.TensorProto.BOOL))
    else:
        off = net.op("Cast", ahead, to=onnx.TensorProto.FLOAT)
        mask = net.op("Mul", off, net.fixed(np.asarray(-1e4, np.float32)))
    x = net.linear(x, 8, 8)
    for _ in range(3):
        x = _masked_attention(net, x, "Where" if kind == "bool" else "Add", mask)
    model = net.model(x, mask=("B", 16))
    blocks = _checked(model)
    assert [len(block.weights) for block in blocks] == [1, 4, 4, 4]
    assert [set(block.inputs[1:]) for block in blocks[1:]] == [{"mask"}] * 3
    assert [node.op_type for node in model.nodes].count("Cast") == 3
    assert [node.op for node in executed(model.proto)].count("Cast") == 1  # of the whole model


@pytest.mark.parametrize("leading", [(0,), ()], ids=["1-S-D", "S-D"])
def test_angles_of_positions_do_not_join_the_blocks(leading: tuple[int, ...]) -> None:
    """Rotary embeddings: sines of the number of tokens, which is known only when the model runs."""
    net = Net(None, 8)
    count = net.op("Gather", net.op("Shape", "x"), net.fixed(np.asarray(1)))
    zero, one = net.fixed(np.asarray(0)), net.fixed(np.asarray(1))
    places = net.op("Cast", net.op("Range", zero, count, one), to=onnx.TensorProto.FLOAT)
    places = net.op("Unsqueeze", places, net.fixed(np.asarray([*leading, len(leading) + 1])))
    angles = net.op("Mul", places, net.constant(8))
    sine, cosine = net.op("Sin", angles), net.op("Cos", angles)
    x = net.linear("x", 8, 8)
    for _ in range(3):
        turned = net.op("Add", net.op("Mul", x, cosine), net.op("Mul", x, sine))
        x = net.op("Add", x, net.linear(net.op("Relu", net.linear(turned, 8, 16)), 16, 8))
    assert [len(block.weights) for block in _checked(net.model(x))] == [1, 2, 2, 2]


def test_a_class_token_does_not_join_the_blocks() -> None:
    """Expanded as PyTorch writes it: the batch stands behind a Where and a Concat."""
    net = Net(5, 8)
    batch = net.op("Gather", net.op("Shape", "x"), net.fixed(np.asarray([0])), axis=0)
    wanted = net.op("Concat", batch, net.fixed(np.asarray([-1, -1])), axis=0)
    kept = net.op("Equal", wanted, net.fixed(np.asarray([-1, -1, -1])))
    shape = net.op("Where", kept, net.fixed(np.asarray([1, 1, 1])), wanted)
    x = net.op("Concat", net.op("Expand", net.constant(1, 1, 8), shape), "x", axis=1)
    x = net.linear(x, 8, 8)
    for _ in range(3):
        x = net.op("Add", x, net.linear(net.op("Relu", net.linear(x, 8, 16)), 16, 8))
    assert [len(block.weights) for block in _checked(net.model(x))] == [1, 2, 2, 2]


@pytest.mark.parametrize("tokens", [None, "N"], ids=["nameless", "N"])
def test_tokens_before_samples_are_no_border_between_blocks(tokens: str | None) -> None:
    """Caching them sample by sample would take tokens for samples, whatever they are called."""
    net = Net(tokens, 8)
    x = net.op("Transpose", net.linear("x", 8, 8), perm=[1, 0, 2])
    for _ in range(5):
        x = net.op("Relu", net.linear(x, 8, 8))
    blocks = _checked(net.model(net.op("Transpose", x, perm=[1, 0, 2])))
    assert [len(block.weights) for block in blocks] == [1, 5]


def test_an_output_from_the_middle_does_not_join_the_blocks() -> None:
    net, x, outputs = Net(8, 6, 6), "x", []
    for _ in range(3):
        x = _residual(net, x)
        outputs.append(net.op("GlobalAveragePool", x))
    assert [len(block.weights) for block in _checked(net.model(*outputs))] == [2, 2, 2]


def test_a_large_region_with_branches_is_split_by_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six layers of 576 weights between a tensor and its sum with what they make of it."""
    net, x = Net(8, 6, 6), "x"
    for _ in range(6):
        x = net.relu(x, 8, 8, 3)
    model = net.model(net.op("Add", "x", x))
    assert [len(block.weights) for block in _checked(model)] == [6]
    monkeypatch.setattr("onnxbrecq.graph.blocks.BLOCK_WEIGHTS", 1200)
    assert [len(block.weights) for block in _checked(model)] == [1, 2, 1, 2]
    monkeypatch.setattr("onnxbrecq.graph.blocks.BLOCK_WEIGHTS", 500)
    assert [len(block.weights) for block in _checked(model)] == [1] * 6


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_network_falls_into_blocks_of_bounded_size(data: st.DataObject) -> None:
    """Convolutions and sums of anything made before, in any order, with any of it as outputs."""
    net, made = Net(4, 5, 5), ["x"]
    for _ in range(data.draw(st.integers(2, 30))):
        a, b = (data.draw(st.sampled_from(made[-6:])) for _ in range(2))
        kind = data.draw(st.sampled_from(("Conv", "Conv", "Add", "Relu", "Scale")))
        if kind == "Conv":
            made.append(net.conv(a, 4, 4, 3))
        elif kind == "Scale":
            made.append(net.op("Mul", a, net.op("GlobalAveragePool", b)))
        else:
            made.append(net.op(kind, *((a, b) if kind == "Add" else (a,))))
    wanted = data.draw(st.sets(st.sampled_from(made[1:]), max_size=2))
    model = net.model(*sorted({*wanted, made[-1]}))
    _checked(model)
    assert partition(from_proto(model.proto)) == partition(model)


def _weights(model: Model, block: Block) -> int:
    return sum(model.initializers[name].size for name in block.weights)


@pytest.mark.parametrize("selection", ["NonMaxSuppression", "TopK", "ArgMax"])
def test_layers_are_judged_by_what_they_make_and_not_by_what_is_selected(selection: str) -> None:
    model = _head(selection)
    blocks = partition(model)
    assert [len(block.weights) for block in blocks[-2:]] == [2, 0]
    tail = {model.producer[name].op_type for name in blocks[-2].outputs}
    assert tail == {"Conv"}
    assert any(node.op_type == selection for node in extract(model, blocks[-1]).nodes)


def _head(selection: str) -> Model:
    """Two layers side by side, of boxes and of scores, and what selects among them."""
    net = Net(8, 6, 6)
    first = net.relu("x", 8, 8)
    boxes, scores = net.conv(first, 8, 4), net.conv(first, 8, 3)
    flat = net.fixed(np.array([0, 0, -1]))
    scores = net.op("Sigmoid", net.op("Reshape", scores, flat))  # [N, classes, places]
    boxes = net.op("Transpose", net.op("Reshape", boxes, flat), perm=[0, 2, 1])
    if selection == "NonMaxSuppression":
        most = net.fixed(np.array([3]))
        kept = net.op("NonMaxSuppression", boxes, scores, most)
        found = net.op("GatherND", scores, kept)
        return net.model(net.op("ScatterND", scores, kept, found), boxes)
    best = net.op("ReduceMax", scores, net.fixed(np.array([1])), keepdims=0)
    if selection == "TopK":
        net.op("TopK", best, net.fixed(np.array([3])))
        net.nodes[-1].output.append("order")
        chosen = net.op("Unsqueeze", "order", net.fixed(np.array([2])))
    else:
        chosen = net.op("Unsqueeze", net.op("ArgMax", best, axis=1), net.fixed(np.array([2])))
    wide = net.op("Expand", chosen, net.fixed(np.array([1, 1, 4])))
    return net.model(net.op("GatherElements", boxes, wide, axis=1))


def test_an_operator_of_somebody_else_is_no_layer_whatever_its_name() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
        a = Conv (x, w)
        b = own.ConvTranspose (a)
        y = Relu (b)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w"))
    (block,) = partition(from_proto(proto))
    assert block.weights == ("w",)
