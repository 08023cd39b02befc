"""Sums of two products in 16 bits: which weights fit, and that calibration makes them fit."""

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq import affine
from onnxbrecq import calibrate as module
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit import saturation
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.saturation import fits, fitted, largest_sum, largest_sums, least_scale
from onnxbrecq.emit.targets import ORT_CPU, ORT_CPU_AVX2
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType, QuantPlan, TensorQuant
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.doctor import saturation_free
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.session import Session

_TOP = 127 + 1  # what two neighbours may be together


@dataclasses.dataclass(frozen=True)
class _Case:
    """A layer, the shape of its weight and of its data, and its attributes."""

    op: str
    weight: tuple[int, ...]
    data: tuple[int, ...]
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def node(self) -> onnx.NodeProto:
        return helper.make_node(self.op, ["x", "w"], ["y"], "layer", **self.attributes)

    def model(self, weight: np.ndarray) -> Model:
        shape = ["N", *self.data[1:]] if self.op == "Conv" else self.data
        graph = helper.make_graph(
            [self.node()],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight.astype(np.float32), "w")],
        )
        return from_proto(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        )

    def inputs(self) -> tuple[tuple[int, ...], ...]:
        """Of a channel, where in the weight's shape (less the channel) its inputs are, in order."""
        if self.op == "Conv":
            places = list(np.ndindex(self.weight[2:]))
            return tuple((c, *place) for place in places for c in range(self.weight[1]))
        rows = self.weight[1] if "transB" in self.attributes else self.weight[0]
        return tuple((row,) for row in range(rows))

    def filled(self, *values: int) -> np.ndarray:
        """The weight whose channels hold those integers over and over, in the kernel's order."""
        channel = np.zeros(self.weight[1:] if self._rows_first else self.weight[:1], np.float32)
        for number, place in enumerate(self.inputs()):
            channel[place] = values[number % len(values)]
        count = self.weight[0] if self._rows_first else self.weight[1]
        return np.stack([channel] * count, axis=0 if self._rows_first else 1)

    @property
    def _rows_first(self) -> bool:
        return self.op == "Conv" or "transB" in self.attributes

    @property
    def odd(self) -> bool:
        """Whether it is a Conv whose groups have an odd number of channels."""
        return self.op == "Conv" and self.weight[1] % 2 == 1 and not self.exact

    @property
    def exact(self) -> bool:
        """Whether its kernel adds in 32 bits."""
        return self.op == "Conv" and self.weight[1] == 1 and self.weight[0] == self.data[1]


_CASES = {
    "1x1": _Case("Conv", (32, 16, 1, 1), (2, 16, 6, 6)),
    "3x3": _Case("Conv", (16, 6, 3, 3), (2, 6, 6, 6)),
    "odd": _Case("Conv", (16, 3, 3, 3), (2, 3, 6, 6)),
    "7x7": _Case("Conv", (32, 3, 7, 7), (2, 3, 9, 9)),
    "groups": _Case("Conv", (16, 4, 3, 3), (2, 16, 6, 6), {"group": 4}),
    "multiplied": _Case("Conv", (32, 1, 3, 3), (2, 16, 6, 6), {"group": 16}),
    "depthwise": _Case("Conv", (16, 1, 3, 3), (2, 16, 6, 6), {"group": 16}),
    "depthwise 5x5": _Case("Conv", (33, 1, 5, 5), (2, 33, 6, 6), {"group": 33}),
    "3-D depthwise": _Case("Conv", (16, 1, 2, 3, 3), (2, 16, 4, 6, 6), {"group": 16}),
    "dilated depthwise": _Case(
        "Conv", (16, 1, 3, 3), (2, 16, 9, 9), {"group": 16, "dilations": [2, 2]}
    ),
    "one channel": _Case("Conv", (1, 1, 3, 3), (2, 1, 6, 6)),
    "1-D": _Case("Conv", (16, 6, 3), (2, 6, 9)),
    "1-D depthwise": _Case("Conv", (16, 1, 5), (2, 16, 9), {"group": 16}),
    "3-D": _Case("Conv", (16, 3, 2, 3, 3), (2, 3, 4, 6, 6)),
    "Gemm": _Case("Gemm", (21, 32), (4, 21)),
    "Gemm, turned": _Case("Gemm", (32, 20), (4, 20), {"transB": 1}),
    "one row": _Case("MatMul", (64, 48), (1, 64)),
    "MatMul": _Case("MatMul", (35, 16), (2, 7, 35)),
}
_cases = pytest.mark.parametrize("case", _CASES.values(), ids=_CASES)


def _planned(case: _Case, integers: np.ndarray) -> tuple[Model, QuantPlan]:
    """The layer with exactly those integers as its 8-bit weight, data from 0 to 255."""
    model = case.model(integers)
    data = Dataset({"x": np.full(case.data, 255, np.float32)})
    points = find_points(model)
    plan = calibrate(model, points, data, Recipe(weights=8, activations=8, threads=1))
    quant = plan.tensors["w"]
    scale = np.ones_like(quant.scale)
    levels = (integers + 128).astype(np.uint8)
    return model, plan.updated(
        {
            "w": dataclasses.replace(quant, scale=scale, levels=levels),
            "x": dataclasses.replace(plan.tensors["x"], scale=np.array(1, np.float32)),
        }
    )


