"""What a block is learned from, and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxbrecq import affine
from onnxbrecq.data.dataset import Index, Picked, Samples
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points
from onnxbrecq.plan import QuantPlan, TensorQuant
from onnxbrecq.recon.bridge import TorchBlock
from onnxbrecq.recon.device import CPU

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class BlockData:
    """What a block is reconstructed from: [samples, ...] by tensor name.

    Attributes:
        inputs: the block's inputs as the quantized network delivers them.
        float_inputs: the same inputs in the float network.
        targets: the block's outputs in the float network.
        weights: per output, the weight of each element's squared error [1, ...]; absent: 1.
    """

    inputs: Mapping[str, Samples]
    float_inputs: Mapping[str, Samples]
    targets: Mapping[str, Samples]
    weights: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def at(self, index: NDArray[np.intp]) -> "BlockData":
        """Some of the samples."""
        inputs, float_inputs, targets = (
            {name: Picked(samples, index) for name, samples in tensors.items()}
            for tensors in (self.inputs, self.float_inputs, self.targets)
        )
        return BlockData(inputs, float_inputs, targets, self.weights)


@dataclass(frozen=True)
class Problem:
    """A block to learn.

    Attributes:
        block: the float block.
        alone: the block takes one sample at a time.
        plan: the decisions so far: bits, grids and scales of everything in the block.
        points: the model's quantization points.
        nodes: the block's nodes in order.
        heads: activations of the block that own a quantizer.
        constants: initializer name → float value, of the weights to round and the biases.
        macs: multiply-accumulates that a sample takes in the float block.
        device: where it is learned.
    """

    block: TorchBlock
    alone: bool
    plan: QuantPlan
    points: Points
    nodes: tuple[onnx.NodeProto, ...]
    heads: tuple[str, ...]
    constants: Arrays
    macs: int = 0
    device: torch.device = CPU

    @cached_property
    def _others(self) -> Mapping[str, str]:
        """Weight that is decided but not learned here → the weight whose decision it shares."""
        layers, nodes = self.points.layers, [node.name for node in self.nodes]
        weights = (layers[name].weight for name in nodes if name in layers)
        decided = (n for n in weights if n in self.plan.tensors and n not in self.constants)
        return {name: self.points.points[name].group for name in decided}

    @cached_property
    def _fixed(self) -> Mapping[str, Tensor]:
        """Those whose decision is made elsewhere, as they were decided."""
        elsewhere = (n for n, head in self._others.items() if head not in self.constants)
        quants = {name: self.plan.tensors[name] for name in elsewhere}
        return {
            name: torch.from_numpy(affine.dequantize(quant.levels, quant)).to(self.device)  # type: ignore[arg-type]
            for name, quant in quants.items()
        }

    def with_others(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that are learned as they are now, and all others of the block."""
        followers = {n: learned[head] for n, head in self._others.items() if head in learned}
        return {**self._fixed, **followers, **learned}


@dataclass(frozen=True)
class Decisions:
    """What a block learned: levels of weights and steps of activations; biases."""

    tensors: Mapping[str, TensorQuant]
    biases: Mapping[str, NDArray[np.float32]]


def on_grid(model: Model, plan: QuantPlan, inputs: Mapping[str, Samples]) -> dict[str, Samples]:
    """The inputs as the block's quantizers leave them: graph inputs are quantized inside."""
    found = dict(inputs)
    for name in inputs:
        if name in model.inputs and name in plan.tensors:
            found[name] = _OnGrid(inputs[name], plan.tensors[name])
    return found


@dataclass(frozen=True)
class _OnGrid:
    """Samples that are quantized when they are read."""

    samples: Samples
    quant: TensorQuant

    @property
    def shape(self) -> tuple[int, ...]:
        return self.samples.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Index) -> NDArray[Any]:
        return affine.dequantize(affine.quantize(self.samples[index], self.quant), self.quant)
