"""Every tensor of the graph that onnxruntime really executes."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx

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
    return Session(visible(executed, made), optimize=False, threads=threads)


def visible(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The model with `tensors` among its outputs, behind its own."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    outputs = {value.name for value in shown.graph.output}
    shown.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in tensors if name not in outputs
    )
    return shown
