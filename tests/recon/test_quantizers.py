import numpy as np
import pytest
import torch

from onnxbrecq import affine
from onnxbrecq.plan import Grid, QType
from onnxbrecq.recon.quantizers import Dropping, LearnedStep, Pull, SoftRounding

_GRIDS: list[tuple[int, Grid]] = [(2, "half"), (3, "half"), (4, "half"), (8, "signed")]


def _weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 4, 3, 3)).astype(np.float32)


@pytest.mark.parametrize(("bits", "grid"), _GRIDS, ids=[f"{g}{b}" for b, g in _GRIDS])
def test_nearest_weight_equals_the_numpy_formula(bits: int, grid: Grid) -> None:
    weight = _weight()
    quant = affine.weight_quant(weight, QType(bits, grid), 0, np.zeros(6, np.float32))
    assert quant.levels is not None
    nearest = SoftRounding(torch.from_numpy(weight), quant).nearest()
    np.testing.assert_allclose(
        nearest.detach().numpy(), affine.dequantize(quant.levels, quant), rtol=1e-6
    )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("inputs", [48, 40], ids=["whole", "ragged"])
def test_each_block_has_a_scale_that_is_learned(inputs: int, axis: int) -> None:
    shape = (6, inputs) if axis == 0 else (inputs, 6)
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    quant = affine.block_quant(weight, QType(4, "affine"), axis, 16)
    assert quant.levels is not None
    rounding = SoftRounding(torch.from_numpy(weight), quant)
    made = affine.dequantize(quant.levels, quant)
    np.testing.assert_allclose(rounding.nearest().detach().numpy(), made, rtol=1e-6)
    assert rounding.hardened() == quant
    rounding.soft().square().sum().backward()
    assert rounding.gain.grad is not None
    assert rounding.gain.grad.shape == quant.scale.shape
    with torch.no_grad():
        rounding.gain.normal_(generator=torch.Generator().manual_seed(0))
    rounding.hard = True
    learned = affine.dequantize(quant.levels, rounding.hardened())
    np.testing.assert_allclose(rounding.soft().detach().numpy(), learned, rtol=1e-6)


@pytest.mark.parametrize(("bits", "grid"), _GRIDS, ids=[f"{g}{b}" for b, g in _GRIDS])
def test_hardened_without_learning_is_nearest(bits: int, grid: Grid) -> None:
    weight = _weight(1)
    quant = affine.weight_quant(weight, QType(bits, grid), 0, np.zeros(6, np.float32))
    assert SoftRounding(torch.from_numpy(weight), quant).hardened() == quant


def test_soft_weight_starts_at_the_float_weight() -> None:
    weight = _weight(2)
    scale = np.full(6, 0.9, np.float32)  # wide enough that no weight is clipped
    quant = affine.weight_quant(weight, QType(4, "signed"), 0, scale)
    rounding = SoftRounding(torch.from_numpy(weight), quant)
    soft, gate = rounding.soft(), rounding.gate()
    # The start keeps every gate 0.01 away from 0 and 1, so that it can move.
    assert float((soft.detach() - torch.from_numpy(weight)).abs().max()) <= 0.0101 * 0.9
    assert 0 <= float(gate.detach().min()) <= float(gate.detach().max()) <= 1


@pytest.mark.parametrize("pull", [None, Pull(5.0, 0.3)], ids=["error alone", "pulled"])
def test_gradients_of_a_soft_weight_are_autograds(pull: Pull | None) -> None:
    quant = affine.weight_quant(_weight(3), QType(3, "half"), 0, np.zeros(6, np.float32))
    rounding = SoftRounding(torch.from_numpy(_weight(3)), quant).double()
    noise = torch.randn(_weight().shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rounding.rounding += noise
    slope = torch.linspace(-1, 1, noise.numel()).double().reshape(noise.shape)
    (rounding.soft(pull) * slope).sum().backward()
    found = [rounding.rounding.grad, rounding.gain.grad]
    gate = rounding.gate()
    weight = rounding.scale() * ((rounding.floor + gate) * 2 - rounding.offset)
    wanted = (weight * slope).sum()
    if pull is not None:
        wanted = wanted + pull.weight * (1 - (2 * gate - 1).abs() ** pull.beta).sum()
    expected = torch.autograd.grad(wanted, [rounding.rounding, rounding.gain])
    for made, right in zip(found, expected, strict=True):
        assert made is not None
        torch.testing.assert_close(made, right)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activation_equals_the_numpy_formula(bits: int) -> None:
    values = np.random.default_rng(3).normal(1, 2, 1000).astype(np.float32)
    quant = affine.activation_quant(values, bits)
    step = LearnedStep(quant, None, Dropping(0.5, torch.Generator())).eval()
    expected = affine.dequantize(affine.quantize(values, quant), quant)
    np.testing.assert_allclose(step(torch.from_numpy(values)).detach().numpy(), expected, rtol=1e-6)


def test_learned_step_keeps_below_the_ceiling() -> None:
    values = np.random.default_rng(4).uniform(0, 6, 1000).astype(np.float32)
    quant = affine.activation_quant(values, 4, ceiling=6.0, nonnegative=True)
    step = LearnedStep(quant, 6.0)
    with torch.no_grad():
        step.log_ratio.fill_(3.0)
    step.constrain()
    assert step.hardened().scale * np.float32(15) <= np.float32(6)  # as `emit` compares them


def test_step_gradient_is_that_of_the_error() -> None:
    """Against a finite difference of the quantization error, away from rounding ties."""
    values = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    quant = affine.activation_quant(values.numpy().astype(np.float32), 4)
    target = torch.sin(values)
    step = LearnedStep(quant, None).double()

    def error(shift: float) -> torch.Tensor:
        with torch.no_grad():
            step.log_ratio.fill_(shift)
        return ((step(values) - target) ** 2).sum()

    error(0.0).backward()
    assert step.log_ratio.grad is not None
    # With the codes fixed, value = code * s: the derivative of LSQ outside the range is exact
    # and inside it adds the straight-through term -x / s.
    scale = float(quant.scale)
    zero = int(quant.zero_point)
    code = torch.round(values / scale).clamp(-zero, 15 - zero)
    inside = torch.round(values / scale) == code
    slope = torch.where(inside, code - values / scale, code) * scale
    expected = (2 * (code * scale - target) * slope).sum()
    assert float(step.log_ratio.grad) == pytest.approx(float(expected), rel=1e-6)
