"""QuantizeLinear and DequantizeLinear, per tensor, per axis or in blocks, as values in torch.

For models that come partly quantized. Rounding is half to even; the gradient of the rounding is 0,
as ONNX has it. Types that torch lacks (4 and 2 bits, float8) are refused.
"""

import onnx
import torch
from torch import Tensor

from onnxbrecq.recon.converters.operator import operator
from onnxbrecq.recon.converters.types import torch_dtype


def _along(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scale or zero point, brought to a shape that broadcasts with x."""
    if block:
        repeated = values.repeat_interleave(block, axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    if values.numel() == 1 and values.ndim <= 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


@operator("QuantizeLinear")
def quantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0, precision: int = 0, saturate: int = 1,
) -> Tensor:  # fmt: skip
    """clip(round(x / scale) + zero) in the type of the zero point."""
    kind = zero.dtype if zero is not None else torch_dtype(output_dtype or onnx.TensorProto.UINT8)
    if kind.is_floating_point:
        raise ValueError("QuantizeLinear to a float type")
    limits = torch.iinfo(kind)
    codes = torch.round(x / _along(scale, x, axis, block_size))
    if zero is not None:
        codes = codes + _along(zero, x, axis, block_size).to(codes.dtype)
    return codes.clamp(limits.min, limits.max).to(kind)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:  # fmt: skip
    """(x - zero) * scale."""
    codes = x.to(torch.float32)
    if zero is not None:
        codes = codes - _along(zero, x, axis, block_size).to(torch.float32)
    made = codes * _along(scale, x, axis, block_size).to(torch.float32)
    return made.to(torch_dtype(output_dtype) if output_dtype else scale.dtype)