def _stored(proto: onnx.ModelProto, shape: tuple[int, ...]) -> set[int]:
    """The types of the constants of that shape."""
    return {t.data_type for t in proto.graph.initializer if tuple(t.dims) == shape}


def _step(plan: QuantPlan) -> float:
    """Of the output; 0 where it stays float."""
    return float(plan.tensors["y"].scale) if "y" in plan.tensors else 0.0


@_cases
@pytest.mark.parametrize(
    "integers",
    [(127, 1), (1, 127), (-127, -1), (0, 127, 127, 0), (64, 64), (-64, -64, 127, -127), (127, 0)],
    ids=str,
)
def test_what_is_stored_signed_is_exact(case: _Case, integers: tuple[int, ...]) -> None:
    if case.odd and len(integers) > 2:
        pytest.skip("too much for OpenVINO, whose neighbours are others here")
    model, plan = _planned(case, case.filled(*integers))
    proto = emit(model, plan, ORT_CPU_AVX2)
    assert _stored(proto, case.weight) == {TensorProto.INT8}
    assert integer_kernels(("layer",), executed(proto))["layer"] is not None
    feed = {"x": np.full(case.data, 255, np.float32)}
    (wanted,) = Session(model.proto, threads=1).run(feed).values()
    (got,) = Session(proto, threads=1).run(feed).values()
    assert np.abs(got - wanted).max() <= 0.51 * _step(plan)


@_cases
@pytest.mark.parametrize("integers", [(127, 2), (-65, -64), (127, 127)], ids=str)
def test_what_would_saturate_is_stored_unsigned(case: _Case, integers: tuple[int, ...]) -> None:
    model, plan = _planned(case, case.filled(*integers))
    proto = emit(model, plan, ORT_CPU_AVX2)
    kind = TensorProto.INT8 if case.exact else TensorProto.UINT8
    assert _stored(proto, case.weight) == {kind}
    assert _stored(emit(model, plan, ORT_CPU), case.weight) == {TensorProto.INT8}


@pytest.mark.skipif(saturation_free(), reason="nothing saturates on this processor")
@_cases
def test_neighbours_are_those_that_kernels_add(case: _Case) -> None:
    """Signed kernels are wrong where the sums say so: else the rule above is stricter than need."""
    model, plan = _planned(case, case.filled(127, 127, 0, 0))
    feed = {"x": np.full(case.data, 255, np.float32)}
    (wanted,) = Session(model.proto, threads=1).run(feed).values()
    (got,) = Session(emit(model, plan, ORT_CPU), threads=1).run(feed).values()
    assert bool(np.abs(got - wanted).max() <= 0.51 * _step(plan)) is case.exact


@given(data=st.data(), case=st.sampled_from(list(_CASES.values())))
def test_sums_are_those_of_neighbours(data: st.DataObject, case: _Case) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    weight = np.random.default_rng(seed).integers(-128, 128, case.weight)
    found = largest_sums(case.node(), weight)
    channels = weight if case._rows_first else weight.T
    for channel, sum_ in zip(channels, found, strict=True):
        values = [int(channel[place]) for place in case.inputs()]
        rows = [values]
        if case.op == "Conv":  # OpenVINO's: those of each place apart
            rows += [values[i : i + case.weight[1]] for i in range(0, len(values), case.weight[1])]
        pairs = [row[i : i + 2] for row in rows for i in range(0, len(row), 2)]
        sums = [sum(v for v in pair if sign * v > 0) for pair in pairs for sign in (1, -1)]
        assert sum_ == (0 if case.exact else max(abs(one) for one in sums))


