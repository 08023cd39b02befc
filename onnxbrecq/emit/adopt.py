"""A QDQ file of another tool: what it quantizes and how, and new values for its constants.

    activation   t -> QuantizeLinear -> DequantizeLinear -> readers
    weight       integers -> DequantizeLinear -> layer
    bias         int32 -> DequantizeLinear -> layer, at scale s_x * s_w

`adopt` takes the pairs out, so that a float graph is left, in which a weight bears the name of its
dequantized tensor, and says what each pair was. `rewritten` puts decisions back: of the file only
values of constants change, no node, no name, no type. UINT8 and INT8 are the same grid here, levels
from 0 on (`onnxbrecq.plan`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxbrecq import affine
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.model import attribute, node_inputs
from onnxbrecq.plan import QType, TensorQuant

# Bits of each integer type, and what turns its integers into levels.
_TYPES: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT16: (16, 0),
    TensorProto.INT16: (16, 1 << 15),
    TensorProto.UINT8: (8, 0),
    TensorProto.INT8: (8, 1 << 7),
    TensorProto.UINT4: (4, 0),
    TensorProto.INT4: (4, 1 << 3),
    TensorProto.UINT2: (2, 0),
    TensorProto.INT2: (2, 1 << 1),
}
_BIAS_LIMIT = float(2**31 - 1)
_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Site:
    """Where the file keeps a quantized tensor.

    Attributes:
        quant: as the file has it.
        scale: name of the constant.
        zero_point: likewise, or None: zero.
        codes: name of the integers of a weight; None for activations.
        kind: onnx.TensorProto type of the integers.
    """

    quant: TensorQuant
    scale: str
    zero_point: str | None
    codes: str | None
    kind: int


@dataclass(frozen=True)
class BiasSite:
    """Where the file keeps the int32 bias of a layer, and its float value [C]."""

    value: NDArray[np.float32]
    codes: str
    scale: str


@dataclass(frozen=True)
class Adopted:
    """A QDQ file taken apart.

    Attributes:
        proto: the float graph that is left.
        activations: tensor of that graph → its site.
        weights: initializer of that graph → its site.
        biases: initializer of that graph → its site.
        shared: names of the file's constants that several tensors are quantized with.
    """

    proto: onnx.ModelProto
    activations: Mapping[str, Site]
    weights: Mapping[str, Site]
    biases: Mapping[str, BiasSite]
    shared: frozenset[str]


def adopt(proto: onnx.ModelProto, where: str) -> Adopted:
    """The file taken apart; `proto` itself is not edited.

    Raises:
        ModelError: it holds no such pairs, or some that one decision a tensor cannot say.
    """
    reading = _Reading(proto, where)
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            reading.take(node)
    if not reading.activations and not reading.weights:
        raise ModelError(
            f"{where}: holds no QuantizeLinear and DequantizeLinear pairs; give a model in QDQ "
            "form (quant_format=QuantFormat.QDQ of onnxruntime's quantizer)"
        )
    return Adopted(
        reading.floating(), reading.activations, reading.weights, reading.biases,
        frozenset(name for name, count in reading.uses.items() if count > 1),
    )  # fmt: skip


@dataclass
class _Reading:
    """The pairs of a file, one after another."""

    proto: onnx.ModelProto
    where: str
    activations: dict[str, Site] = field(default_factory=dict)
    weights: dict[str, Site] = field(default_factory=dict)
    biases: dict[str, BiasSite] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    _renamed: dict[str, str] = field(default_factory=dict)  # dequantized tensor → float tensor
    _made: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)  # outputs of nodes that are taken out

    def __post_init__(self) -> None:
        self._constants = constants(self.proto)
        self._producer = {o: node for node in self.proto.graph.node for o in node.output}
        self._outputs = {value.name for value in self.proto.graph.output}

    def take(self, node: onnx.NodeProto) -> None:
        """Takes in what the DequantizeLinear says; what cannot be learned stays in the graph."""
        source, made = node.input[0], node.output[0]
        if any(name not in self._constants for name in node.input[1:] if name):
            return
        if source in self._constants:
            self._take_constant(node, source, made)
            return
        maker = self._producer.get(source)
        if maker is None or maker.op_type != "QuantizeLinear":
            return
        site = self._site(node, None)
        if site is None or list(maker.input[1:]) != list(node.input[1:]) or site.quant.scale.ndim:
            return
        tensor = maker.input[0]
        known = self.activations.get(tensor)
        if known is not None and known.quant != site.quant:
            raise ModelError(
                f"{self.where}: tensor {tensor!r} is quantized in two ways; only one for all its "
                "readers can be learned"
            )
        if known is None:
            self.activations[tensor] = site
            self.uses.update(name for name in (site.scale, site.zero_point) if name)
        self._renamed[made] = tensor
        self._gone |= {source, made}

    def _take_constant(self, node: onnx.NodeProto, source: str, made: str) -> None:
        if self._constants[source].data_type == TensorProto.INT32:
            scale = self._array(node.input[1]).astype(np.float32)
            value = (self._array(source) * scale.astype(np.float64)).astype(np.float32)
            self.biases[made] = BiasSite(value, source, node.input[1])
            self.uses.update((source, node.input[1]))
            self._made[made] = value
            self._gone.add(made)
            return
        site = self._site(node, source)
        if site is None:
            return
        assert site.quant.levels is not None
        self.weights[made] = site
        self.uses.update(name for name in (source, site.scale, site.zero_point) if name)
        self._made[made] = affine.dequantize(site.quant.levels, site.quant)
        self._gone.add(made)

    def _site(self, node: onnx.NodeProto, codes: str | None) -> Site | None:
        """The node's quantizer; None where this formula does not say it."""
        zero_name = node.input[2] if len(node.input) > 2 and node.input[2] else None
        typed = codes or zero_name
        kind = self._constants[typed].data_type if typed else TensorProto.UINT8
        given = self._array(node.input[1])
        if kind not in _TYPES or given.dtype != np.float32 or attribute(node, "block_size", 0):
            return None
        scale = given.astype(np.float32)
        bits, shift = _TYPES[kind]
        scale = scale.reshape(()) if scale.size == 1 else scale
        zero = np.zeros(scale.shape, np.int32)
        if zero_name:
            zero = self._array(zero_name).astype(np.int32).reshape(scale.shape)
        if scale.ndim > 1 or not (scale > 0).all():
            return None
        axis = int(attribute(node, "axis", 1)) if scale.ndim else None  # type: ignore[call-overload]
        if codes is None:
            quant = TensorQuant(QType(bits, "affine"), scale, zero + shift)
            return Site(quant, node.input[1], zero_name, None, kind)
        values = self._array(codes).astype(np.int32)
        if axis is not None:
            axis %= values.ndim
        middle = (zero + shift == 1 << (bits - 1)).all()
        if bits > 8 or (bits == 8 and not middle):
            return None  # the products of such integers do not fit the kernels' type
        quant = TensorQuant(
            QType(bits, "signed" if middle else "affine"), scale,
            np.zeros(scale.shape, np.int32) if middle else zero + shift, axis,
            (values + shift).astype(np.uint8),
        )  # fmt: skip
        return Site(quant, node.input[1], zero_name, codes, kind)

    def _array(self, name: str) -> NDArray[np.generic]:
        return numpy_helper.to_array(self._constants[name])

    def floating(self) -> onnx.ModelProto:
        """The graph without the pairs that were taken in."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        graph = copy.graph
        names = {made: tensor for made, tensor in self._renamed.items() if made in self._outputs}
        kept = []
        for node in graph.node:
            if self._gone.isdisjoint(node.output):
                kept.append(node)
        for node in kept:
            for i, name in enumerate(node.input):
                node.input[i] = self._renamed.get(name, name)
        self._check_readers(kept)
        backwards = {tensor: made for made, tensor in names.items()}  # an output keeps its name
        for node in kept:
            for part in (node.input, node.output):
                for i, name in enumerate(part):
                    part[i] = backwards.get(name, name)
        for tensor, made in backwards.items():
            self.activations[made] = self.activations.pop(tensor)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self._made.items())
        return copy

    def _check_readers(self, kept: list[onnx.NodeProto]) -> None:
        """Refuses a tensor that some of its readers read in float."""
        direct = {
            name
            for node in self.proto.graph.node
            if node.op_type not in _PAIR
            for name in node_inputs(node)
        }
        for tensor in self.activations:
            if tensor in direct:
                raise ModelError(
                    f"{self.where}: tensor {tensor!r} is quantized for some of its readers only; "
                    "only one decision for all of them can be learned"
                )


def constants(proto: onnx.ModelProto) -> dict[str, TensorProto]:
    """The model's constants by name: initializers, and what Constant nodes hold."""
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        for item in node.attribute if node.op_type == "Constant" else ():
            if item.name == "value":
                found[node.output[0]] = item.t
    return found


