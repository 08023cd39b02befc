"""Tensors within a graph: of what onnxruntime really executes, of what is written, of constants."""

import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

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
    producer = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    needed: dict[str, onnx.NodeProto] = {}
    found = [name for name in names if _constant(name, producer, tensors, needed)]
    made = [name for name in found if name in producer]
    nodes = list({id(node): node for node in needed.values()}.values())
    read = {name for node in nodes for name in node.input}
    alone = onnx.helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in made],
        [tensors[name] for name in sorted(read & tensors.keys())],
    )
    proto = onnx.helper.make_model(
        alone, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    values = dict(Session(proto, optimize=False, threads=1).run({})) if made else {}
    plain = {n: numpy_helper.to_array(tensors[n]) for n in found if n not in producer}
    return {**values, **plain}


def _constant(
    name: str,
    producer: Mapping[str, onnx.NodeProto],
    tensors: Mapping[str, onnx.TensorProto],
    needed: dict[str, onnx.NodeProto],
) -> bool:
    """Whether `name` depends on no input; `needed` gets the nodes behind it, in order."""
    node = producer.get(name)
    if node is None:
        return name in tensors
    if name in needed:
        return True
    if not all(_constant(n, producer, tensors, needed) for n in node.input if n):
        return False
    needed[name] = node
    return True


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every tensor that depends on no input as an initializer.

    Raises:
        ModelError: onnxruntime cannot compute one.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    needed: dict[str, onnx.NodeProto] = {}
    made = [
        n
        for node in graph.node
        for n in node.output
        if n and _constant(n, producer, tensors, needed)
    ]
    gone = set(made)
    nodes = [node for node in graph.node if not gone.intersection(node.output)]
    read = {name for node in nodes for name in node.input} | {v.name for v in graph.output}
    values = constants(model, sorted(gone & read))
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    found.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return found
