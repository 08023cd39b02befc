"""Second-order rounding: better outputs than nearest rounding, at the same grid."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxbrecq import affine
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType, QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.bridge import import_block
from onnxbrecq.recon.problem import BlockData, Problem
from onnxbrecq.recon.second_order import _joined, _rounded, _split, round_second_order

_LAYERS: dict[str, tuple[str, str, Mapping[str, tuple[int, ...]]]] = {
    "conv": ("float[N, 6, 8, 8] x", "h = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (h)",
             {"w": (5, 6, 3, 3), "b": (5,)}),
    "stride": ("float[N, 6, 8, 8] x",
               "h = Conv <pads = [0, 1, 2, 1], strides = [2, 1], dilations = [1, 2]> (x, w, b) "
               "y = Relu (h)", {"w": (5, 6, 3, 2), "b": (5,)}),
    "groups": ("float[N, 6, 8, 8] x", "h = Conv <group = 2> (x, w, b) y = Relu (h)",
               {"w": (4, 3, 3, 3), "b": (4,)}),
    "depthwise": ("float[N, 6, 8, 8] x", "h = Conv <group = 6> (x, w, b) y = Relu (h)",
                  {"w": (6, 1, 3, 3), "b": (6,)}),
    "sequence": ("float[N, 6, 20] x", "h = Conv (x, w, b) y = Relu (h)",
                 {"w": (5, 6, 3), "b": (5,)}),
    "gemm": ("float[N, 24] x", "h = Gemm <transB = 1> (x, w, b) y = Relu (h)",
             {"w": (7, 24), "b": (7,)}),
    "matmul": ("float[N, 5, 24] x", "h = MatMul (x, w) y = Relu (h)", {"w": (24, 7)}),
}  # fmt: skip


def _problem(
    takes: str, body: str, shapes: Mapping[str, tuple[int, ...]], bits: int
) -> tuple[Problem, BlockData, QuantPlan]:
    text = f'<ir_version: 8, opset_import: ["" : 17]> net ({takes}) => (float[N, A] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = random.normal(0, 1, shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    model = from_proto(proto)
    size = [64, *(int(d) for d in takes.split("[")[1].split("]", maxsplit=1)[0].split(",")[1:])]
    mixing = random.normal(0, 1, (size[1], size[1]))  # correlated inputs, off zero
    x = np.einsum("ij,nj...->ni...", mixing, random.normal(0.5, 1, size))
    x = (x + np.roll(x, 1, axis=-1)).astype(np.float32)
    points = find_points(model)
    recipe = Recipe(weights=bits, first_last=bits, activations=None, threads=1)
    plan = calibrate(model, points, Dataset({"x": x}), recipe)
    block = import_block(model)
    with torch.no_grad():
        targets = {n: v.numpy() for n, v in block.run({"x": torch.from_numpy(x)}).items()}
    layer = next(iter(points.layers.values()))
    constants = {n: model.initializers[n] for n in (layer.weight, layer.bias) if n is not None}
    problem = Problem(block, False, plan, points, model.nodes, (), constants)  # type: ignore[arg-type]
    return problem, BlockData({"x": x}, {"x": x}, targets, {}), plan


def _error(
    problem: Problem, data: BlockData, weights: QuantPlan, biases: Mapping[str, np.ndarray]
) -> float:
    constants = {n: torch.from_numpy(np.array(b)) for n, b in biases.items()}
    for name in problem.constants:
        if name in weights.tensors:
            quant = weights.tensors[name]
            constants[name] = torch.from_numpy(affine.dequantize(quant.levels, quant))  # type: ignore[arg-type]
    with torch.no_grad():
        made = problem.block.run(
            {n: torch.from_numpy(a) for n, a in data.inputs.items()}, constants
        )
    return sum(float(np.square(made[n].numpy() - t).mean()) for n, t in data.targets.items())


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("takes", "body", "shapes"), _LAYERS.values(), ids=_LAYERS)
def test_outputs_are_nearer_than_with_nearest_rounding(
    takes: str, body: str, shapes: Mapping[str, tuple[int, ...]], bits: int
) -> None:
    problem, data, plan = _problem(takes, body, shapes, bits)
    found = round_second_order(problem, data, seed=0)
    learned = plan.updated(found.tensors, found.biases)
    nearest = _error(problem, data, plan, {})
    assert _error(problem, data, learned, found.biases) < 0.9 * nearest
    for name, quant in found.tensors.items():
        assert quant.levels is not None
        assert quant.levels.shape == problem.constants[name].shape
        np.testing.assert_array_equal(quant.scale, plan.tensors[name].scale)


def test_the_bias_takes_in_the_mean_error() -> None:
    problem, data, _ = _problem(*_LAYERS["gemm"][:2], _LAYERS["gemm"][2], bits=2)
    found = round_second_order(problem, data, seed=0)
    (weight,) = found.tensors.values()
    (bias,) = found.biases.values()
    made = affine.dequantize(weight.levels, weight)  # type: ignore[arg-type]
    x, (float_weight, float_bias) = data.inputs["x"], problem.constants.values()
    error = x @ made.T + bias - (x @ np.asarray(float_weight).T + float_bias)
    spread = np.abs(x @ (made - float_weight).T).max()
    # All 64 rows are drawn with replacement some 64 times each: the mean is known to 2 %.
    assert np.abs(error.mean(axis=0)).max() < 0.05 * spread


def test_the_same_seed_gives_the_same_levels() -> None:
    problem, data, _ = _problem(*_LAYERS["conv"][:2], _LAYERS["conv"][2], bits=4)
    first, second = (round_second_order(problem, data, seed=3).tensors for _ in range(2))
    for name, quant in first.items():
        np.testing.assert_array_equal(quant.levels, second[name].levels)


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    quant = affine.weight_quant(weight[0].numpy(), QType(4, "signed"), 0, np.zeros(6, np.float32))
    levels = _rounded(weight, torch.eye(16)[None], quant, 1)
    np.testing.assert_array_equal(levels[0].numpy(), quant.levels)


def test_pieces_are_put_together_again() -> None:
    weight = torch.arange(2 * 3 * 8, dtype=torch.float32).reshape(2, 3, 8)
    assert torch.equal(_joined(_split(weight, 4), 4), weight)
    assert torch.equal(_split(weight, 4)[1], weight[0, :, 2:4])
