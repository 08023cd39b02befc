import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.bits import uniform_bits
from onnxbrecq.calibrate import activation_bits
from onnxbrecq.graph.blocks import CHAIN_LAYERS, partition
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points, find_points
from onnxbrecq.graph.weights import Layer
from onnxbrecq.recipe import Recipe


def _model(body: str, weights: dict[str, tuple[int, ...]], domains: str = "") -> Model:
    text = f"""
    <ir_version: 8, opset_import: ["" : 17{domains}]>
    graph (float[N, 4, 6, 6] x) => (y) {{
        low = Constant <value = float {{0}}> ()
        high = Constant <value = float {{6}}> ()
        twice = Constant <value = float[4] {{1, 1, 2, 2}}> ()
        {body} }}"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        array = random.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    proto = onnx.shape_inference.infer_shapes(proto)
    if not proto.graph.output[0].type.tensor_type.HasField("shape"):  # behind a custom operator
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)
        proto.graph.output[0].CopyFrom(output)
    return from_proto(proto)


_W = {f"w{i}": (4, 4, 1, 1) for i in range(9)}


def test_an_activation_function_belongs_to_the_quantizer_behind_it() -> None:
    body = "a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Clip (c, low, high) y = Conv (d, w2)"
    points = find_points(_model(body, _W)).points
    activations = {n for n, p in points.items() if p.kind == "activation"}
    assert activations == {"x", "b", "d", "y"}
    assert (points["b"].nonnegative, points["b"].ceiling) == (True, None)
    assert (points["d"].nonnegative, points["d"].ceiling) == (True, 6)


def test_a_residual_sum_is_quantized_on_both_sides() -> None:
    body = "a = Conv (x, w0) b = Conv (a, w1) c = Add (b, a) d = Relu (c) y = Conv (d, w2)"
    points = find_points(_model(body, _W))
    assert {"a", "b", "d"} <= points.points.keys()
    assert "c" not in points.points


def test_bits_asked_for_hold_for_what_layers_read() -> None:
    body = "a = Conv (x, w0) b = Conv (a, w1) c = Add (b, a) d = Conv (c, w2) y = Conv (d, w3)"
    points, recipe = find_points(_model(body, _W)), Recipe(activations=4)
    bits = activation_bits(points, recipe, uniform_bits(points, recipe))
    # x and d feed the first and the last layer, b only the sum, y nothing
    assert bits == {"x": 8, "a": 4, "b": 8, "c": 4, "d": 8, "y": 8}


def test_carriers_share_the_quantizer_of_their_input() -> None:
    body = """a = Conv (x, w0) b = MaxPool <kernel_shape = [2, 2]> (a)
    c = Transpose <perm = [0, 1, 3, 2]> (b) y = Conv (c, w1)"""
    points = find_points(_model(body, _W)).points
    assert {points[name].group for name in "abc"} == {"a"}
    assert points["a"].layers == points["c"].layers != ()


def test_a_product_of_two_activations_is_quantized_and_its_output_is_not() -> None:
    body = """a = Conv (x, w0) b = Transpose <perm = [0, 1, 3, 2]> (a) c = MatMul (a, b)
        y = Softmax (c)"""
    points = find_points(_model(body, _W))
    assert points.points.keys() == {"x", "w0", "a", "b"}
    assert not [node for node in points.float_nodes if node.op == "MatMul"]


def test_a_classifier_keeps_float_logits() -> None:
    body = "a = Conv (x, w0) b = GlobalAveragePool (a) c = Flatten (b) y = Gemm (c, v)"
    points = find_points(_model(body, {**_W, "v": (4, 3)}))
    assert "y" not in points.points
    assert {"a", "b", "c"} <= points.points.keys()


@pytest.mark.parametrize("behind", ["", "Transpose <perm = [0, 2, 3, 1]>"])
def test_a_concat_that_ends_the_graph_leaves_each_input_its_scale(behind: str) -> None:
    """Boxes and scores, side by side, have nothing to do with each other's range."""
    ends = f"c = Concat <axis = 1> (a, b) y = {behind} (c)" if behind else "y = Concat (a, b)"
    ends = ends.replace("y = Concat", "y = Concat <axis = 1>")
    found = find_points(_model(f"a = Conv (x, w0) b = Conv (x, w1) {ends}", _W))
    assert {"a", "b"} <= found.points.keys()
    assert not {"c", "y"} & found.points.keys()
    assert (found.points["a"].group, found.points["b"].group) == ("a", "b")
    assert "Concat" in {node.op for node in found.float_nodes}


