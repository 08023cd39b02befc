"""Another tool's QDQ file as a problem for the walk: its float graph, its points, its decisions.

The file's placement stays: a tensor is quantized if and only if the file quantizes it, in the
file's type. The float values come from the model it was made from, layer by layer; what they are
rounded to, the steps, the zero points and the biases are learned anew. What the formula of
`onnxbrecq.plan` cannot say, or the file shares between tensors, stays as it is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq import affine
from onnxbrecq.calibrate import activation_values
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.adopt import Adopted, adopt, constants, rewritten
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import any_file
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import Points, QuantPoint, find_points
from onnxbrecq.graph.roles import activation_bounds
from onnxbrecq.graph.weights import Layer
from onnxbrecq.plan import QuantPlan, TensorQuant
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session

_ALIKE = 0.3  # least correlation of a weight with what it was rounded to, at any bits
_PROBES = 4  # samples on which the graphs are held against each other;
# the squared difference, relative to the energy: what ties and float sums add up to stays below.
_SAME = 0.01
_GAIN = 0.99  # of an activation's error, from which on another range is taken

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Repair:
    """A file to repair.

    Attributes:
        proto: the file.
        adopted: what was read from it.
        model: its graph in float, with the float model's weights.
        points: what the file quantizes.
        plan: the file's decisions.
        notes: what stays as it is.
    """

    proto: onnx.ModelProto
    adopted: Adopted
    model: Model
    points: Points
    plan: QuantPlan
    notes: tuple[str, ...]


def taken_apart(proto: onnx.ModelProto, reference: Model, where: str) -> Repair:
    """The file as a problem.

    Args:
        proto: the QDQ file.
        reference: the float model that it was made from.
        where: what to call the file.

    Raises:
        ModelError: it is no QDQ file, or was made from another model.
    """
    adopted = _with_activations(adopt(proto, where), reference)
    bare = from_proto(adopted.proto)
    found = find_points(bare)
    layers = {
        name: dataclasses.replace(layer, bias=layer.bias if layer.bias in adopted.biases else None)
        for name, layer in found.layers.items()
        if _learnable(bare, layer, adopted)
    }
    fixed = [name for name in adopted.weights if name not in {x.weight for x in layers.values()}]
    model = _with_values(bare, _float_values(reference, found, layers, where, bare))
    points = Points(_points(model, adopted, layers), layers, found.float_nodes, {})
    tensors = {name: adopted.activations[name].quant for name in adopted.activations
               if name in points.points}  # fmt: skip
    for layer in layers.values():
        quant = adopted.weights[layer.weight].quant
        tensors[layer.weight] = quant
    biases = {layer.bias: adopted.biases[layer.bias].value for layer in layers.values()
              if layer.bias is not None}  # fmt: skip
    notes = (*([_of_fixed(fixed)] if fixed else []), *_of_left(adopted))
    plan = QuantPlan(tensors, biases, source_sha256=reference.source_sha256)
    return Repair(proto, adopted, model, points, plan, notes)


def check_origin(
    repair: Repair, reference: Model, data: Dataset, where: str, recipe: Recipe
) -> None:
    """Refuses a file whose graph is not that of the float model, or is not what was read from it.

    Raises:
        ModelError: on a few samples the file's graph with the float weights does not compute what
            the float model does, or its decisions, emitted, not what the file does.
    """
    size = reference.batch or 1
    some = data.head(max(_PROBES // size, 1) * size)
    emitted = emit(repair.model, repair.plan, any_file(saturates=False))
    pairs = [(emitted, repair.proto, "it holds quantizers in places that are not understood")]
    if not repair.notes:  # weights that stay rounded compute something else, rightly
        float_graph = repair.model.proto
        pairs.append((float_graph, reference.proto, "the float model computes something else"))
    for one, other, what in pairs:
        noise = _noise(*(_outputs(proto, some, size, recipe) for proto in (one, other)))
        if noise > _SAME:
            raise ModelError(
                f"{where}: cannot be repaired: {what} (an error of {noise:.2g} of the energy on "
                f"{len(some)} samples); give the float model that it was made from"
            )


def _outputs(
    proto: onnx.ModelProto, data: Dataset, size: int, recipe: Recipe
) -> list[NDArray[np.float64]]:
    """All that a model makes of the data, as it is written; what is not finite as 0."""
    session = Session(proto, optimize=False, threads=recipe.threads)
    made = [value for feed in data.batches(size) for value in session.run(feed).values()]
    numbers = [np.asarray(value, np.float64) for value in made if value.dtype.kind in "biuf"]
    return [np.where(np.isfinite(value), value, 0) for value in numbers]


def _noise(one: list[NDArray[np.float64]], other: list[NDArray[np.float64]]) -> float:
    """The squared difference of outputs over their energy."""
    if [value.shape for value in one] != [value.shape for value in other]:
        return float("inf")
    difference = sum(float(np.square(a - b).sum()) for a, b in zip(one, other, strict=True))
    energy = sum(float(np.square(b).sum()) for b in other)
    return difference / max(energy, float(np.finfo(np.float32).tiny))


def recalibrated(
    repair: Repair, data: Dataset, recipe: Recipe, progress: Progress = silent
) -> QuantPlan:
    """The file's decisions, with other ranges where the samples show that they err less.

    Biases are the float model's.
    """
    heads = [n for n, p in repair.points.points.items() if p.kind == "activation" and p.group == n]
    values = activation_values(repair.model, heads, data, recipe, progress)
    better: dict[str, TensorQuant] = {}
    for head in heads:
        seen, old, point = values[head], repair.plan.tensors[head], repair.points.points[head]
        if not seen.size or not np.isfinite(seen).all() or not _movable(repair.adopted, head):
            continue
        new = affine.activation_quant(
            seen, old.qtype.bits, ceiling=point.ceiling, nonnegative=point.nonnegative
        )
        if _error(seen, new) < _GAIN * _error(seen, old):
            better[head] = new
    for name, point in repair.points.points.items():
        if point.group in better:
            better[name] = better[point.group]
    biases = {name: np.asarray(repair.model.initializers[name], np.float32)
              for name in repair.plan.biases}  # fmt: skip
    return repair.plan.updated(better, biases)


def repaired(repair: Repair, plan: QuantPlan) -> onnx.ModelProto:
    """The file with the decisions of `plan` in it.

    Raises:
        ModelError: a bias does not fit.
    """
    biases = {}
    for layer in repair.points.layers.values():
        data = plan.tensors.get(layer.data)
        if layer.bias is not None and data is not None:
            weight = plan.tensors[layer.weight]
            value = plan.biases[layer.bias]
            scale = np.broadcast_to((data.scale * weight.scale).astype(np.float32), value.shape)
            biases[layer.bias] = (value, _shaped(repair, layer.bias, scale))
    return rewritten(repair.proto, repair.adopted, plan.tensors, biases)


def _shaped(repair: Repair, bias: str, scale: Array) -> Array:
    """The scale [C] as the file keeps it: one for each channel, or one."""
    place = constants(repair.proto)[repair.adopted.biases[bias].scale]
    return scale[:1] if prod(place.dims) == 1 else scale


def _with_activations(adopted: Adopted, reference: Model) -> Adopted:
    """With each Relu or Clip of the reference that the file leaves to the quantizer in its place.

    onnxruntime's quantizer takes it out, and quantizes what was in front of it.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(adopted.proto)
    sites, nodes = dict(adopted.activations), list(proto.graph.node)
    made = {name: node for node in nodes for name in node.output}
    for name in adopted.activations:
        readers = reference.consumers.get(name, ())
        behind = readers[0].output[0] if len(readers) == 1 else ""
        if activation_bounds(reference, behind)[0] and behind not in made and name in made:
            for node in nodes:
                node.input[:] = [behind if read == name else read for read in node.input]
            sites[behind] = sites.pop(name)
            front, result = name, behind
        elif (
            activation_bounds(reference, name)[0]
            and name in made
            and (made[name].op_type != reference.producer[name].op_type)
        ):  # a graph output, which keeps its name
            front, result = f"{name}~front", name
            made[name].output[:] = [front if o == name else o for o in made[name].output]
        else:
            continue
        place = next(i for i, node in enumerate(nodes) if front in node.output)
        nodes.insert(place + 1, _activation(reference, front, result, proto.graph))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return dataclasses.replace(adopted, proto=proto, activations=sites)


