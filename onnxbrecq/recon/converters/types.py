"""ONNX element types as torch types."""

import onnx
import torch

_TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
}


def torch_dtype(data_type: int) -> torch.dtype:
    """The torch type of an onnx.TensorProto data type.

    Raises:
        ValueError: torch has none.
    """
    if data_type not in _TYPES:
        name = onnx.TensorProto.DataType.Name(data_type)
        raise ValueError(f"torch has no type for {name}")
    return _TYPES[data_type]