_DISTANCES = {"w0": (16, 4, 1, 1), "mean": (1, 4, 1, 1), "several": (2, 4, 1, 1)}
_DISTRIBUTION = """parts = Constant <value = int64[4] {0, 4, 4, 36}> ()
    a = Conv (x, w0) b = Reshape (a, parts) c = Transpose <perm = [0, 2, 1, 3]> (b)
    d = Softmax <axis = 1> (c)"""


def test_the_mean_of_a_distribution_is_decoded_in_float() -> None:
    found = find_points(_model(f"{_DISTRIBUTION} y = Conv (d, mean)", _DISTANCES))
    assert [layer.weight for layer in found.layers.values()] == ["w0"]
    assert next(iter(found.layers.values())).edge
    assert [n.op for n in found.float_nodes if "distribution" in n.reason] == ["Conv"]


def test_a_layer_of_many_outputs_behind_a_softmax_is_quantized() -> None:
    found = find_points(_model(f"{_DISTRIBUTION} y = Conv (d, several)", _DISTANCES))
    assert len(found.layers) == 2


def test_a_weight_that_layers_share_is_one_decision() -> None:
    body = "a = Conv (x, w0) b = Conv (a, w1) c = Conv (a, w1) d = Add (b, c) y = Conv (d, w2)"
    found = find_points(_model(body, _W))
    first, second = (found.points[found.layers[name].weight] for name in ("Conv_1", "Conv_2"))
    assert first.tensor != second.tensor
    assert first.group == second.group == first.tensor
    assert first.layers == second.layers == ("Conv_1", "Conv_2")
    assert found.points["w0"].layers == (next(iter(found.layers)),)


_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])


@pytest.mark.parametrize(
    ("values", "quantized"),
    [(_CORNERS, False), (_CORNERS + 0.01, True), (np.ones((4, 4)), True)],
    ids=["corners", "learned", "ones"],
)
def test_corners_of_boxes_are_decoded_in_float(values: np.ndarray, quantized: bool) -> None:
    """In front of NonMaxSuppression: what is cut apart there would share a scale."""
    body = """n4 = Constant <value = int64[3] {0, -1, 4}> () a = Conv (x, w0) b = Conv (x, w1)
        r = Reshape (a, n4) q = Reshape (b, n4) c = Concat <axis = -1> (r, q)
        p, s = Split <axis = -1, num_outputs = 2> (c) y = MatMul (p, corners) z = Sigmoid (s)"""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        f"net (float[N, 4, 8, 8] x) => (float[N, B, 4] y, float[N, B, 4] z) {{ {body} }}"
    )
    weight = np.ones((4, 4, 1, 1), np.float32)
    for name, array in {"w0": weight, "w1": 2 * weight, "corners": values}.items():
        tensor = numpy_helper.from_array(array.astype(np.float32), name)
        proto.graph.initializer.append(tensor)
    found = find_points(from_proto(proto))
    assert ("c" in found.points) == ("corners" in found.points) == quantized
    told = [node.reason for node in found.float_nodes if node.op == "MatMul"]
    assert told == ([] if quantized else ["the corners of boxes, of their centres and sizes"])


@pytest.mark.parametrize(
    ("body", "op", "reason"),
    [
        ("a = Conv (x, w0) y = ConvTranspose (a, w1)", "ConvTranspose", "no integer"),
        ("a = Conv (x, w0) b = Resize <mode = \"linear\"> (a, , twice) y = Conv (b, w1)",
         "Resize", "no integer kernel"),
        ("a = Conv (x, w0) y = Softmax (a)", "Softmax", "no integer kernel"),
        ("a = Conv (x, w0) y = my.domain.Odd (a)", "Odd", "custom domain"),
    ],
    ids=["transposed", "interpolated", "softmax", "custom"],
)  # fmt: skip
def test_what_stays_float_says_why(body: str, op: str, reason: str) -> None:
    found = find_points(_model(body, _W, ', "my.domain" : 1')).float_nodes
    assert [node for node in found if node.op == op and reason in node.reason]


