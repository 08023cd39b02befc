"""What bits cost: bytes of the file, bit operations, milliseconds; each a sum over layers.

    size      of the file that is emitted, its decoding nodes and all that does not depend on bits
    bitops    sum of multiply-accumulates * bits of the weight * bits of the data; float: 32 bits
    latency   sum of the layers' milliseconds, one after another (`onnxbrecq.search.latency`)

The size of a file is not quite a sum: names get longer the more there are of them, and a constant
that several nodes read is stored once. `FileSize.of` therefore emits the very plan; the sum over
layers, of which an allocation is made, is a few bytes more.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxbrecq.bits import Allocation, Bits
from onnxbrecq.calibrate import Calibration
from onnxbrecq.emission import emitted
from onnxbrecq.emit.targets import Target
from onnxbrecq.graph.layers import WeightLayer, weight_layers
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points, find_points
from onnxbrecq.graph.write import contents
from onnxbrecq.plan import QuantPlan, TensorQuant

_FLOAT = 32
_LONGER = (
    8  # bytes: a digit more in the names of a layer's weight, scale, zero point, their readers
)
_SHARED = "~"  # ends the name of a constant that several nodes read

Choices = Mapping[str, tuple[Bits, ...]]


@dataclass(frozen=True)
class Cost:
    """What each choice costs.

    Attributes:
        key: `size`, `bitops` or `latency`.
        unit: of the figures: bytes, operations, ms.
        base: what no choice changes, layers without a choice included.
        layers: layer → cost of each of its choices.
        note: what a reader should know of it.
    """

    key: str
    unit: str
    base: float
    layers: Mapping[str, tuple[float, ...]]
    note: str = ""

    @property
    def constant(self) -> bool:
        """Whether bits change nothing."""
        return all(max(costs) == min(costs) for costs in self.layers.values())

    def total(self, places: Mapping[str, int]) -> float:
        """Of layers at these places among their choices."""
        return self.base + sum(costs[places[name]] for name, costs in self.layers.items())


@dataclass(frozen=True)
class FileSize:
    """Sizes of emitted files, known before anything is learned.

    Learning changes which levels weights take, not how many bytes they fill, but for the offsets of
    channels: one that all channels share is stored once. Here no layer's channels share it, so no
    file is larger than was said.
    """

    model: Model
    target: Target
    calibration: Calibration
    data_sha256: str

    def of(self, bits: Allocation) -> int:
        """Bytes of the file at these bits, that of its constants included."""
        proto = self._emitted(bits)
        parts = contents(proto, "model.onnx").values()
        return sum(len(part) for file in parts for part in file)

    def cost(self, choices: Choices, fixed: Allocation) -> Cost:
        """What each choice adds to the file."""
        layers: dict[str, list[float]] = {n: [0.0] * len(bits) for n, bits in choices.items()}
        bases = []
        points = find_points(self.model)
        for bits in sorted({b for offered in choices.values() for b in offered}, key=str):
            places = {n: _nearest(offered, bits) for n, offered in choices.items()}
            chosen = {n: choices[n][place] for n, place in places.items()}
            proto = self._emitted({**fixed, **chosen})
            held = _held(proto, points)
            bases.append(proto.ByteSize() - sum(held[name] for name in choices))
            for name, place in places.items():
                layers[name][place] = float(held[name])
        base = max(bases, default=0) or self.of(fixed)
        return Cost("size", "bytes", float(base + _LONGER * len(choices)),
                    {name: tuple(costs) for name, costs in layers.items()})  # fmt: skip

    def _emitted(self, bits: Allocation) -> onnx.ModelProto:
        plan = self.calibration.plan(bits)
        weights = {n: _apart(n, q) for n, q in plan.tensors.items() if q.levels is not None}
        full = dataclasses.replace(plan, data_sha256=self.data_sha256).updated(weights)
        return emitted(self.model, _with_biases(self.model, full), self.target)


def bitops(model: Model, choices: Choices, fixed: Allocation) -> Cost:
    """Multiply-accumulates of a sample, each as many bits times bits."""
    return _summed(model, choices, fixed, _operations, key="bitops", unit="bit operations")


def latency(
    model: Model,
    choices: Choices,
    fixed: Allocation,
    of: Callable[[str, Bits], float],
    *,
    note: str,
) -> Cost:
    """Milliseconds of all layers, one after another; `of` tells those of a layer at its bits."""

    def ms(layer: WeightLayer, bits: Bits) -> float:
        return of(layer.name, bits)

    return _summed(model, choices, fixed, ms, key="latency", unit="ms", note=note)


def _summed(
    model: Model,
    choices: Choices,
    fixed: Allocation,
    of: Callable[[WeightLayer, Bits], float],
    *,
    key: str,
    unit: str,
    note: str = "",
) -> Cost:
    layers = weight_layers(model)
    open_ = {x.name: tuple(of(x, b) for b in choices[x.name]) for x in layers if x.name in choices}
    floating = Bits(None, None)
    closed = (of(x, fixed.get(x.name, floating)) for x in layers if x.name not in choices)
    return Cost(key, unit, float(sum(closed)), open_, note)


def _operations(layer: WeightLayer, bits: Bits) -> float:
    return float(layer.macs * (bits.weight or _FLOAT) * (bits.data or _FLOAT))


def _nearest(offered: tuple[Bits, ...], bits: Bits) -> int:
    """The place of `bits` among what is offered, or of the finest."""
    return offered.index(bits) if bits in offered else len(offered) - 1


def _apart(name: str, quant: TensorQuant) -> TensorQuant:
    """The weight with an offset of its own for each channel, unlike any other layer's."""
    if quant.qtype.grid == "signed" or quant.zero_point.size < 2:
        return quant
    random = np.random.default_rng(zlib.crc32(name.encode()))
    top = quant.qtype.levels  # a packed product takes offsets below 16 only
    zero = random.integers(0, min(top, 16), quant.zero_point.shape).astype(np.int32)
    zero.flat[0], zero.flat[1] = 0, 1
    return dataclasses.replace(quant, zero_point=zero)


