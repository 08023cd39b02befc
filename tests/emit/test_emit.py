"""The laws of emission, on a residual network and on an inverted residual with Clips."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxbrecq import affine
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.read import stored_bits
from onnxbrecq.emit.storage import stays_packed
from onnxbrecq.emit.targets import OPENVINO, ORT_CPU, ORT_CPU_AVX2, Target
from onnxbrecq.errors import EmissionError
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType, QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.session import Session
from onnxbrecq.runtime.trace import optimized

_INVERTED = """
<ir_version: 8, opset_import: ["" : 13]>
inverted (float[N, 3, 8, 8] x) => (float[N, 4] logits) {
    low = Constant <value = float {0}> ()
    high = Constant <value = float {6}> ()
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    b = Clip (a, low, high)
    c = Conv (b, w1, b1)
    d = Clip (c, low, high)
    e = Conv <pads = [1, 1, 1, 1], group = 12> (d, w2, b2)
    f = Clip (e, low, high)
    g = Conv (f, w3)
    h = Add (g, b)
    i = Conv (h, w4, b4)
    j = Clip (i, low, high)
    k = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (j)
    l = Concat <axis = 1> (k, k)
    m = GlobalAveragePool (l)
    o = Flatten (m)
    logits = Gemm (o, w5, b5)
}
"""
_SHAPES = {"w0": (6, 3, 3, 3), "w1": (12, 6, 1, 1), "w2": (12, 1, 3, 3), "w3": (6, 12, 1, 1),
           "w4": (8, 6, 1, 1), "w5": (16, 4)}  # fmt: skip
_SETTINGS = [(8, 8), (4, 8), (3, 8), (2, 8), (4, 4), (2, 4)]
_IDS = [f"W{w}A{a}" for w, a in _SETTINGS]


def _inverted() -> Model:
    proto = onnx.parser.parse_model(_INVERTED)
    random = np.random.default_rng(2)
    for name, shape in _SHAPES.items():
        weight = random.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
        if name != "w3":
            bias = random.normal(0, 0.3, shape[1 if name == "w5" else 0]).astype(np.float32)
            key = name.replace("w", "b")
            proto.graph.initializer.append(numpy_helper.from_array(bias, key))
    return from_proto(proto)


@pytest.fixture(params=["residual", "inverted"])
def network(request: pytest.FixtureRequest, model: Model) -> Model:
    return model if request.param == "residual" else _inverted()


def _plan(model: Model, data: Dataset, weights: int, activations: int | None) -> QuantPlan:
    recipe = Recipe(weights=weights, activations=activations)
    return calibrate(model, find_points(model), data, recipe)


def _run(proto: onnx.ModelProto, feed: object) -> dict[str, np.ndarray]:
    return Session(proto, optimize=False, threads=1).run(feed)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("weights", "activations"), _SETTINGS, ids=_IDS)
def test_blocks_one_after_another_equal_the_whole(
    network: Model, data: Dataset, weights: int, activations: int
) -> None:
    plan = _plan(network, data, weights, activations)
    whole = _run(emit(network, plan, ORT_CPU), data.inputs)["logits"]
    values = dict(data.inputs)
    for block in partition(network):
        proto = emit(extract(network, block), plan, ORT_CPU)
        values.update(_run(proto, {name: values[name] for name in block.inputs}))
    np.testing.assert_array_equal(values["logits"], whole)


def test_an_empty_plan_changes_nothing(network: Model, data: Dataset) -> None:
    expected = _run(network.proto, data.inputs)["logits"]
    made = _run(emit(network, QuantPlan(), ORT_CPU), data.inputs)["logits"]
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("target", [ORT_CPU, ORT_CPU_AVX2], ids=lambda target: target.name)
@pytest.mark.parametrize(("weights", "activations"), _SETTINGS, ids=_IDS)
def test_every_layer_runs_in_an_integer_kernel(
    network: Model, data: Dataset, weights: int, activations: int, target: Target
) -> None:
    proto = emit(network, _plan(network, data, weights, activations), target)
    onnx.checker.check_model(proto, full_check=True)
    layers = find_points(network).layers
    kernels = integer_kernels(tuple(layers), executed(proto))
    assert None not in kernels.values(), kernels


@pytest.mark.parametrize(("weights", "activations"), _SETTINGS, ids=_IDS)
def test_the_file_holds_the_bits_asked_for(
    network: Model, data: Dataset, weights: int, activations: int
) -> None:
    proto = emit(network, _plan(network, data, weights, activations), ORT_CPU)
    layers = find_points(network).layers
    bits = stored_bits(proto, tuple(layers))
    for name, layer in layers.items():
        assert bits[name] == ((8, 8) if layer.edge else (weights, activations)), name
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    packed = {8: TensorProto.INT8, 4: TensorProto.UINT4, 3: TensorProto.UINT4, 2: TensorProto.UINT2}
    assert packed[weights] in kinds
    assert max(o.version for o in proto.opset_import) == (25 if weights == 2 else 21)


@pytest.mark.parametrize(
    ("qtype", "ends", "kind"),
    [
        (QType(2, "affine"), (0, 3), TensorProto.UINT2),
        (QType(2, "affine"), (0, 4), TensorProto.INT8),  # zero lies beside the grid
        (QType(2, "affine"), (-1, 1), TensorProto.INT8),
        (QType(2, "half"), (1, 3), TensorProto.INT4),  # of -1 to 7
        (QType(2, "half"), (-1, 7), TensorProto.INT4),
        (QType(2, "half"), (0, 8), TensorProto.INT8),
        (QType(3, "affine"), (0, 7), TensorProto.UINT4),
        (QType(3, "half"), (0, 3), TensorProto.INT8),  # of -1 to 15
        (QType(4, "affine"), (0, 3), TensorProto.UINT4),
        (QType(4, "half"), (0, 3), TensorProto.INT8),  # of -1 to 31
    ],
)
def test_offsets_are_stored_in_the_smallest_type(
    model: Model, data: Dataset, qtype: QType, ends: tuple[int, int], kind: int
) -> None:
    """The file holds them in it, and what onnxruntime decodes is the plan's weight."""
    layer = next(x for x in find_points(model).layers.values() if not x.edge)
    plan = _plan(model, data, qtype.bits, 8)
    quant = plan.tensors[layer.weight]
    points = np.resize(np.asarray(ends, np.int32), quant.zero_point.shape)
    quant = dataclasses.replace(quant, qtype=qtype, zero_point=points)
    proto = emit(model, plan.updated({layer.weight: quant}), ORT_CPU)
    constants = {t.name: t for t in proto.graph.initializer}
    column = [points.size] + [1] * (len(model.shapes[layer.weight]) - 1)
    cast = [n.input[0] for n in proto.graph.node if n.op_type == "Cast" and n.input[0] in constants]
    stored = [constants[name] for name in cast if list(constants[name].dims) == column]
    held = [t for t in stored if np.array_equal(numpy_helper.to_array(t).ravel(), points)]
    assert [t.data_type for t in held] == [kind]
    assert quant.levels is not None
    weights = [
        numpy_helper.to_array(t) for t in optimized(proto, 1).graph.initializer
        if t.data_type == TensorProto.INT8
    ]  # fmt: skip
    integers = affine.integers(quant.levels, quant)
    assert any(np.array_equal(weight, integers) for weight in weights)