def _activation(
    reference: Model, front: str, result: str, graph: onnx.GraphProto
) -> onnx.NodeProto:
    """The reference's activation function that makes `result`, of `front`; edits the constants."""
    node = onnx.NodeProto()
    node.CopyFrom(reference.producer[result])
    bounds = [f"{result}~{i}" if name else "" for i, name in enumerate(node.input)]
    for name, bound in list(zip(node.input, bounds, strict=True))[1:]:
        if name:
            graph.initializer.append(numpy_helper.from_array(reference.initializers[name], bound))
    node.input[:] = [front, *bounds[1:]]
    return node


def _learnable(model: Model, layer: Layer, adopted: Adopted) -> bool:
    """Whether the layer's weight can take other integers, and nothing else changes with it."""
    site = adopted.weights.get(layer.weight)
    if site is None or site.quant.levels is None:
        return False
    if site.quant.axis not in (None, layer.axis):
        return False
    value = model.initializers[layer.weight]
    same = np.array_equal(value, affine.dequantize(site.quant.levels, site.quant))
    own = not {site.codes, site.scale} & adopted.shared
    bias = adopted.biases.get(layer.bias or "")
    alone = bias is None or not {bias.codes, bias.scale} & adopted.shared
    affine_zero = site.quant.qtype.grid == "affine" and site.zero_point in adopted.shared
    return same and own and alone and not affine_zero