def rewritten(
    proto: onnx.ModelProto,
    adopted: Adopted,
    tensors: Mapping[str, TensorQuant],
    biases: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> onnx.ModelProto:
    """The file with other values: everything but constants is as it was.

    Args:
        proto: the file.
        adopted: what was read from it.
        tensors: activation or weight of `adopted` → decision, of its bits and grid.
        biases: bias of `adopted` → float value [C], and the scale [C] of its integers.

    Raises:
        ModelError: a bias does not fit int32 at its scale.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    places = constants(copy)
    for name, quant in tensors.items():
        site = adopted.activations.get(name) or adopted.weights[name]
        shift = _TYPES[site.kind][1]
        _put(places[site.scale], quant.scale)
        if site.zero_point and quant.qtype.grid == "affine":
            _put(places[site.zero_point], quant.zero_point - shift)
        if site.codes is not None:
            assert quant.levels is not None
            _put(places[site.codes], quant.levels.astype(np.int32) - shift)
    for name, (value, scale) in biases.items():
        place = adopted.biases[name]
        codes = np.rint(value.astype(np.float64) / scale.astype(np.float64))
        if np.abs(codes).max(initial=0) > _BIAS_LIMIT:
            raise ModelError(f"bias {name!r} does not fit int32 at scale {scale.min():.3g}")
        _put(places[place.codes], codes)
        _put(places[place.scale], scale)
    return copy


def _put(place: TensorProto, values: NDArray[np.generic]) -> None:
    """Edits a constant: other values of its own shape and type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(place.data_type)
    shaped = np.array(values, order="C").reshape(tuple(place.dims)).astype(dtype)
    place.raw_data = numpy_helper.from_array(shaped).raw_data
    for other in ("float_data", "int32_data"):
        place.ClearField(other)
