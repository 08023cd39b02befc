"""What each target forbids, and that what is written for it keeps to it."""

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxbrecq
from onnxbrecq import recipe as recipes
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.read import stored_bits
from onnxbrecq.emit.targets import ORT_CPU, TARGETS, Target, permit, run_here, target_for
from onnxbrecq.errors import EmissionError, RecipeError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType, QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session

_OTHERS = ("openvino", "tensorrt", "qnn", "portable")
_BITS = list(itertools.product(TARGETS.values(), recipes.WEIGHT_BITS,
                               (*recipes.ACTIVATION_BITS, None), recipes.WEIGHT_BITS))  # fmt: skip


def _plan(model: Model, data: Dataset, target: str, weights: int, activations: int) -> QuantPlan:
    recipe = Recipe(weights=weights, activations=activations, target=target)
    return calibrate(model, find_points(model), data, recipe)


def _types(proto: onnx.ModelProto, op: str) -> set[int]:
    """The types of the zero points of all `op`; INT8 where DequantizeLinear has none."""
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    nodes = [node for node in proto.graph.node if node.op_type == op]
    return {kinds[n.input[2]] if len(n.input) > 2 else kinds[n.input[0]] for n in nodes}


def test_the_recipe_knows_every_target() -> None:
    assert set(recipes.TARGETS) == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_combination_is_permitted_or_refused_by_name(target: Target) -> None:
    for _, weights, activations, first_last in (case for case in _BITS if case[0] is target):
        recipe = Recipe(weights=weights, activations=activations, first_last=first_last)
        wrong = {
            "weights": weights not in target.weights,
            "activations": activations not in target.activations,
            "first_last": first_last not in target.weights
            or (activations not in (None, 16) and first_last not in target.activations),
        }
        if not any(wrong.values()):
            permit(target, recipe)
            continue
        with pytest.raises(RecipeError) as caught:
            permit(target, recipe)
        named = str(caught.value).partition(" = ")[0]
        assert wrong[named]
        assert f"target {target.name} takes" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "asked", "key"),
    [
        ("ort-cpu", {"activations": 16}, "activations"),
        ("openvino", {"activations": 4}, "activations"),
        ("tensorrt", {"activations": None}, "activations"),
        ("tensorrt", {"first_last": 4}, "first_last"),
        ("qnn", {"weights": 2}, "weights"),
        ("qnn", {"weights": 3}, "weights"),
        ("portable", {"activations": 2}, "activations"),
        ("ort-cpu", {"activations": None, "weights": 2, "block_size": 16}, "block_size"),
        ("ort-cpu", {"activations": None, "first_last": 2, "block_size": 16}, "block_size"),
    ],
)
def test_quantize_refuses_before_it_looks_at_the_model(
    target: str, asked: dict[str, int | None], key: str, tmp_path: Path
) -> None:
    recipe = Recipe(target=target, **asked)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=f"^{key} = .*target {target} takes"):
        onnxbrecq.quantize(tmp_path / "missing.onnx", recipe=recipe)


@pytest.mark.parametrize("target", ["openvino", "portable"])
def test_blocks_are_refused_where_no_kernel_takes_them(target: str, tmp_path: Path) -> None:
    recipe = Recipe(target=target, activations=None, block_size=32)
    with pytest.raises(RecipeError, match=rf"^block_size = 32: target {target} has no kernel"):
        onnxbrecq.quantize(tmp_path / "missing.onnx", recipe=recipe)


@pytest.mark.parametrize("name", _OTHERS)
def test_what_is_written_computes_what_the_walk_saw(name: str, model: Model, data: Dataset) -> None:
    target = TARGETS[name]
    plan = _plan(model, data, name, 4, 8)
    feed = data.inputs
    written = Session(emit(model, plan, target), optimize=False, threads=1).run(feed)
    for saturates in (False, True):
        here = emit(model, plan, run_here(target, saturates=saturates))
        seen = Session(here, optimize=False, threads=1).run(feed)
        np.testing.assert_array_equal(seen["logits"], written["logits"])


