"""Resize: separable, so that along each axis it is a matrix of weights [out, in].

Output position i lies at x(i) in the input, by the coordinate transformation:

    half_pixel            (i + 1/2) / scale - 1/2
    half_pixel_symmetric  the same, about the centre of the unrounded output size
    pytorch_half_pixel    the same, 0 where the output has one element
    align_corners         i (in - 1) / (out - 1)
    asymmetric            i / scale
    tf_crop_and_resize    start (in - 1) + i (end - start) (in - 1) / (out - 1)

Linear weighs the two neighbours, cubic four (Keys, 1981, with `cubic_coeff_a`); with `antialias`
the filter is stretched by 1 / scale when sampling down. Neighbours outside are clamped to the edge,
or left out and the rest renormalised (`exclude_outside`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator


@dataclass(frozen=True)
class _Axis:
    """One resized axis."""

    size: int
    scale: float
    out: int
    start: float
    end: float


@dataclass(frozen=True)
class _Rule:
    """What holds for every axis."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@operator("Upsample", since=9, until=9)
def upsample(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Resize with asymmetric coordinates, rounded down."""
    return _resized_down(x, scales, mode)


@operator("Resize", since=10, until=10)
def resize_10(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Opset 10: asymmetric coordinates, rounded down."""
    return _resized_down(x, scales, mode)


def _resized_down(x: Tensor, scales: Tensor, mode: str) -> Tensor:
    rule = _Rule(mode, "asymmetric", "floor", -0.75, False, False, 0.0)
    axes = [
        _Axis(size, scale, math.floor(size * scale), 0.0, 1.0)
        for size, scale in zip(x.shape, scales.tolist(), strict=True)
    ]
    return _resized(x, dict(enumerate(axes)), rule)


@operator("Resize", since=11)
def resize(
    x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None,
    sizes: Tensor | None = None, *, antialias: int = 0, axes: Sequence[int] = (),
    coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:  # fmt: skip
    """To scales or sizes, of the given axes (all by default)."""
    chosen = [axis % x.ndim for axis in axes] or list(range(x.ndim))
    rule = _Rule(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a,
        bool(exclude_outside), bool(antialias), extrapolation_value,
    )  # fmt: skip
    dims = [x.shape[axis] for axis in chosen]
    if sizes is not None and sizes.numel():
        outs, factors = _sized(dims, sizes.tolist(), keep_aspect_ratio_policy)
    else:
        assert scales is not None
        factors = scales.tolist()
        outs = [math.floor(size * scale) for size, scale in zip(dims, factors, strict=True)]
    count = len(chosen)
    region = [0.0] * count + [1.0] * count
    if rule.coordinates == "tf_crop_and_resize" and roi is not None:
        region = roi.tolist()
    plan = {
        axis: _Axis(dims[i], factors[i], outs[i], region[i], region[count + i])
        for i, axis in enumerate(chosen)
    }
    return _resized(x, plan, rule)


def _sized(
    dims: Sequence[int], wanted: Sequence[int], policy: str
) -> tuple[list[int], list[float]]:
    """Output sizes and scales; keeping the aspect ratio takes one scale for all axes."""
    ratios = [want / size for want, size in zip(wanted, dims, strict=True)]
    if policy == "stretch":
        return list(wanted), ratios
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(size * ratio + 0.5) for size in dims], [ratio] * len(dims)


def _resized(x: Tensor, plan: dict[int, _Axis], rule: _Rule) -> Tensor:
    outside: dict[int, Tensor] = {}
    for axis, part in plan.items():
        if part.out == part.size and part.scale == 1.0 and rule.coordinates != "tf_crop_and_resize":
            continue
        place = _coordinates(part, rule.coordinates)
        if rule.coordinates == "tf_crop_and_resize":
            outside[axis] = (place < 0) | (place > part.size - 1)
        if rule.mode == "nearest":
            x = x.index_select(axis, _nearest(place, rule.nearest).clamp(0, part.size - 1))
        else:
            weights = _weights(place, part, rule).to(x.dtype)
            x = torch.tensordot(x, weights, dims=([axis], [1])).movedim(-1, axis)
    for axis, beyond in outside.items():
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        x = torch.where(beyond.reshape(shape), x.new_tensor(rule.extrapolation), x)
    return x


def _coordinates(part: _Axis, kind: str) -> Tensor:
    """Where each output position lies in the input, float64 [out]."""
    i = torch.arange(part.out, dtype=torch.float64)
    if kind == "asymmetric":
        return i / part.scale
    if kind == "align_corners":
        exact = part.size * part.scale
        return i * ((part.size - 1) / (exact - 1)) if exact != 1 else torch.zeros_like(i)
    if kind == "tf_crop_and_resize":
        if part.out == 1:
            return i + (part.start + part.end) * (part.size - 1) / 2
        step = (part.end - part.start) * (part.size - 1) / (part.out - 1)
        return part.start * (part.size - 1) + i * step
    if kind == "pytorch_half_pixel" and part.size * part.scale <= 1:
        return torch.zeros_like(i)
    shift = 0.0
    if kind == "half_pixel_symmetric":
        shift = part.size / 2 * (1 - part.out / (part.size * part.scale))
    elif kind not in ("half_pixel", "pytorch_half_pixel"):
        raise ValueError(f"Resize: coordinate transformation {kind!r} is not known")
    return shift + (i + 0.5) / part.scale - 0.5


def _nearest(place: Tensor, kind: str) -> Tensor:
    rounding: dict[str, Callable[[Tensor], Tensor]] = {
        "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
        "floor": torch.floor,
        "ceil": torch.ceil,
    }
    return rounding[kind](place).to(torch.int64)


def _weights(place: Tensor, part: _Axis, rule: _Rule) -> Tensor:
    """[out, in]: how much each input element counts in each output element."""
    stretch = min(part.scale, 1.0) if rule.antialias else 1.0
    reach = math.ceil((2 if rule.mode == "cubic" else 1) / stretch)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    neighbours = torch.floor(place)[:, None] + offsets  # [out, 2 reach + 1]
    distance = (neighbours - place[:, None]).abs() * stretch
    values = _cubic(distance, rule.cubic) if rule.mode == "cubic" else (1 - distance).clamp(min=0)
    inside = (neighbours >= 0) & (neighbours < part.size)
    if rule.exclude_outside:
        values = values * inside
    if rule.exclude_outside or rule.antialias:
        values = values / values.sum(1, keepdim=True)
    weights = torch.zeros(part.out, part.size, dtype=torch.float64)
    index = neighbours.clamp(0, part.size - 1).to(torch.int64)
    return weights.scatter_add(1, index, values)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel of the distance in pixels."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


@operator("GridSample", since=16)
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """Sampled at the grid's places; opset 16 calls the modes bilinear and bicubic."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    made: Tensor = torch.nn.functional.grid_sample(
        x, grid, modes.get(mode, mode), padding_mode, bool(align_corners)
    )
    return made
