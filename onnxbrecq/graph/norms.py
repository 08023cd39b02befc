"""What a network's own normalisations say of its activations.

Over the data that a network was trained on, the output of a BatchNormalization has in each channel
the mean beta and the deviation |gamma|. Folding makes it the output of the layer in front, under
the same name, so that what is known of it stays known.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.constants import Constants, with_values
from onnxbrecq.graph.model import STANDARD_DOMAINS, Norm


def norms(graph: onnx.GraphProto, constants: Constants) -> dict[str, Norm]:
    """Tensor name → what the BatchNormalization that makes it says of it."""
    known = with_values(graph, constants)
    found = {}
    for node in graph.node:
        if node.op_type != "BatchNormalization" or node.domain not in STANDARD_DOMAINS:
            continue
        if all(name in known for name in node.input[1:3]):
            gamma, beta = (_vector(known[name]) for name in node.input[1:3])
            found[node.output[0]] = Norm(beta, np.abs(gamma))
    return found


def _vector(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    return onnx.numpy_helper.to_array(tensor).astype(np.float32)
