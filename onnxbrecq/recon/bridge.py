"""Import of a block into torch: the only importer of onnx2torch.

Each node is converted by onnx2torch's registry, which takes our own converters
(`onnxbrecq.recon.converters`) first; an operator that has none in the node's version takes that of
an older one with the same signature, or is expanded into its ONNX definition. The block is then
executed by tensor name, so that a weight can be replaced and an activation quantized by its ONNX
name without a parallel hierarchy of quantized modules.
"""

import importlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import inliner
from torch import Tensor, nn

from onnxbrecq.errors import is_memory
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model
from onnxbrecq.recon.converters import Operator, converter, operators

Hook = Callable[[Tensor], Tensor]
_EXPANSIONS = 8  # a definition may itself use operators that have to be expanded


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


class TorchBlock(nn.Module):
    """A float block in torch, executed by ONNX tensor name."""

    def __init__(
        self,
        steps: tuple[_Step, ...],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        constants: Mapping[str, Tensor],
    ) -> None:
        """Of the `steps` from `inputs` to `outputs`; `constants` are the initializers."""
        super().__init__()
        self.modules_ = nn.ModuleList(step.module for step in steps)
        self.inputs = inputs
        self.outputs = outputs
        self._steps = steps
        last = {name: i for i, step in enumerate(steps) for name in step.inputs}
        self._spent = [[n for n, at in last.items() if at == i] for i in range(len(steps))]
        self._constants = dict(constants)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Constants move with the modules."""
        self._constants = {name: fn(value) for name, value in self._constants.items()}
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def run(
        self,
        feed: Mapping[str, Tensor],
        constants: Mapping[str, Tensor] | None = None,
        hooks: Mapping[str, Hook] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """The block's outputs by name.

        Args:
            feed: every input of the block.
            constants: initializer name → tensor used in its place, in ONNX layout.
            hooks: tensor name → function applied to it as soon as it is computed.
            outputs: tensors to return in place of the block's outputs; what comes behind the last
                of them is not computed.
        """
        hooks = hooks or {}
        values: dict[str, Tensor] = {**self._constants, **(constants or {}), **feed}
        wanted = self.outputs if outputs is None else outputs
        for step, spent in zip(self._steps, self._spent, strict=True):
            if outputs is not None and all(name in values for name in outputs):
                break
            made = step.module(*(values[name] if name else None for name in step.inputs))
            made = made if isinstance(made, (tuple, list)) else (made,)
            for name, value in zip(step.outputs, made, strict=True):
                values[name] = hooks[name](value) if name in hooks else value
            for name in spent:  # large feature maps, of which few need to be alive at a time
                if name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def constant(self, name: str) -> Tensor:
        """The float value of an initializer, on the processor."""
        return self._constants[name].cpu()

    def arrays(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The float block's outputs for numpy inputs.

        Raises:
            BridgeError: an operator fails on these values.
        """
        tensors = {name: torch.from_numpy(np.array(a)) for name, a in feed.items()}
        try:
            with torch.no_grad():
                made = self.run(tensors)
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            if is_memory(error):
                raise
            raise BridgeError(f"torch fails: {error}") from error
        return {name: value.numpy() for name, value in made.items()}


def import_block(model: Model) -> TorchBlock:
    """The block `model` (see `onnxbrecq.graph.extract`) in torch, in evaluation mode.

    Raises:
        BridgeError: an operator has no converter, or the converter refuses the node.
    """
    proto = _expanded(model.proto, model.opset)
    graph = _onnx2torch("onnx2torch.onnx_graph").OnnxGraph(proto.graph)
    steps = []
    for converted, node in zip(graph.nodes.values(), proto.graph.node, strict=True):
        module, mapping = _convert(converted, node, graph, model.opset)
        outputs = tuple(name or f"unused {i}" for i, name in enumerate(mapping.outputs))
        steps.append(_Step(module, tuple(mapping.inputs), outputs))
    read = {name for step in steps for name in step.inputs}
    constants = {
        tensor.name: _constant(tensor) for tensor in proto.graph.initializer if tensor.name in read
    }
    return TorchBlock(tuple(steps), model.inputs, model.outputs, constants).eval()


