"""The ONNX backend node tests, run through the bridge, and what of them is out of its reach.

A case is out of reach for a reason of its operator or of a type: it becomes an island, which runs
in onnxruntime. `tests/recon/test_backend_nodes.py` holds everything else to pass and these to fail;
`tests/benchmarks/operators.py` makes docs/operators.md of the same.
"""

import fnmatch
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxbrecq.graph.model import STANDARD_DOMAINS, Model
from onnxbrecq.recon.bridge import import_block

_CONTROL = "control flow: its bodies run in onnxruntime"
_INTEGER = "an integer kernel: the model is quantized there already"
_RANDOM = "random: no two runs agree"
_RECURRENT = "recurrent: steps through time are not reconstructed"
_SEQUENCE = "sequences and optionals are no tensors"
_SIGNAL = "signal processing in front of a network"
_STRING = "strings"
_TRAINING = "training"
_RARE = "rare in networks: an island"
OPERATORS = {
    "Bernoulli": _RANDOM,
    "BitCast": _RARE,
    "BlackmanWindow": _SIGNAL,
    "Col2Im": _RARE,
    "ConvInteger": _INTEGER,
    "DFT": _SIGNAL,
    "DeformConv": _RARE,
    "GRU": _RECURRENT,
    "HammingWindow": _SIGNAL,
    "HannWindow": _SIGNAL,
    "If": _CONTROL,
    "ImageDecoder": _SIGNAL,
    "LSTM": _RECURRENT,
    "LinearAttention": _RECURRENT,
    "Loop": _CONTROL,
    "MatMulInteger": _INTEGER,
    "MaxUnpool": _RARE,
    "MelWeightMatrix": _SIGNAL,
    "NonMaxSuppression": "its output has no gradient and no fixed size",
    "OptionalGetElement": _SEQUENCE,
    "OptionalHasElement": _SEQUENCE,
    "QLinearConv": _INTEGER,
    "QLinearMatMul": _INTEGER,
    "RNN": _RECURRENT,
    "RandomUniformLike": _RANDOM,
    "RegexFullMatch": _STRING,
    "RoiAlign": "in detectors it stands behind data-dependent boxes, in an island",
    "STFT": _SIGNAL,
    "Scan": _CONTROL,
    "SequenceAt": _SEQUENCE,
    "SequenceInsert": _SEQUENCE,
    "SequenceLength": _SEQUENCE,
    "SequenceMap": _SEQUENCE,
    "SplitToSequence": _SEQUENCE,
    "StringConcat": _STRING,
    "StringNormalizer": _STRING,
    "StringSplit": _STRING,
    "TensorScatter": _RARE,
    "TfIdfVectorizer": _STRING,
    "Unique": "its output has no fixed size",
}
_TYPES = {
    TensorProto.BFLOAT16: "numpy has no bfloat16 to feed (such models are float32 inside)",
    TensorProto.STRING: _STRING,
    **dict.fromkeys(
        (
            TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2,
            TensorProto.FLOAT8E5M2FNUZ, TensorProto.FLOAT8E8M0, TensorProto.FLOAT4E2M1,
            TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2,
        ),
        "torch has no such type to compute with",
    ),
}  # fmt: skip
_UNSIGNED = "torch does not compute with unsigned integers of 16 to 64 bits"
_CASES = {
    "test_training_dropout*": _TRAINING,
    "test_batchnorm_*_training_mode": _TRAINING,
    "test_causal_conv_with_state*_with_past_state": "onnx's inliner fails on it (onnx 1.23)",
    **{
        f"test_{name}_uint{bits}{suffix}": _UNSIGNED
        for name in ("add", "sub", "div", "mod", "max", "min", "greater", "less", "greater_equal",
                     "less_equal")
        for bits in (16, 32, 64)
        for suffix in ("", "_expanded")
    },
    "test_bitwise_not_3d": _UNSIGNED,
}  # fmt: skip

_HALF_STEP = 2.0**-10  # float16; sums of a few such values are off by a step or two


@cache
def cases() -> dict[str, Any]:
    """Every case by name; only those of ONNX's own domain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow and 0 / 0 are what some cases are about
        found = collect_testcases(None)
    return {
        case.name: case
        for case in found
        if all(n.domain in STANDARD_DOMAINS for n in case.model.graph.node)
    }


def reason(case: Any) -> str | None:
    """Why the bridge does not take the case over; None: it has to."""
    for pattern, why in _CASES.items():
        if fnmatch.fnmatch(case.name, pattern):
            return why
    for node in case.model.graph.node:
        if node.op_type in OPERATORS:
            return OPERATORS[node.op_type]
    kinds = {value.type.tensor_type.elem_type for value in _values(case.model.graph)}
    kinds |= {item.t.data_type for n in case.model.graph.node for item in n.attribute}
    return next((why for kind, why in _TYPES.items() if kind in kinds), None)


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output


def check(case: Any) -> None:
    """Imports the case into torch and compares its outputs with the expected ones.

    The relative tolerance is the case's own; the absolute one a few float32 (or float16) roundings
    of the largest value, and half a unit of the fourth decimal, to which some cases are rounded.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(case.model)
    except onnx.shape_inference.InferenceError:
        proto = case.model
    block = import_block(Model(proto, ((), ()), batched=False))
    for inputs, outputs in case.data_sets:
        names = [value.name for value in proto.graph.input]
        made = block.arrays({n: _array(a) for n, a in zip(names, inputs, strict=True)})
        for value, expected in zip(proto.graph.output, outputs, strict=True):
            _compare(made[value.name], _array(expected), case.rtol)


def _compare(made: NDArray[Any], expected: NDArray[Any], rtol: float) -> None:
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(made, expected)
        return
    finite = np.abs(expected[np.isfinite(expected)]).max(initial=1e-3)
    step = 2 * _HALF_STEP if expected.dtype == np.float16 else 4e-6
    atol = step * float(finite) + 5e-5
    np.testing.assert_allclose(made, expected, rtol=rtol, atol=atol)


def _array(value: object) -> NDArray[Any]:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
