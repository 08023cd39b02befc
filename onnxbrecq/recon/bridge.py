"""Import of a block into torch: the only importer of onnx2torch.

Each node is converted by onnx2torch's registry; the block is then executed by tensor name, so
that a weight can be replaced and an activation quantized by its ONNX name without a parallel
hierarchy of quantized modules.
"""

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxbrecq.graph.model import STANDARD_DOMAINS, Model, attribute
from onnxbrecq.graph.points import find_points
from onnxbrecq.recon.converters import CONVERTERS

Hook = Callable[[Tensor], Tensor]

# Versions that changed nothing but types, or added an attribute or input whose absence means the
# former behaviour: operator → (newest version this holds for, names and arity that must be absent).
_COMPATIBLE: Mapping[str, tuple[int, frozenset[str], int]] = {
    "AveragePool": (22, frozenset({"dilations"}), 1),
    "Cast": (25, frozenset({"round_mode"}), 1),
    "Conv": (22, frozenset(), 3),
    "ConstantOfShape": (25, frozenset(), 1),
    "ConvTranspose": (22, frozenset(), 3),
    "Equal": (19, frozenset(), 2),
    "Flatten": (25, frozenset(), 1),
    "GlobalAveragePool": (22, frozenset(), 1),
    "GlobalMaxPool": (22, frozenset(), 1),
    "HardSigmoid": (22, frozenset(), 1),
    "HardSwish": (22, frozenset(), 1),
    "Identity": (25, frozenset(), 1),
    "InstanceNormalization": (22, frozenset(), 3),
    "MaxPool": (22, frozenset(), 1),
    "Pad": (25, frozenset(), 3),
    "Reshape": (25, frozenset(), 2),
    "Shape": (25, frozenset(), 1),
    "Split": (18, frozenset({"num_outputs"}), 2),
    "Squeeze": (25, frozenset(), 2),
    "Transpose": (25, frozenset(), 1),
    "Unsqueeze": (25, frozenset(), 2),
}


class _Mapping(NamedTuple):
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class BridgeError(Exception):
    """A node that torch cannot take over; its block becomes an island."""


@dataclass(frozen=True)
class _Step:
    """One node: its module, the tensors it takes, the tensors it makes."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: str | None = None  # initializer that `constants` may replace
    bias: str | None = None  # likewise
    prefix: str | None = None  # of the module's own weight and bias; None: they are inputs
    transposed: bool = False  # the module keeps the transpose of the weight


class TorchBlock(nn.Module):
    """A float block in torch, executed by ONNX tensor name."""

    def __init__(
        self,
        steps: tuple[_Step, ...],
        model: Model,
        constants: Mapping[str, Tensor],
    ) -> None:
        """Of the `steps` of `model`; `constants` are the initializers that the steps take."""
        super().__init__()
        self.modules_ = nn.ModuleList(step.module for step in steps)
        self.inputs = model.inputs
        self.outputs = model.outputs
        self._steps = steps
        self._constants = dict(constants)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def run(
        self,
        feed: Mapping[str, Tensor],
        constants: Mapping[str, Tensor] | None = None,
        hooks: Mapping[str, Hook] | None = None,
    ) -> dict[str, Tensor]:
        """The block's outputs by name.

        Args:
            feed: every input of the block.
            constants: a layer's weight or bias, by initializer name → tensor used in its place,
                in ONNX layout.
            hooks: tensor name → function applied to it as soon as it is computed.
        """
        constants, hooks = constants or {}, hooks or {}
        values: dict[str, Tensor] = {**self._constants, **feed}
        for step in self._steps:
            made = _run(step, values, constants)
            for name, value in zip(step.outputs, made, strict=True):
                values[name] = hooks[name](value) if name in hooks else value
        return {name: values[name] for name in self.outputs}

    def arrays(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """The float block's outputs for numpy inputs."""
        with torch.no_grad():
            made = self.run({name: torch.from_numpy(np.array(a)) for name, a in feed.items()})
        return {name: value.numpy() for name, value in made.items()}