def _constant(tensor: onnx.TensorProto) -> Tensor:
    try:
        return torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))
    except TypeError as error:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise BridgeError(f"constant {tensor.name}: torch has no type for {kind}") from error


def _expanded(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`proto` with operators that have no converter written out as ONNX defines them."""
    for _ in range(_EXPANSIONS):
        unknown = {
            node.op_type for node in proto.graph.node
            if node.domain in STANDARD_DOMAINS and _version(node.op_type, opset) is None
            and _is_function(node.op_type, opset)
        }  # fmt: skip
        if not unknown:
            break
        proto = inliner.inline_selected_functions(
            proto, [("", name) for name in sorted(unknown)], inline_schema_functions=True
        )
        proto = onnx.shape_inference.infer_shapes(proto)
    return proto


def _is_function(op_type: str, opset: int) -> bool:
    """Whether ONNX defines the operator by others."""
    try:
        schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return False
    found = schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]
    return bool(found)


def _convert(
    converted: Any, node: onnx.NodeProto, graph: Any, opset: int
) -> tuple[nn.Module, _Mapping]:
    """The module for the node, and the tensors it takes and makes."""
    if node.domain not in STANDARD_DOMAINS:
        raise BridgeError(f"node {node.name}: {node.domain}.{node.op_type} has no converter")
    version = _version(node.op_type, opset)
    if version is None:
        raise BridgeError(f"node {node.name}: {node.op_type}-{opset} has no converter")
    try:
        return _registry().get_converter(node.op_type, version)(converted, graph)  # type: ignore[no-any-return]
    except Exception as error:  # of onnx2torch's converters, at attributes that nobody vouched for
        if is_memory(error):
            raise
        raise BridgeError(f"node {node.name} ({node.op_type}-{opset}): {error}") from error


def _version(op_type: str, opset: int) -> int | None:
    """The operator version to look up; None if the registry has none that fits.

    That of the operator set, or the newest older one with the same signature: then nothing
    changed but types.
    """
    history = [schema for schema in _history(op_type) if schema.since_version <= opset]
    known = {
        key.version for key in _registry()._CONVERTER_REGISTRY
        if key.operation_type == op_type and key.domain == onnx.defs.ONNX_DOMAIN
    }  # fmt: skip
    for schema in reversed(history):
        if _signature(schema) != _signature(history[-1]):
            return None
        if schema.since_version in known:
            return int(schema.since_version)
    return None


def _history(op_type: str) -> Sequence[onnx.defs.OpSchema]:
    """The operator's schemas, oldest first."""
    return _schemas().get(op_type, ())


@cache
def _schemas() -> Mapping[str, Sequence[onnx.defs.OpSchema]]:
    """The schemas of each of ONNX's operators, oldest first."""
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == onnx.defs.ONNX_DOMAIN:
            found.setdefault(schema.name, []).append(schema)
    return {name: sorted(s, key=lambda schema: schema.since_version) for name, s in found.items()}


def _signature(schema: onnx.defs.OpSchema) -> object:
    """Names of inputs and outputs, and attributes with their defaults."""
    attributes = sorted(
        (name, item.required, item.default_value.SerializeToString())
        for name, item in schema.attributes.items()
    )
    names = [item.name for item in (*schema.inputs, *schema.outputs)]
    return attributes, names


@cache
def _registry() -> Any:
    """onnx2torch's registry of converters, ours in it for every version they know."""
    registry = _onnx2torch("onnx2torch.node_converters.registry")
    for op_type in operators():
        for schema in _history(op_type):
            function = converter(op_type, schema.since_version)
            if function is not None:
                version = int(schema.since_version)
                key = registry.OperationDescription(onnx.defs.ONNX_DOMAIN, op_type, version)
                registry._CONVERTER_REGISTRY.pop(key, None)
                registry.add_converter(op_type, version)(_converting(function, version))
    return registry


def _converting(function: Callable[..., Any], version: int) -> Callable[[Any, Any], Any]:
    def convert(node: Any, _graph: Any) -> tuple[nn.Module, _Mapping]:
        mapping = _Mapping(tuple(node.input_values), tuple(node.output_values))
        return Operator(function, node.proto, version), mapping

    return convert


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
