"""An onnxruntime session: silent, on the CPU provider, whose failures are one-line ModelErrors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxbrecq.errors import DataError, ModelError, is_memory
from onnxbrecq.graph.write import contents, is_large
from onnxbrecq.progress import Progress, silent
from onnxbrecq.runtime.cache import Storage, Stored

if TYPE_CHECKING:  # emission needs sessions, but no data
    from onnxbrecq.data.dataset import Dataset, Feed

Outputs = dict[str, NDArray[np.generic]]

PROVIDER = "CPUExecutionProvider"

_SEVERITY_FATAL = 4
# Of all its exceptions onnxruntime makes only some public; each derives from Exception directly.
_STATE = ort.capi.onnxruntime_pybind11_state
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(
        getattr(_STATE, name)
        for name in (
            "EPFail",
            "EngineError",
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "NoModel",
            "NoSuchFile",
            "NotImplemented",
            "RuntimeException",
        )
    ),
    RuntimeError,
    ValueError,
)

# How onnxruntime 1.32 says that it lacks a kernel or knows no such operator
# (test_missing_kernel_is_named in tests/runtime/test_session.py).
_NO_KERNEL = (
    r"Could not find an implementation for (?P<domain>)(?P<op>[\w.]+)\(\d+\) node with name "
    r"'(?P<name>.*?)'",
    r"(?P<domain>[\w.]+):(?P<op>\w+)\(-?\d+\) is not a registered function/op",
    r'In Node, \("(?P<name>.*?)", (?P<op>\w+), "(?P<domain>.*?)", -?\d+\).*No Op registered for',
)


class Runner(Protocol):
    """What runs a model: graph inputs by name in, graph outputs by name out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed) -> Outputs:
        """Every graph output, for one feed of every graph input."""
        ...


class Session:
    """A model ready to run on the CPU provider.

    Attributes:
        inputs: graph input names, in order.
        outputs: graph output names, in order.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        *,
        optimize: bool = True,
        threads: int | None = None,
        options: ort.SessionOptions | None = None,
    ) -> None:
        """Opens `model`.

        Args:
            model: a model in memory, or its file (which may have external data).
            optimize: False switches every graph optimisation off, so that nodes run as written.
            threads: of one operator; None: all cores.
            options: those of `session_options`, changed; None: as they are, for `threads`.

        Raises:
            ModelError: onnxruntime cannot read the model, or has no kernel for an operator.
        """
        options = options or session_options(threads)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._ort = open_session(model, options)
        self.inputs = tuple(value.name for value in self._ort.get_inputs())
        self.outputs = tuple(value.name for value in self._ort.get_outputs())

    def run(self, feed: Feed) -> Outputs:
        """Every graph output by name, for one feed of every graph input.

        A sequence or a map is one row of all the values in it.

        Raises:
            ModelError: onnxruntime refuses the feed or fails in a kernel.
        """
        missing = [name for name in self.inputs if name not in feed]
        if missing:
            raise ModelError(
                f"input {missing[0]!r} is missing from the data, which has {sorted(feed)}; "
                f"give an array for each of {list(self.inputs)}"
            )
        try:
            values = self._ort.run(None, {name: feed[name] for name in self.inputs})
        except ORT_ERRORS as error:
            _check_memory(error)
            raise ModelError(f"onnxruntime cannot run the model: {explained(error)}") from error
        return dict(zip(self.outputs, map(_array, values), strict=True))

    def end_profiling(self) -> str:
        """The path of the profile that the session wrote, now complete."""
        return str(self._ort.end_profiling())


def run_batches(
    session: Session,
    data: Dataset,
    batch_size: int,
    storage: Storage,
    *,
    progress: Progress = silent,
    stage: str = "run",
) -> dict[str, Stored]:
    """Every graph output by name for all samples, along axis 0.

    Args:
        session: the model.
        data: samples along axis 0.
        batch_size: samples a run; 1 where the model's batch dimension is fixed to 1.
        storage: where they are kept.
        progress: told of each batch.
        stage: the name it is told.

    Raises:
        DataError: there are no samples.
        ModelError: a run fails, or an output has another size in another batch.
        OutputError: the storage is full.
    """
    _check_samples(data)
    kept: dict[str, Stored] = {}
    done = 0
    for feed in data.batches(batch_size):
        for name, value in session.run(feed).items():
            if name not in kept:
                kept[name] = storage.new(len(data), value.shape[1:], value.dtype)
            _append(storage, name, kept[name], value)
        done = min(done + batch_size, len(data))
        progress(stage, done, len(data))
    return kept


def paired_runs(
    a: Runner,
    b: Runner,
    data: Dataset,
    batch_size: int,
    *,
    progress: Progress = silent,
    stage: str = "compare",
) -> Iterator[tuple[Outputs, Outputs]]:
    """The outputs of both for each batch of `data`; only one batch is held.

    Raises:
        DataError: there are no samples.
        ModelError: a run fails.
    """
    _check_samples(data)
    done = 0
    for feed in data.batches(batch_size):
        yield a.run(feed), b.run(feed)
        done = min(done + batch_size, len(data))
        progress(stage, done, len(data))


def session_options(threads: int | None) -> ort.SessionOptions:
    """Options every session shares: silent, optimised, `threads` of one operator."""
    options = ort.SessionOptions()
    options.log_severity_level = _SEVERITY_FATAL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # A thread that spins while it waits takes a core from torch, which runs in turn with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86 1.32 turns INT8 activations into UINT8, and breaks those of a QuantizeLinear that it
    # moved in front of a Reshape (test_signed_activations_load). It has kernels for INT8 as well.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return options


def open_session(
    model: onnx.ModelProto | Path, options: ort.SessionOptions
) -> ort.InferenceSession:
    """The onnxruntime session of `model` on the CPU provider.

    Raises:
        ModelError: it does not load.
    """
    with readable(model) as source:
        try:
            return ort.InferenceSession(source, options, providers=[PROVIDER])
        except ORT_ERRORS as error:
            _check_memory(error)
            raise _unloadable(model, error) from error


@contextmanager
def readable(model: onnx.ModelProto | Path) -> Iterator[bytes | str]:
    """What runtimes read: a path, bytes, or the path of a temporary file over 2 GiB."""
    if isinstance(model, Path):
        yield str(model)
    elif not is_large(model):
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory() as folder:
            for name, parts in contents(model, "model.onnx").items():
                with (Path(folder) / name).open("wb") as file:
                    file.writelines(parts)
            yield str(Path(folder) / "model.onnx")


def _check_memory(error: Exception) -> None:
    """Raises MemoryError where onnxruntime ran out of memory: that says nothing of the model."""
    if is_memory(error):
        raise MemoryError(explained(error)) from error


def explained(error: Exception) -> str:
    """What an onnxruntime exception says, one line, without its code and its source lines."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)\s*(const )?", "", text)


