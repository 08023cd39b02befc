"""A model in OpenVINO's CPU plugin, where the package `openvino` is installed (it is optional).

OpenVINO keeps the names of the nodes as written, those of a layer with what its passes append:
a Conv "a" becomes "a/WithoutBiases", a Gemm "b" "b/WithoutBiases/DequantizationMultiply".
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnxbrecq.data.dataset import Feed
from onnxbrecq.errors import ModelError
from onnxbrecq.runtime.profile import Arithmetic
from onnxbrecq.runtime.session import Outputs, readable

PROVIDER = "OpenVINO CPU"

_LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_CONVERSIONS = frozenset({"Convert", "FakeQuantize", "Reorder"})
_IDLE = "not_executed"


class OpenVinoNode(NamedTuple):
    """A node of the graph that OpenVINO executes: its name, kernel, the names of the nodes that
    went into it, what it computes with, and the mean milliseconds of a run.
    """

    name: str
    op: str
    origins: tuple[str, ...]
    arithmetic: Arithmetic
    ms: float


def installed() -> bool:
    """Whether the package is there."""
    return find_spec("openvino") is not None


class OpenVino:
    """A model ready to run on OpenVINO's CPU plugin, like `onnxbrecq.runtime.session.Session`.

    Attributes:
        inputs: graph input names, in order.
        outputs: graph output names, in order.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, *, threads: int | None = None, timed: bool = False
    ) -> None:
        """Opens `model`, in memory or its file; `timed`: the time of each node is kept.

        Raises:
            ModelError: OpenVINO cannot read or compile the model.
        """
        import openvino  # noqa: PLC0415 -- optional

        # As onnxruntime computes what is not quantized: in float32, where bfloat16 is there too.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": timed}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(_read(core, model), "CPU", options)
        except RuntimeError as error:
            where = f"{model}: " if isinstance(model, Path) else ""
            raise ModelError(
                f"{where}OpenVINO {openvino.__version__} cannot load the model: {_last(error)}"
            ) from error
        self.inputs = tuple(value.get_any_name() for value in self._compiled.inputs)
        self.outputs = tuple(value.get_any_name() for value in self._compiled.outputs)

    def run(self, feed: Feed) -> Outputs:
        """Every graph output by name, for one feed of every graph input.

        Raises:
            ModelError: OpenVINO refuses the feed or fails in a kernel.
        """
        try:
            made = self._compiled({name: feed[name] for name in self.inputs})
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run the model: {_last(error)}") from error
        return {name: np.array(made[i]) for i, name in enumerate(self.outputs)}

    def executed(self) -> tuple[OpenVinoNode, ...]:
        """What was executed so far, most of it with its time where `timed`."""
        found = []
        for op in self._compiled.get_runtime_model().get_ordered_ops():
            told = {key: _text(value) for key, value in op.get_rt_info().items()}
            spent = told.get("execTimeMcs", _IDLE)
            if spent != _IDLE:
                origins = tuple(told.get("originalLayersNames", "").split(","))
                found.append(
                    OpenVinoNode(
                        op.get_friendly_name(), told["layerType"], origins, _arithmetic(told),
                        float(spent) / 1e3,
                    )
                )  # fmt: skip
        return tuple(found)


def integer_layers(names: Sequence[str], nodes: Sequence[OpenVinoNode]) -> Mapping[str, bool]:
    """Layer name → whether a kernel that computes on integers executes it."""
    origins = {
        origin.partition("/WithoutBiases")[0]
        for node in nodes
        if node.op in _LAYERS and node.arithmetic == "integer"
        for origin in node.origins
    }
    return {name: name in origins for name in names}


def _read(core: Any, model: onnx.ModelProto | Path) -> Any:
    with readable(model) as source:
        return core.read_model(source)


def _arithmetic(told: Mapping[str, str]) -> Arithmetic:
    if told["layerType"] in _CONVERSIONS:
        return "conversion"
    precision = told.get("runtimePrecision", "")
    if precision in ("u8", "i8", "u4", "i4"):
        return "integer"
    return "float" if precision in ("f32", "f16", "bf16") else "other"


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)


def _last(error: Exception) -> str:
    """The last line of what OpenVINO says; those before name its own source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