_NETS = {
    "chain": "".join(
        f"a{i} = Conv (a{i - 1}, w{i}) " for i in range(1, 8)
    ).replace("(a0,", "(x,") + "y = Relu (a7)",
    "residual": """a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c) e = Conv (d, w2)
        f = Add (e, b) g = Relu (f) y = Conv (g, w3)""",
    "inverted": """a = Conv (x, w0) b = Clip (a, low, high) c = Conv (b, w1) d = Conv (c, w2)
        e = Clip (d, low, high) f = Conv (e, w3) g = Add (f, c) y = Conv (g, w4)""",
    "crossing": """a = Conv (x, w0) b = Conv (x, w1) c = Conv (a, w2) d = Conv (b, w3)
        e = Add (c, b) f = Add (d, a) y = Concat <axis = 1> (e, f)""",
}  # fmt: skip


@pytest.mark.parametrize("body", _NETS.values(), ids=_NETS)
def test_every_node_is_in_one_block_and_inputs_come_first(body: str) -> None:
    model = _model(body, _W)
    blocks = partition(model)
    assert [name for block in blocks for name in block.nodes] == [n.name for n in model.nodes]
    known = set(model.inputs)
    for block in blocks:
        assert set(block.inputs) <= known
        known |= set(block.outputs)
    assert set(model.outputs) <= known
    assert len({block.name for block in blocks}) == len(blocks)


def test_a_residual_branch_is_one_block() -> None:
    blocks = partition(_model(_NETS["residual"], _W))
    # Without names of their own nodes are called after their operators.
    sums = [block for block in blocks if "Add" in block.nodes]
    assert len(sums) == 1
    assert len(sums[0].weights) == 2


def test_chains_are_grouped_and_close_at_a_linear_bottleneck() -> None:
    inverted = [len(b.weights) for b in partition(_model(_NETS["inverted"], _W))]
    assert inverted == [2, 2, 1]  # stem and its linear projection; the branch; the last layer
    body = "".join(f"a{i} = Conv (a{i - 1}, w{i}) r{i} = Relu (a{i}) " for i in range(1, 8))
    for i in range(1, 8):
        body = body.replace(f"Conv (a{i},", f"Conv (r{i},")
    body = body.replace("(a0,", "(x,").replace("r7 =", "y =")
    sizes = [len(block.weights) for block in partition(_model(body, _W))]
    assert sizes == [3, 3, 1]
    assert max(sizes) == CHAIN_LAYERS


@pytest.mark.parametrize(
    ("body", "quantized"),
    [
        ("a = Conv (x, w0) s = Sigmoid (a) b = Mul (a, s) y = Conv (b, w1)", {"a", "s", "b"}),
        ("a = Conv (x, w0) s = Sigmoid (a) y = Mul (s, a)", {"a"}),
        ("a = Conv (x, w0) s = Sigmoid (a) b = Mul (a, s) y = Softmax (b)", {"a"}),
    ],
    ids=["before-a-layer", "at-the-end", "before-a-float-operator"],
)
def test_a_silu_is_quantized_or_left_as_one(body: str, quantized: set[str]) -> None:
    """One of the pair in integers would be an island between two conversions."""
    points = find_points(_model(body, _W)).points
    assert {"a", "s", "b"} & points.keys() == quantized


def test_places_of_a_sample_are_those_of_its_map_or_tokens() -> None:
    conv = Layer("conv", "Conv", "x", "w", None, 0, edge=False)
    product = Layer("product", "MatMul", "y", "v", None, 1, edge=False)
    points = Points({}, {"conv": conv, "product": product}, (), {})
    assert points.places(["conv"], (8, 16, 7, 5)) == 35
    assert points.places(["conv", "product"], (8, 16, 7, 5)) == 35
    assert points.places(["product"], (8, 7, 5, 16)) == 35
    assert points.places(["product"], (8, 197, 16)) == 197
    assert points.places(["product"], (8, 16)) == 1


def test_a_product_of_constants_is_no_layer() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4] x) => (float[4, 4] y, float[N, 4] z) {
        [one] y = MatMul (v, w)
        [two] z = MatMul (x, w)
    }"""
    proto = onnx.parser.parse_model(text)
    for name in ("v", "w"):
        proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), name))
    points = find_points(from_proto(proto))
    assert set(points.layers) == {"two"}
    assert [n.reason for n in points.float_nodes if n.name == "one"] == [
        "both inputs are constants"
    ]