def _array(value: object) -> NDArray[np.generic]:
    """A tensor as it is; of sequences, maps and absent values one row of what they hold."""
    if isinstance(value, np.ndarray):
        return value
    if value is None or isinstance(value, list | dict):
        parts = list(value.values() if isinstance(value, dict) else value or ())
        rows = [_array(part).reshape(-1) for part in parts]
        return np.concatenate(rows) if rows else np.zeros(0, np.float32)
    return np.asarray(value)


def _unloadable(model: onnx.ModelProto | Path, error: Exception) -> ModelError:
    text = explained(error)
    where = f"{model}: " if isinstance(model, Path) else ""
    for pattern in _NO_KERNEL:
        found = re.search(pattern, text)
        if found:
            domain, op = found["domain"], found["op"]
            if not domain:  # onnxruntime then writes "my.domain.Op"
                domain, _, op = op.rpartition(".")
            name = found.groupdict().get("name") or _first_node(model, op, domain)
            return ModelError(
                f"{where}node {name!r}: operator {op} of domain {domain or 'ai.onnx'!r} has no "
                f"kernel in onnxruntime {ort.__version__} for its version and input types; "
                "replace it, or install an onnxruntime that has it"
            )
    return ModelError(f"{where}onnxruntime cannot load the model: {text}")


def _first_node(model: onnx.ModelProto | Path, op: str, domain: str) -> str:
    """The name of the first node with this operator; onnxruntime does not always give it."""
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    names = (n.name for n in model.graph.node if (n.op_type, n.domain) == (op, domain))
    return next(names, "")


def _check_samples(data: Dataset) -> None:
    if len(data) == 0:
        raise DataError(f"{data.origin or 'the data'} holds no samples; give at least one")


def _append(storage: Storage, name: str, kept: Stored, value: NDArray[np.generic]) -> None:
    try:
        storage.append(kept, value)
    except ValueError as error:
        raise ModelError(
            f"output {name!r} has the shape {value.shape} in one batch and {kept.shape} in those "
            "before: samples must lie along axis 0 and outputs have one size"
        ) from error
