"""The canonical float model: immutable after `load`, indexed by tensor name.

Invariants that `onnxbrecq.graph.load` establishes and everything later relies on:

- nodes are in topological order and each has a unique, non-empty name;
- initializers are not graph inputs, and each weight belongs to one consumer;
- `shapes` and `dtypes` know every tensor that shape inference can know; a symbolic
  dimension is None.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.graph.arrays import Arrays

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Norm:
    """Mean and standard deviation [C] of a tensor's channels over the data of training."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Model:
    """A float ONNX graph and its indices. Never edit `proto`.

    Attributes:
        proto: the canonical model.
        signature: graph inputs and outputs as the source file declares them; the emitted model
            keeps them. For the whole model only.
        batched: axis 0 of every input and output is a free batch dimension.
        source_sha256: hash of the file.
        source_bytes: its size, external data included.
        source_opset: the default domain's version in the file.
        files: what it was read from: the file, and those with its external data.
        notes: what normalisation did that a user should know, a line each.
        stored_type: the onnx.TensorProto type of float constants in the file.
        norms: tensor name → what the file's BatchNormalization says of it; channels along axis 1.
    """

    proto: onnx.ModelProto
    signature: tuple[tuple[onnx.ValueInfoProto, ...], tuple[onnx.ValueInfoProto, ...]]
    batched: bool
    source_sha256: str = ""
    source_bytes: int = 0
    source_opset: int = 0
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    stored_type: int = onnx.TensorProto.FLOAT
    norms: Mapping[str, Norm] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The file, if there is one."""
        return self.files[0] if self.files else None

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """All nodes in topological order."""
        return tuple(self.proto.graph.node)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Graph input names, initializers not among them."""
        return tuple(value.name for value in self.proto.graph.input)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Graph output names."""
        return tuple(value.name for value in self.proto.graph.output)

    @cached_property
    def file_batch(self) -> int | None:
        """Samples that the file, and so the emitted model, takes at a time; None: any number."""
        shapes = [value.type.tensor_type.shape for value in self.signature[0]]
        fixed = max((s.dim[0].dim_value for s in shapes if s.dim), default=0)
        return fixed or (None if self.batched else 1)

    @property
    def batch(self) -> int | None:
        """Samples that this graph takes at a time; None: any number."""
        return None if self.batched else self.file_batch

    @cached_property
    def initializers(self) -> Mapping[str, NDArray[np.generic]]:
        """Constant tensors by name, read when they are asked for."""
        return Arrays({tensor.name: tensor for tensor in self.proto.graph.initializer})

    @cached_property
    def producer(self) -> Mapping[str, onnx.NodeProto]:
        """Tensor name → the node that computes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[onnx.NodeProto, ...]]:
        """Tensor name → the nodes that read it, subgraphs included; each once."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node_inputs(node)):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def opset(self) -> int:
        """Version of the default operator set."""
        return max(int(o.version) for o in self.proto.opset_import if o.domain in STANDARD_DOMAINS)

    @cached_property
    def value_infos(self) -> Mapping[str, onnx.ValueInfoProto]:
        """Inferred type of every tensor that has one."""
        graph = self.proto.graph
        return {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """Tensor name → shape; symbolic dimensions are None; unknown ranks are absent."""
        found: dict[str, tuple[int | None, ...]] = {
            name: tuple(d.dim_value if d.HasField("dim_value") else None for d in dims.dim)
            for name, value in self.value_infos.items()
            if (dims := value.type.tensor_type.shape) is not None
            and value.type.tensor_type.HasField("shape")
        }
        found.update({t.name: tuple(t.dims) for t in self.proto.graph.initializer})
        return found

    @cached_property
    def symbols(self) -> Mapping[str, tuple[str, ...]]:
        """Tensor name → names of its dimensions, empty where they have none or are a number."""
        found = {
            name: tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim)
            for name, value in self.value_infos.items()
        }
        found.update({t.name: ("",) * len(t.dims) for t in self.proto.graph.initializer})
        return found

    def elements(self, constant: str) -> int:
        """How many elements the constant has."""
        return prod(size or 0 for size in self.shapes[constant])

    @cached_property
    def dtypes(self) -> Mapping[str, int]:
        """Tensor name → onnx.TensorProto data type."""
        found = {name: value.type.tensor_type.elem_type for name, value in self.value_infos.items()}
        found.update({t.name: t.data_type for t in self.proto.graph.initializer})
        return found


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs."""
    yield graph
    for node in graph.node:
        for item in node.attribute:
            for inner in [item.g] if item.HasField("g") else item.graphs:
                yield from graphs(inner)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor of the graph and its subgraphs."""
    for part in graphs(graph):
        yield from part.initializer
        for node in part.node:
            for item in node.attribute:
                if item.HasField("t"):
                    yield item.t
                yield from item.tensors


def node_inputs(node: onnx.NodeProto) -> tuple[str, ...]:
    """All tensors a node reads, those captured by its subgraphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            inner = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            inner |= {name for child in graph.node for name in child.output}
            reads = [name for child in graph.node for name in node_inputs(child)]
            reads += [v.name for v in graph.output]
            names += [name for name in reads if name not in inner]
    return tuple(names)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
