"""Large constants beside the graph that is edited, rather than in it.

Protobuf frees the memory of a message as a whole: a constant that is replaced or copied inside a
model stays in memory until the model goes. So while a model is read and normalised, each large
constant is a message of its own, in a dictionary; the graph has its name, type and shape in a
tensor without values, which everything that only looks at the graph needs. When all is edited the
values move into the graph, one constant after another: never are two models in memory.
"""

import math
from collections.abc import Container

import onnx
from onnx import TensorProto

LARGE = 1024  # elements; shapes and axes are far smaller

Constants = dict[str, TensorProto]  # the large ones by name


def is_large(tensor: TensorProto) -> bool:
    """Whether the constant is kept apart."""
    return bool(math.prod(tensor.dims) > LARGE)


def add(graph: onnx.GraphProto, constants: Constants, tensor: TensorProto) -> None:
    """Edits graph and `constants`: they get one more, in its place."""
    if not is_large(tensor):
        graph.initializer.append(tensor)
        return
    constants[tensor.name] = tensor
    graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def with_values(graph: onnx.GraphProto, constants: Constants) -> Constants:
    """All constants of the main graph by name, large or not."""
    return {tensor.name: constants.get(tensor.name, tensor) for tensor in graph.initializer}


def edit_together(graph: onnx.GraphProto, constants: Constants) -> None:
    """Edits the graph: the values of its large constants move in; `constants` is empty then."""
    for tensor in graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(constants.pop(tensor.name))
    constants.clear()


def remove(graph: onnx.GraphProto, constants: Constants, names: Container[str]) -> None:
    """Edits graph and `constants`: those of these names go."""
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name in names:
            constants.pop(graph.initializer[i].name, None)
            del graph.initializer[i]
