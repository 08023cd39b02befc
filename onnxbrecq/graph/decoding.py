"""Products with a constant that decode boxes: no layers, although they look like some.

Nothing in them was learned, their work is negligible, and what they compute is an answer in pixels:

- the mean of a distribution: outputs of a Softmax weighed to a single value, which is the distance
  to a side of a box (Li et al., Generalized Focal Loss, NeurIPS 2020);
- corners: boxes as centre and size times a matrix of ones and halves, as exporters write in front
  of NonMaxSuppression (WongKinYiu/yolov7, export with `--end2end`).
"""

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.model import STANDARD_DOMAINS, attribute

_MOVERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather")
_SIDES = 4  # of a box
_SHARES = (-1, -0.5, 0, 0.5, 1)  # of a centre and of a size in a corner


def decoding(
    node: onnx.NodeProto,
    weight: tuple[int, ...],
    *,
    maker: Callable[[str], onnx.NodeProto | None],
    constant: Callable[[str], NDArray[np.generic] | None],
) -> str | None:
    """What the node decodes; None: it is a layer.

    Args:
        node: a Conv, Gemm or MatMul whose second input is a constant.
        weight: its shape.
        maker: the node that makes a tensor.
        constant: the value of a constant.
    """
    if node.op_type == "ConvTranspose":
        return None
    axis = output_axis(node)
    single = len(weight) <= axis or weight[axis] == 1
    if single and _behind_softmax(node, maker):
        return "the mean of a distribution, from which boxes are decoded"
    if node.op_type == "MatMul" and weight == (_SIDES, _SIDES):
        values = constant(node.input[1])
        if values is not None and _makes_corners(values):
            return "the corners of boxes, of their centres and sizes"
    return None


def _makes_corners(values: NDArray[np.generic]) -> bool:
    """Whether each column of the matrix [4, 4] takes a share of two numbers."""
    return bool(np.isin(values, _SHARES).all() and (np.count_nonzero(values, axis=0) == 2).all())


def output_axis(node: onnx.NodeProto) -> int:
    """The output-channel axis of the weight of a Conv, Gemm or MatMul."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return 1


def _behind_softmax(node: onnx.NodeProto, maker: Callable[[str], onnx.NodeProto | None]) -> bool:
    """Whether the node reads what a Softmax made, moved at most."""
    source = maker(node.input[0])
    while source is not None and _moves(source):
        source = maker(source.input[0])
    return source is not None and source.op_type == "Softmax"


def _moves(node: onnx.NodeProto) -> bool:
    return node.domain in STANDARD_DOMAINS and node.op_type in _MOVERS