def _run(
    step: _Step, values: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    arguments = [values[name] if name else None for name in step.inputs]
    weight, bias = constants.get(step.weight or ""), constants.get(step.bias or "")
    if weight is None and bias is None:
        result = step.module(*arguments)
    elif step.prefix is None:
        result = step.module(arguments[0], weight)
    else:
        own = {} if bias is None else {f"{step.prefix}bias": bias}
        if weight is not None:
            own[f"{step.prefix}weight"] = weight.t() if step.transposed else weight
        result = torch.func.functional_call(step.module, own, tuple(arguments))
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def import_block(model: Model) -> TorchBlock:
    """The block `model` (see `onnxbrecq.graph.extract`) in torch, in evaluation mode, float32.

    Raises:
        BridgeError: an operator has no converter, or the converter refuses the node.
    """
    layers = find_points(model).layers
    graph = _onnx2torch("onnx2torch.onnx_graph").OnnxGraph(model.proto.graph)
    steps = []
    for converted, node in zip(graph.nodes.values(), model.nodes, strict=True):
        module, mapping = _convert(converted, node, graph, model.opset, model.initializers)
        layer = layers.get(node.name)
        owned = [n for n, _ in module.named_parameters() if n.endswith("weight")] if layer else []
        steps.append(
            _Step(
                module,
                tuple(mapping.inputs),
                tuple(name for name in mapping.outputs if name),
                layer.weight if layer else None,
                layer.bias if layer else None,
                owned[0].removesuffix("weight") if owned else None,
                node.op_type == "Gemm" and not attribute(node, "transB", 0),
            )
        )
    constants = {
        name: torch.from_numpy(np.array(array)) for name, array in model.initializers.items()
        if any(name in step.inputs for step in steps)
    }  # fmt: skip
    return TorchBlock(tuple(steps), model, constants).eval()


def _convert(
    converted: Any,
    node: onnx.NodeProto,
    graph: Any,
    opset: int,
    constants: Mapping[str, NDArray[np.generic]],
) -> tuple[nn.Module, Any]:
    """onnx2torch's module for the node, and the tensors it takes and makes."""
    registry = _onnx2torch("onnx2torch.node_converters.registry")
    own = CONVERTERS.get(node.op_type)
    module = own(node, constants) if own and node.domain in STANDARD_DOMAINS else None
    if module is not None:
        return module, _Mapping(tuple(node.input[:1]), tuple(node.output))
    if node.domain not in STANDARD_DOMAINS:
        raise BridgeError(f"node {node.name}: {node.domain}.{node.op_type} has no converter")
    try:
        converter = registry.get_converter(node.op_type, _version(registry, node, opset))
        module, mapping = converter(converted, graph)
    except (NotImplementedError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise BridgeError(f"node {node.name} ({node.op_type}-{opset}): {error}") from error
    return module, mapping


def _version(registry: Any, node: onnx.NodeProto, opset: int) -> int:
    """The operator version to look up: the current one, or the newest it is compatible with."""
    current = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset).since_version
    known = sorted(
        key.version
        for key in registry._CONVERTER_REGISTRY
        if key.operation_type == node.op_type and key.domain == onnx.defs.ONNX_DOMAIN
    )
    if current in known or not known or node.op_type not in _COMPATIBLE:
        return int(current)
    newest, absent, arity = _COMPATIBLE[node.op_type]
    used = {item.name for item in node.attribute}
    if current > newest or used & absent or len([n for n in node.input if n]) > arity:
        return int(current)
    return max((v for v in known if v <= current), default=int(current))


@cache
def _onnx2torch(module: str) -> Any:
    """A module of onnx2torch.

    onnx2torch imports torchvision for two operators that are islands here anyway. Where the
    installed torchvision was built for another torch (`operator torchvision::nms does not
    exist`: the PyPI wheel beside a CPU-only torch), a placeholder stands in for it during the
    import, so that both installs work.
    """
    try:
        importlib.import_module("torchvision")
        importlib.import_module("onnx2torch")
    except (ImportError, RuntimeError, OSError):
        for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", "onnx2torch")]:
            del sys.modules[name]
        _import_without_torchvision()
    return importlib.import_module(module)


def _import_without_torchvision() -> None:
    def unavailable(*_: object, **__: object) -> Tensor:
        raise BridgeError("torchvision does not load beside this torch; install a matching pair")

    package, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    package.ops = ops  # type: ignore[attr-defined]
    ops.roi_align = ops.nms = ops.box_convert = unavailable  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": package, "torchvision.ops": ops})
    try:
        importlib.import_module("onnx2torch")
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.ops"]