def _with_biases(model: Model, plan: QuantPlan) -> QuantPlan:
    """The plan with biases that no two layers share: learning gives each its own."""
    biases = {}
    for layer in find_points(model).layers.values():
        if layer.bias is not None and layer.weight in plan.tensors:
            data, weight = (plan.tensors.get(name) for name in (layer.data, layer.weight))
            unit = weight.scale * data.scale if weight is not None and data is not None else 1.0
            random = np.random.default_rng(zlib.crc32(layer.bias.encode()))
            shape = model.initializers[layer.bias].shape
            biases[layer.bias] = (random.integers(1, 1 << 20, shape) * unit).astype(np.float32)
    return plan.updated({}, biases)


def _held(proto: onnx.ModelProto, points: Points) -> dict[str, int]:
    """Layer → bytes of its weight and its decoding, and of what cuts its data to fewer bits."""
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node if node.name}
    found = {}
    counted: set[str] = set()  # heads whose Clip a layer has taken on
    for name, layer in points.layers.items():
        found[name] = sum(_decoding(nodes[name].input[1], makers, constants))
        head = points.points[layer.data].group if layer.data in points.points else ""
        if head and head not in counted:
            counted.add(head)
            found[name] += _clip(nodes[name].input[0], makers)
    return found


def _decoding(
    tensor: str,
    makers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> Iterator[int]:
    """Bytes of each node and constant that the weight `tensor` is made of."""
    if tensor in makers:
        yield _bytes(makers[tensor])
        for name in makers[tensor].input:
            yield from _decoding(name, makers, constants)
    elif tensor in constants and not tensor.endswith(_SHARED):
        yield _bytes(constants[tensor])


def _clip(data: str, makers: Mapping[str, onnx.NodeProto]) -> int:
    """Bytes of the Clip behind the quantizer of `data`, if it has one."""
    node = makers.get(data)
    while node is not None and node.op_type != "QuantizeLinear":
        if node.op_type == "Clip":
            return _bytes(node)
        node = makers.get(node.input[0])
    return 0


def _bytes(message: onnx.NodeProto | onnx.TensorProto) -> int:
    """Bytes of the message as an entry of a graph: tag, length, content."""
    size = int(message.ByteSize())
    return 1 + max(1, -(-size.bit_length() // 7)) + size