@given(data=st.data(), case=st.sampled_from(list(_CASES.values())), top=st.sampled_from([127, 255]))
def test_at_the_least_scale_nothing_saturates(data: st.DataObject, case: _Case, top: int) -> None:
    """Neither rounded to the nearest levels, nor to the next ones up or down."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weight = (random.normal(size=case.weight) * 10.0 ** random.integers(-6, 6)).astype(np.float32)
    scale = np.maximum(least_scale(case.node(), weight, top), np.float32(1e-30))
    along = scale.reshape(-1, *[1] * (weight.ndim - 1)) if case._rows_first else scale
    if case.exact:
        return
    for rounded in (np.rint, np.floor, np.ceil):
        assert largest_sums(case.node(), rounded(weight / along)).max() <= largest_sum(top)


@given(data=st.data(), case=st.sampled_from(list(_CASES.values())), top=st.sampled_from([127, 255]))
def test_of_neighbours_that_are_too_much_the_larger_gives_way(
    data: st.DataObject, case: _Case, top: int
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    most = data.draw(st.sampled_from([64, 66, 70, 128]))
    weight = random.integers(-most, most, case.weight)
    scale = np.ones(weight.shape[0 if case._rows_first else 1], np.float32)
    quant = TensorQuant(
        QType(8, "signed"),
        scale,
        np.zeros(scale.shape, np.int32),
        axis=0 if case._rows_first else 1,
        levels=(weight + 128).astype(np.uint8),
    )
    before = fits(case.node(), quant, top)
    made = fitted(case.node(), quant, top)
    assert fits(case.node(), made, top)
    assert (made == quant) is before
    assert made.levels is not None
    changed = made.levels.astype(int) - 128
    assert np.all(np.abs(changed) <= np.abs(weight))
    assert np.all(changed * weight >= 0)
    if not case.odd:  # by no more than what was too much
        excess = np.maximum(largest_sums(case.node(), weight) - largest_sum(top), 0)
        along = tuple(range(1, weight.ndim)) if case._rows_first else (0,)
        assert np.array_equal(np.abs(changed - weight).max(axis=along), excess)


def test_a_large_weight_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _CASES["3x3"]
    weight = np.random.default_rng(0).integers(-128, 128, case.weight)
    whole = largest_sums(case.node(), weight)
    monkeypatch.setattr(saturation, "_CHUNK", 100)
    assert np.array_equal(largest_sums(case.node(), weight), whole)


def test_a_weight_that_layers_share_is_stored_once_for_all() -> None:
    """As UINT8 if one of them could saturate: the other reads data of few levels."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) {
        [one] a = Conv (x, w)
        b = Sigmoid (a)
        [two] y = Conv (b, w)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w"))
    model = from_proto(proto)
    data = Dataset({"x": np.ones((8, 4, 4, 4), np.float32)})
    recipe = Recipe(weights=8, activations=8, target="ort-cpu", first_last=None, threads=1)
    plan = calibrate(model, find_points(model), data, recipe)
    few = dataclasses.replace(plan.tensors["b"], qtype=QType(4, "affine"))
    stored = emit(model, plan.updated({"b": few}), ORT_CPU_AVX2)
    assert _stored(stored, (4, 4, 1, 1)) == {TensorProto.UINT8}
    both = plan.updated({"b": few, "x": dataclasses.replace(few, scale=plan.tensors["x"].scale)})
    assert _stored(emit(model, both, ORT_CPU_AVX2), (4, 4, 1, 1)) == {TensorProto.INT8}


def test_a_table_that_is_a_layers_weight_is_decoded_from_its_bytes() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (int64[N] x) => (float[N, 5] y) {
        a = Gather (w, x)
        [head] y = Gemm <transB = 1> (a, w)
    }"""
    proto = onnx.parser.parse_model(text)
    table = np.full((5, 8), 1, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(table, "w"))
    model = from_proto(proto)
    samples = Dataset({"x": np.arange(5)})
    recipe = Recipe(weights=8, activations=8, target="ort-cpu", threads=1)
    plan = calibrate(model, find_points(model), samples, recipe)
    unsigned, signed = (emit(model, plan, target) for target in (ORT_CPU_AVX2, ORT_CPU))
    assert _stored(unsigned, table.shape) == {TensorProto.UINT8}
    assert _stored(signed, table.shape) == {TensorProto.INT8}
    made, wanted = (
        Session(proto, optimize=False, threads=1).run(samples.inputs)["y"]
        for proto in (unsigned, signed)
    )
    assert np.array_equal(made, wanted)


def test_data_of_few_bits_never_saturates() -> None:
    assert largest_sum(127) > 2 * 127
    assert largest_sum(255) == _TOP


@_cases
@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize(
    ("target", "exact"),
    [
        ("ort-cpu", False),
        ("ort-cpu-avx2", True),
        ("openvino", None),
        ("portable", True),
        (None, None),
    ],
    ids=str,
)
def test_calibration_makes_weights_fit_where_they_would_saturate(
    case: _Case,
    target: str | None,
    exact: bool | None,
    saturates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`exact`: everywhere, nowhere, or (None) on a processor that `saturates`."""
    monkeypatch.setattr(module, "saturation_free", lambda: not saturates)
    model = case.model(np.random.default_rng(1).normal(size=case.weight))
    samples = np.random.default_rng(2).uniform(0, 1, case.data).astype(np.float32)
    recipe = Recipe(weights=8, activations=8, target=target, threads=1)
    plan = calibrate(model, find_points(model), Dataset({"x": samples}), recipe)
    quant = plan.tensors["w"]
    assert quant.levels is not None
    fits = bool(largest_sums(case.node(), affine.integers(quant.levels, quant)).max() <= _TOP)
    assert fits is (case.exact or (saturates if exact is None else exact))
    kind = TensorProto.INT8 if fits else TensorProto.UINT8
    assert _stored(emit(model, plan, ORT_CPU_AVX2), case.weight) == {kind}