@pytest.mark.parametrize(("weights", "activations"), _SETTINGS, ids=_IDS)
def test_optimised_and_unoptimised_sessions_agree(
    network: Model, data: Dataset, weights: int, activations: int
) -> None:
    # Unsigned 8-bit weights: with signed ones, sums of 8-bit products saturate without VNNI.
    proto = emit(network, _plan(network, data, weights, activations), ORT_CPU_AVX2)
    fast, plain = Session(proto, threads=1).run(data.inputs), _run(proto, data.inputs)
    energy = np.square(plain["logits"]).mean()
    # They differ by a step at rounding ties only; a lost Clip or Relu would show as the energy.
    assert np.square(fast["logits"] - plain["logits"]).mean() < 1e-2 * energy


def test_what_onnx_cannot_convert_is_refused(
    model: Model, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(*_: object) -> onnx.ModelProto:
        raise RuntimeError("no adapter for Foo\nsomewhere in C++")

    plan = _plan(model, data, 2, 8)
    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    with pytest.raises(
        EmissionError, match=r"^opset 21 .* to 25, .*\(no adapter for Foo\); choose"
    ):
        emit(model, plan, ORT_CPU)


def test_targets_compute_the_same_as_written(network: Model, data: Dataset) -> None:
    recipe = Recipe(weights=8, activations=8, target="ort-cpu")
    plan = calibrate(network, find_points(network), data, recipe)
    signed, unsigned = (emit(network, plan, target) for target in (ORT_CPU, ORT_CPU_AVX2))
    differing = [
        tensor.dims
        for tensor, other in zip(signed.graph.initializer, unsigned.graph.initializer, strict=False)
        if tensor.data_type == TensorProto.INT8 and other.data_type == TensorProto.UINT8
    ]
    assert differing
    made = [_run(proto, data.inputs)["logits"] for proto in (signed, unsigned)]
    assert np.array_equal(*made)


def test_weight_only_is_decoded_at_load(network: Model, data: Dataset) -> None:
    proto = emit(network, _plan(network, data, 4, None), ORT_CPU)
    operators = {node.op for node in executed(proto)}
    assert not operators & {"DequantizeLinear", "Cast", "Mul", "QuantizeLinear"}
    bits = stored_bits(proto, tuple(find_points(network).layers))
    assert {b for b, _ in bits.values()} == {4, 8}
    assert {a for _, a in bits.values()} == {None}


def test_relu_and_clip_give_way_to_the_quantizer(network: Model, data: Dataset) -> None:
    proto = emit(network, _plan(network, data, 4, 8), ORT_CPU)
    assert not {"Relu", "Clip"} & {node.op_type for node in proto.graph.node}


def test_signature_is_kept(data: Dataset) -> None:
    model = _inverted()
    proto = emit(model, _plan(model, data, 4, 8), ORT_CPU)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert [value.name for value in proto.graph.output] == ["logits"]


def test_a_bias_of_the_plan_replaces_the_models(network: Model, data: Dataset) -> None:
    plan = _plan(network, data, 8, 8)
    layer = list(find_points(network).layers.values())[-1]
    assert layer.bias is not None
    moved = np.asarray(network.initializers[layer.bias]) + np.float32(3)
    before = _run(emit(network, plan, ORT_CPU), data.inputs)["logits"]
    after = _run(emit(network, plan.updated({}, {layer.bias: moved}), ORT_CPU), data.inputs)
    # int32 bias steps are far below 8-bit ones
    np.testing.assert_allclose(after["logits"] - before, 3, atol=1e-2)


def test_a_bias_too_large_for_int32_names_its_node(model: Model, data: Dataset) -> None:
    plan = _plan(model, data, 8, 8)
    layer = next(iter(find_points(model).layers.values()))
    quant = plan.tensors[layer.weight]
    tiny = dataclasses.replace(quant, scale=np.full_like(quant.scale, 1e-12))
    with pytest.raises(EmissionError, match=layer.node):
        emit(model, plan.updated({layer.weight: tiny}), ORT_CPU)


def test_calibration_keeps_a_large_bias_within_int32(data: Dataset) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    tiny (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) { y = Conv (x, w, b) }"""
    proto = onnx.parser.parse_model(text)
    weight = np.full((2, 3, 1, 1), 1e-12, np.float32)
    bias = np.array([1e3, 0], np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(bias, "b"))
    model = from_proto(proto)
    made = _run(emit(model, _plan(model, data, 8, 8), ORT_CPU), data.inputs)["y"]
    # The output's 8-bit step is 1000 / 255.
    np.testing.assert_allclose(made[:, 0], 1e3, atol=4)
    np.testing.assert_allclose(made[:, 1], 0, atol=4)


@pytest.mark.parametrize(("given", "kept"), [("inverted", "inverted"), ("", "graph")])
def test_the_graphs_name_is_kept(data: Dataset, given: str, kept: str) -> None:
    model = _inverted()
    plan = _plan(model, data, 8, 8)
    named = onnx.ModelProto()
    named.CopyFrom(model.proto)
    named.graph.name = given
    made = emit(dataclasses.replace(model, proto=named), plan, ORT_CPU)
    assert made.graph.name == kept


@pytest.mark.parametrize(
    ("target", "integer_data", "packed"),
    [(ORT_CPU, False, True), (ORT_CPU, True, False), (OPENVINO, False, False)],
    ids=str,
)
def test_only_some_layers_multiply_the_packed_weight(
    target: Target, *, integer_data: bool, packed: bool
) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    quant = affine.weight_quant(weight, QType(4, "affine"), 1, np.zeros(1, np.float32))
    assert stays_packed(quant, target, "MatMul", integer_data=integer_data) is packed
    assert not stays_packed(quant, target, "Conv", integer_data=False)


def test_what_is_written_takes_no_name_that_is_taken(data: Dataset) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
        a = Conv (x, w)
        q0 = Tanh (a)
        y = Pow (q0, s0)
    }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    for name, value in {"w": weight, "s0": np.array([2], np.float32)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    model = from_proto(proto)
    made = emit(model, _plan(model, data, 8, 8), ORT_CPU)
    names = [t.name for t in made.graph.initializer]
    names += [name for node in made.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert np.array_equal(numpy_helper.to_array(made.graph.initializer[names.index("s0")]), [2])