def _float_values(
    reference: Model, found: Points, layers: Mapping[str, Layer], where: str, bare: Model
) -> dict[str, Array]:
    """The float weights and biases of the layers: those of the reference's layers."""
    values = {}
    for name, other in _matched(reference, found.layers, bare).items():
        if name not in layers:
            continue
        layer = layers[name]
        weight = np.asarray(reference.initializers[other.weight], np.float32)
        rounded = np.asarray(bare.initializers[layer.weight], np.float32)
        if layer.axis != other.axis and weight.ndim == 2:
            weight = np.ascontiguousarray(weight.T)
        if weight.shape != rounded.shape or _correlation(weight, rounded) < _ALIKE:
            raise ModelError(
                f"{where}: the weight of node {name!r} is not that of {other.node!r} in the float "
                "model; give the float model that it was made from"
            )
        values[layer.weight] = weight
        if layer.bias is not None and other.bias is not None:
            values[layer.bias] = np.asarray(reference.initializers[other.bias], np.float32)
    return values


def _matched(reference: Model, layers: Mapping[str, Layer], bare: Model) -> dict[str, Layer]:
    """Node of the file → layer of the reference: by name, by the tensor made, or by order."""
    others = find_points(reference).layers
    made = {node.output[0]: node.name for node in reference.nodes}
    outputs = {node.name: node.output[0] for node in bare.nodes}
    by_order = dict(zip(layers, others, strict=False)) if len(layers) == len(others) else {}
    found = {}
    for name in layers:
        for candidate in (name, made.get(outputs[name]), by_order.get(name)):
            if candidate is not None and candidate in others:
                found[name] = others[candidate]
                break
        else:
            raise ModelError(
                f"the float model {reference.path} has no layer for node {name!r}; give the float "
                "model that the quantized one was made from"
            )
    return found


def _correlation(one: Array, other: Array) -> float:
    a, b = one.reshape(-1).astype(np.float64), other.reshape(-1).astype(np.float64)
    length = float(np.sqrt(np.dot(a, a) * np.dot(b, b)))
    return float(np.dot(a, b)) / length if length > 0 else 1.0


def _with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """The model with other values of some constants."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return dataclasses.replace(model, proto=proto)


def _points(model: Model, adopted: Adopted, layers: Mapping[str, Layer]) -> dict[str, QuantPoint]:
    """The points that the file has; tensors with the same scale constant are one group."""
    readers: dict[str, list[str]] = {}
    for layer in layers.values():
        readers.setdefault(layer.data, []).append(layer.node)
    order = (*model.inputs, *(name for node in model.nodes for name in node.output))
    stiff = {
        site.scale for name, site in adopted.activations.items()
        if not _rescalable(model, adopted, name, layers)
    }  # fmt: skip
    heads: dict[str, str] = {}
    points = {}
    for name in order:
        if name not in adopted.activations:
            continue
        scale = adopted.activations[name].scale
        head = "" if scale in stiff else heads.setdefault(scale, name)
        nonnegative, ceiling = activation_bounds(model, name)
        points[name] = QuantPoint(
            name, "activation", None,
            tuple(node.name for node in model.consumers.get(name, ())),
            head,
            tuple(readers.get(name, ())), nonnegative, ceiling,
        )  # fmt: skip
    for layer in layers.values():
        points[layer.weight] = QuantPoint(
            layer.weight, "weight", layer.axis, (layer.node,), layer.weight, (layer.node,)
        )
    return points


def _rescalable(model: Model, adopted: Adopted, name: str, layers: Mapping[str, Layer]) -> bool:
    """Whether the step may change: no int32 bias hangs on it that is not written anew."""
    for node in model.consumers.get(name, ()):
        hangs = any(read in adopted.biases for read in node.input)
        if hangs and (node.name not in layers or layers[node.name].bias is None):
            return False
    return True


def _movable(adopted: Adopted, name: str) -> bool:
    """Whether the zero point belongs to the tensor, and to those that share its scale."""
    site = adopted.activations[name]
    others = (*adopted.activations.values(), *adopted.weights.values())
    return site.zero_point is not None and all(
        other.scale == site.scale for other in others if other.zero_point == site.zero_point
    )


def _error(values: Array, quant: TensorQuant) -> float:
    difference = values - affine.dequantize(affine.quantize(values, quant), quant)
    return float(np.square(difference, dtype=np.float64).sum())


def _of_left(adopted: Adopted) -> tuple[str, ...]:
    """A line on quantizers that were not understood."""
    left = [n.output[0] for n in adopted.proto.graph.node if n.op_type == "DequantizeLinear"]
    if not left:
        return ()
    named = ", ".join(repr(name) for name in left[:4]) + (", ..." if left[4:] else "")
    return (f"quantizers kept as the file has them, and not learned: {named}",)


def _of_fixed(names: Sequence[str]) -> str:
    named = ", ".join(repr(name) for name in names[:4]) + (", ..." if names[4:] else "")
    return f"weights kept as the file has them: {named}"