def test_onnxruntimes_targets_stand_for_themselves() -> None:
    for saturates in (False, True):
        target = target_for(None, saturates=saturates)
        assert run_here(target, saturates=not saturates) is target


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("name", _OTHERS)
def test_others_are_stored_as_this_processor_needs_it(name: str, saturates: bool) -> None:
    """And take what they take: only how it is written is that of onnxruntime's target here."""
    stored = {"storage", "unsigned", "opset", "narrowest", "moved", "alone", "packed_products"}
    exact, here = (
        target_for(None, saturates=saturates),
        run_here(TARGETS[name], saturates=saturates),
    )
    assert exact.name == ("ort-cpu-avx2" if saturates else "ort-cpu")
    assert not here.lowered
    for field in dataclasses.fields(Target):
        if field.name != "lowered":
            source = exact if field.name in stored else TARGETS[name]
            assert getattr(here, field.name) == getattr(source, field.name), field.name


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"weights": 4, "block_size": 16}, None),
        ({"weights": 2, "block_size": 16}, "with weights = 2 target ort-cpu takes"),
        ({"first_last": 2, "block_size": 16}, "with first_last = 2 target ort-cpu takes"),
        ({"search": "exact", "block_size": 16}, "with offered = 2 target ort-cpu takes"),
        ({"search": "exact", "offered": (4, 8), "block_size": 16}, None),
    ],
)
def test_sizes_of_blocks_are_those_of_each_width(asked: dict[str, Any], told: str | None) -> None:
    recipe = Recipe(activations=None, **asked)
    with pytest.raises(RecipeError, match=told) if told else contextlib.nullcontext():
        permit(TARGETS["ort-cpu"], recipe)


def test_tensorrt_has_int8_and_zero_points_of_0_only(model: Model, data: Dataset) -> None:
    proto = emit(model, _plan(model, data, "tensorrt", 4, 8), TARGETS["tensorrt"])
    biases = TensorProto.INT32
    assert _types(proto, "QuantizeLinear") == {TensorProto.INT8}
    assert _types(proto, "DequantizeLinear") == {TensorProto.INT8, biases}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    zeros = [constants[n.input[2]] for n in proto.graph.node
             if n.op_type.endswith("tizeLinear") and len(n.input) > 2]  # fmt: skip
    assert zeros
    assert not any(zero.any() for zero in zeros)
    assert [n.op_type for n in proto.graph.node].count("Relu") == 3


def test_signed_activations_load(data: Dataset) -> None:
    """onnxruntime 1.32 breaks INT8 behind a Reshape unless it is told that INT8 is allowed."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 8, 8] x) => (float[N, 2] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (a)
        f = Flatten (r)
        y = Gemm (f, v)
    }"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in {"w": (4, 3, 3, 3), "v": (256, 2)}.items():
        weight = random.normal(0, 0.2, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    model = from_proto(proto)
    made = emit(model, _plan(model, data, "tensorrt", 8, 8), TARGETS["tensorrt"])
    expected = Session(model.proto, threads=1).run(data.inputs)["y"]
    found = Session(made, threads=1).run(data.inputs)["y"]
    # 8 bits everywhere: the noise is some 30 dB below, whatever the kernels.
    assert np.square(found - expected).sum() < 1e-2 * np.square(expected).sum()


def test_portable_is_opset_13_without_packed_types(model: Model, data: Dataset) -> None:
    proto = emit(model, _plan(model, data, "portable", 2, 8), TARGETS["portable"])
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 13)]
    assert proto.ir_version == 8
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    assert kinds <= {TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32,
                     TensorProto.INT64}  # fmt: skip
    onnx.checker.check_model(proto, full_check=True)


def test_portable_stays_at_what_its_operators_need(data: Dataset) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[N, 3, 8, 8] x) => (float[N, 3, 1, 1] y) {
        axes = Constant <value = int64[2] {2, 3}> ()
        a = Conv (x, w)
        g = OP (a)
        y = ReduceMean (g, axes)
    }"""
    for op, wanted in (("Gelu", 20), ("Relu", 13)):
        proto = onnx.parser.parse_model(text.replace("OP", op))
        weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        model = from_proto(proto)
        plan = _plan(model, data, "portable", 8, 8)
        made = emit(model, plan, TARGETS["portable"])
        assert made.opset_import[0].version == wanted, op
        same = emit(model, plan, ORT_CPU)
        for optimize in (False, True):
            lowered, plain = (Session(p, optimize=optimize, threads=1) for p in (made, same))
            np.testing.assert_array_equal(lowered.run(data.inputs)["y"],
                                          plain.run(data.inputs)["y"])  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_openvino_has_no_type_below_4_bits(bits: int, model: Model, data: Dataset) -> None:
    proto = emit(model, _plan(model, data, "openvino", bits, 8), TARGETS["openvino"])
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    assert TensorProto.UINT4 in kinds
    assert TensorProto.UINT2 not in kinds
    assert proto.opset_import[0].version == 21
    layers = find_points(model).layers
    found = stored_bits(proto, tuple(layers))
    assert [found[name][0] for name in layers] == [8, bits, bits, 8]


def test_qnn_stores_int4_plainly_and_16_bits_everywhere(model: Model, data: Dataset) -> None:
    proto = emit(model, _plan(model, data, "qnn", 4, 16), TARGETS["qnn"])
    assert _types(proto, "QuantizeLinear") == {TensorProto.UINT16}
    assert TensorProto.INT4 in {tensor.data_type for tensor in proto.graph.initializer}
    assert not {"Cast", "Mul", "Sub", "Clip"} & {node.op_type for node in proto.graph.node}
    gemm = next(iter(reversed(find_points(model).layers.values())))
    assert _plan(model, data, "qnn", 4, 8).tensors[gemm.weight].axis is None


