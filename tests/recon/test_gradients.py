"""The converters' gradients, by finite differences in float64."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from onnxbrecq.graph.model import Model
from onnxbrecq.recon.bridge import import_block
from onnxbrecq.recon.converters.linear import conv

_SHAPE = (2, 4, 6, 6)
_CASES = {
    "Conv": ('y = Conv <pads = [1, 0, 1, 2], group = 2> (x, w)', {"w": (4, 2, 3, 3)}),
    "ConvTranspose": ("y = ConvTranspose <strides = [2, 2]> (x, w)", {"w": (4, 3, 2, 2)}),
    "Gemm": ("f = Flatten (x) y = Gemm <alpha = 0.5> (f, w, b)", {"w": (144, 3), "b": (3,)}),
    "MatMul": ("y = MatMul (x, w)", {"w": (6, 5)}),
    "AveragePool": (
        "y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], "
        "ceil_mode = 1> (x)", {},
    ),
    "MaxPool": ("y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", {}),
    "HardSwish": ("y = HardSwish (x)", {}),
    "Gelu": ('y = Gelu <approximate = "tanh"> (x)', {}),
    "Softmax": ("y = Softmax <axis = 1> (x)", {}),
    "LayerNormalization": ("y = LayerNormalization (x, w, b)", {"w": (6,), "b": (6,)}),
    "GroupNormalization": (
        "y = GroupNormalization <num_groups = 2> (x, w, b)", {"w": (4,), "b": (4,)},
    ),
    "PRelu": ("y = PRelu (x, w)", {"w": (4, 1, 1)}),
    "Pow": ("s = Sigmoid (x) y = Pow (s, w)", {"w": (6,)}),
    "ReduceL2": ("a = Constant <value_ints = [2, 3]> () y = ReduceL2 (x, a)", {}),
    "Pad": (
        'p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 2, 1]> () y = Pad <mode = "reflect"> (x, p)',
        {},
    ),
    "Resize": (
        's = Constant <value_floats = [1.0, 1.0, 1.5, 2.0]> () '
        'y = Resize <mode = "cubic"> (x, , s)', {},
    ),
    "Slice": (
        "a = Constant <value_ints = [5]> () b = Constant <value_ints = [-7]> () "
        "c = Constant <value_ints = [2]> () d = Constant <value_ints = [-2]> () "
        "y = Slice (x, a, b, c, d)", {},
    ),
    "Attention": ("y = Attention <is_causal = 1> (x, x, x)", {}),
    "LRN": ("y = LRN <size = 3> (x)", {}),
}  # fmt: skip


@pytest.mark.parametrize(("group", "stride", "kind"), [
    (1, 2, torch.bfloat16), (4, 1, torch.bfloat16), (4, 2, torch.float32),
])  # fmt: skip
def test_autocast_leaves_out_what_it_would_slow_down(
    group: int, stride: int, kind: torch.dtype
) -> None:
    x, weight = torch.ones(2, 4, 6, 6), torch.ones(4, 4 // group, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        made = conv(x.bfloat16(), weight, strides=[stride, stride], group=group)
    assert made.dtype == kind


@pytest.mark.parametrize("operator", _CASES)
def test_gradients_are_those_of_the_definition(operator: str) -> None:
    body, weights = _CASES[operator]
    text = f"""
    <ir_version: 11, opset_import: ["" : 23]>
    graph (float[2, 4, 6, 6] x) => (float[A, B, C, D] y) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    block = import_block(Model(proto, ((), ()), batched=False))
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in (_SHAPE, *weights.values())
    ]

    def made(*tensors: torch.Tensor) -> torch.Tensor:
        return block.run(dict(zip(("x", *weights), tensors, strict=True)))["y"]

    assert torch.autograd.gradcheck(made, values, fast_mode=True)
