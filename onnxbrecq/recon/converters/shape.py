"""Shapes, and tensors made from shapes. Shapes and axes are tensors: constants, or computed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator
from onnxbrecq.recon.converters.types import torch_dtype


@operator("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The dimensions from `start` to `end`, int64."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def size(x: Tensor) -> Tensor:
    """The number of elements, int64."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", since=5)
def reshape(x: Tensor, wanted: Tensor, *, allowzero: int = 0) -> Tensor:
    """0 copies the input's dimension unless `allowzero`; -1 is what is left."""
    dims = wanted.tolist()
    if not allowzero:
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return torch.reshape(x, dims)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """[product of the dimensions before `axis`, product of the others]."""
    cut = axis + x.ndim if axis < 0 else axis
    rows = 1
    for dim in x.shape[:cut]:
        rows *= dim
    return x.reshape(rows, x.numel() // rows if rows else -1)


@operator("Squeeze", until=12)
def squeeze_attribute(x: Tensor, *, axes: Sequence[int] = ()) -> Tensor:
    """Drops the axes (an attribute up to opset 12), or all of size 1."""
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


@operator("Squeeze", since=13)
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drops the axes, or all of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.reshape(-1).tolist()))


@operator("Unsqueeze", until=12)
def unsqueeze_attribute(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """Axes (an attribute up to opset 12) of size 1 at these places of the result."""
    return _unsqueezed(x, axes)


@operator("Unsqueeze", since=13)
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """Axes of size 1 at these places of the result."""
    return _unsqueezed(x, axes.reshape(-1).tolist())


def _unsqueezed(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] = ()) -> Tensor:
    """The axes in the order `perm`; reversed if it is not given."""
    return x.permute(tuple(perm) or tuple(reversed(range(x.ndim))))


@operator("Expand")
def expand(x: Tensor, wanted: Tensor) -> Tensor:
    """Broadcast both ways: a dimension of 1 in `wanted` keeps the input's."""
    shape = torch.broadcast_shapes(x.shape, tuple(wanted.tolist()))  # type: ignore[no-untyped-call]
    return x.expand(shape)


@operator("Tile", since=6)
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeats along every axis."""
    return x.repeat(repeats.tolist())


@operator("ConstantOfShape")
def constant_of_shape(dims: Tensor, *, value: Tensor | None = None) -> Tensor:
    """`value` (float 0 by default) everywhere."""
    filling = torch.zeros(1) if value is None else value
    return torch.full(dims.tolist(), filling.item(), dtype=filling.dtype)


@operator("Range")
def arange(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """start, start + delta, ... below limit."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("EyeLike")
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on diagonal k."""
    kind = x.dtype if dtype is None else torch_dtype(dtype)
    return torch.diag_embed(torch.ones(max(x.shape)), k)[: x.shape[0], : x.shape[1]].to(kind)


@operator("Constant")
def constant(
    *, value: Tensor | None = None, value_float: float | None = None,
    value_floats: Sequence[float] = (), value_int: int | None = None,
    value_ints: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """The attribute that is there."""
    if value is not None:
        return value
    if value_float is not None:
        return torch.tensor(value_float)
    if value_int is not None:
        return torch.tensor(value_int)
    return torch.tensor(value_floats) if value_floats else torch.tensor(value_ints)


@operator("Trilu")
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle from diagonal k on, zeros elsewhere."""
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels into blocks of pixels; DCR: block first, CRD: channel first."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels into channels; DCR: block first, CRD (opset 25): channel first."""
    n, c, h, w = x.shape
    b = blocksize
    parts = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(n, c * b**2, h // b, w // b)


@operator("AffineGrid")
def affine_grid(theta: Tensor, dims: Tensor, *, align_corners: int = 0) -> Tensor:
    """The sampling grid of affine maps theta [N, 2, 3] (or [N, 3, 4])."""
    grid: Tensor = torch.nn.functional.affine_grid(
        theta, dims.tolist(), align_corners=bool(align_corners)
    )
    return grid