_FORBIDDEN = {
    "affine grid": ("ort-cpu", 4, 8, "tensorrt"),
    "4-bit activations": ("ort-cpu", 4, 4, "openvino"),
    "half grid": ("ort-cpu", 4, 8, "qnn"),
    "2-bit weights": ("ort-cpu", 2, 8, "qnn"),
    "one scale for the weight of a Gemm": ("openvino", 8, 8, "qnn"),
    "16-bit activations": ("qnn", 8, 16, "ort-cpu"),
    "signed grid": ("tensorrt", 8, 8, "qnn"),
}


@pytest.mark.parametrize("reason", _FORBIDDEN)
def test_a_decision_that_a_target_forbids_is_named(
    reason: str, model: Model, data: Dataset
) -> None:
    made_for, weights, activations, target = _FORBIDDEN[reason]
    plan = _plan(model, data, made_for, weights, activations)
    with pytest.raises(EmissionError, match=rf"^tensor '.*{reason}.*--target {target}$") as caught:
        emit(model, plan, TARGETS[target])
    assert str(caught.value).split("'")[1] in plan.tensors


def test_a_plan_serves_every_target_that_takes_it(model: Model, data: Dataset) -> None:
    plan = _plan(model, data, "ort-cpu", 4, 8)
    made = [
        Session(emit(model, plan, TARGETS[name]), optimize=False, threads=1).run(data.inputs)
        for name in ("ort-cpu", "ort-cpu-avx2", "openvino", "portable")
    ]
    for other in made[1:]:
        np.testing.assert_array_equal(other["logits"], made[0]["logits"])


_SENTENCES = """
<ir_version: 10, opset_import: ["" : 21]>
net (int64[N, 5] x) => (float[N, 5, 12] y) {
    e = Gather (table, x)
    a = MatMul (e, w)
    t = Transpose <perm = [1, 0]> (table)
    y = MatMul (a, t)
}"""


def _sentences() -> tuple[Model, Dataset]:
    proto = onnx.parser.parse_model(_SENTENCES)
    random = np.random.default_rng(0)
    for name, shape in {"table": (12, 16), "w": (16, 16)}.items():
        array = random.normal(0, 0.3, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return from_proto(proto), Dataset({"x": random.integers(0, 12, (6, 5))})


@pytest.mark.parametrize("activations", [8, None])
@pytest.mark.parametrize("name", ["openvino", "portable"])
def test_tables_are_decoded_for_others_too(name: str, activations: int | None) -> None:
    model, data = _sentences()
    recipe = Recipe(weights=4, activations=activations)
    plan = calibrate(model, find_points(model), data, recipe)
    made = emit(model, plan, TARGETS[name])
    onnx.checker.check_model(made, full_check=True)
    assert not [t for t in made.graph.initializer
                if list(t.dims) == [12, 16] and t.data_type == TensorProto.FLOAT]  # fmt: skip
    same = emit(model, plan, ORT_CPU)
    found, expected = (Session(p, optimize=False, threads=1).run(data.inputs)["y"]
                       for p in (made, same))  # fmt: skip
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", _OTHERS)
def test_blocks_of_a_saved_plan_are_refused_by_name(name: str) -> None:
    model, data = _sentences()
    recipe = Recipe(weights=4, activations=None, block_size=32)
    plan = calibrate(model, find_points(model), data, recipe)
    with pytest.raises(EmissionError, match=rf"tensor '.*--target {name}"):
        emit(model, plan, TARGETS[name])


def test_float_activations_where_they_must_not_be(model: Model, data: Dataset) -> None:
    recipe = Recipe(weights=8, activations=None)
    plan = calibrate(model, find_points(model), data, recipe)
    with pytest.raises(EmissionError, match=r"leaves all activations float.*tensorrt"):
        emit(model, plan, TARGETS["tensorrt"])


def test_an_opset_newer_than_the_target_reads(model: Model) -> None:
    old = dataclasses.replace(ORT_CPU, opset=20)
    with pytest.raises(EmissionError, match="has opset 21; target ort-cpu reads up to 20"):
        emit(model, QuantPlan(), old)


def test_a_signed_activation_below_8_bits_is_refused(model: Model, data: Dataset) -> None:
    plan = _plan(model, data, "tensorrt", 8, 8)
    name = next(n for n, quant in plan.tensors.items() if quant.levels is None)
    few = dataclasses.replace(plan.tensors[name], qtype=QType(4, "signed"))
    with pytest.raises(EmissionError, match="signed grid of 4-bit activations"):
        emit(model, plan.updated({name: few}), ORT_CPU)
