"""ONNX operators in torch: what onnx2torch lacks, or has only for older operator sets.

A module a family of operators, each a function whose docstring says its numerics; the mechanism is
`onnxbrecq.recon.converters.operator`.
"""

from onnxbrecq.recon.converters import (  # noqa: F401 -- importing declares the operators
    activation,
    attention,
    elementwise,
    indexing,
    linear,
    normalization,
    pad,
    pooling,
    quantize,
    reduce,
    resize,
    shape,
)
from onnxbrecq.recon.converters.operator import (
    Operator,
    UnknownAttributeError,
    converter,
    operators,
)

__all__ = ["Operator", "UnknownAttributeError", "converter", "operators"]
