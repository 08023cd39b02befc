"""Tensors within a graph: of what onnxruntime really executes, of what is written, of constants."""

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.graph.model import node_inputs
from onnxbrecq.graph.outline import constant_tensors
from onnxbrecq.runtime.session import Session, open_session, session_options


def optimized(
    model: onnx.ModelProto | Path, threads: int | None = None, *, weights: bool = True
) -> onnx.ModelProto:
    """The model as a default session executes it; without `weights`, the large ones are not read.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = session_options(threads)
        options.optimized_model_filepath = str(path)
        # Weights go to a file of their own: no 2 GiB limit, and nothing to read where not wanted.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        open_session(model, options)
        return onnx.load(path, load_external_data=weights)


def trace(executed: onnx.ModelProto, threads: int | None = None) -> Session:
    """A session of an optimised model that gives out every tensor, computed by the same kernels.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    made = [name for node in executed.graph.node for name in node.output if name]
    return showing(executed, made, threads)


def showing(model: onnx.ModelProto, names: Iterable[str], threads: int | None = None) -> Session:
    """A session that runs the nodes of `model` as written, and gives out the tensors `names` too.

    Raises:
        ModelError: onnxruntime cannot load it.
    """
    return Session(visible(model, names), optimize=False, threads=threads)


def visible(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The model with `tensors` among its outputs, behind its own."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    outputs = {value.name for value in shown.graph.output}
    shown.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in tensors if name not in outputs
    )
    return shown


def constants(model: onnx.ModelProto, names: Collection[str]) -> dict[str, NDArray[np.generic]]:
    """The tensors among `names` that depend on no input, as onnxruntime computes them.

    Raises:
        ModelError: onnxruntime cannot compute them.
    """
    graph = model.graph
    fixed = constant_tensors(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {n: numpy_helper.to_array(tensors[n]) for n in names if n in tensors}
    made = [name for name in names if name in fixed and name not in tensors]
    if not made:
        return found
    nodes: list[onnx.NodeProto] = []
    needed = set(made)
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node_inputs(node))
    alone = onnx.helper.make_graph(
        nodes[::-1],
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in made],
        [tensors[name] for name in sorted(needed & tensors.keys())],
    )
    proto = onnx.helper.make_model(
        alone, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    return {**found, **Session(proto, optimize=False, threads=1).run({})}
