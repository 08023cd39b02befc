"""What a block is learned from, and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

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
        device: where it is learned.
    """

    block: TorchBlock
    alone: bool
    plan: QuantPlan
    points: Points
    nodes: tuple[onnx.NodeProto, ...]
    heads: tuple[str, ...]
    constants: Arrays
    device: torch.device = CPU


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
