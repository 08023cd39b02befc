"""Laws on random graphs of the operators that run in integers, with random bits and grids."""

from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxbrecq import affine
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType, QuantPlan
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.node_parity import node_parity

_SIZE = 9
_OPS = ("conv", "depthwise", "relu", "clip", "leaky", "skip", "gate", "concat", "max", "average",
        "transpose")  # fmt: skip


@dataclass
class _Net:
    """A network under construction; `shape` is that of its last tensor, the batch aside."""

    random: np.random.Generator
    rank: int
    shape: tuple[int, ...]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "x"

    def add(self, op: str, *more: str, reads: str | None = None, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        node = helper.make_node(op, [reads or self.last, *more], [name], name=f"n{name}")
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        self.last = name
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, channels: int, kernel: int, **attributes: object) -> str:
        groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
        shape = (channels, self.shape[0] // groups, *[kernel] * self.rank)
        scale = 1.5 / np.sqrt(np.prod(shape[1:]))
        weight = self.random.normal(0, scale, shape).astype(np.float32)
        bias = self.random.normal(0, 0.3, channels).astype(np.float32)
        pads = [kernel // 2] * 2 * self.rank
        made = self.add("Conv", self.constant(weight), self.constant(bias), pads=pads, **attributes)
        self.shape = (channels, *self.shape[1:])
        return made


def _grow(net: _Net, op: str, draw: st.DrawFn) -> None:
    """Appends a piece of the kind `op`."""
    before, channels = net.last, net.shape[0]
    pool = {"kernel_shape": [2] * net.rank, "strides": [2] * net.rank}
    shrinks = min(net.shape[1:]) >= 4
    if op == "conv":
        net.conv(draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([1, 3])))
    elif op == "depthwise":
        net.conv(channels, 3, group=channels)
    elif op == "relu":
        net.add("Relu")
    elif op == "clip":
        low, high = (net.constant(np.array(v, np.float32)) for v in (0, 2.5))
        net.add("Clip", low, high)
    elif op == "leaky":
        net.add("LeakyRelu", alpha=0.1)
    elif op == "skip":
        branch = net.conv(channels, 3)
        net.add("Add", before, reads=branch)
    elif op == "gate":
        net.add("GlobalAveragePool")
        net.shape = (channels, *[1] * net.rank)
        net.conv(channels, 1)
        gate = net.add("Sigmoid")
        net.add("Mul", gate, reads=before)
    elif op == "concat":
        net.add("Concat", net.conv(2, 1), reads=before, axis=1)
        net.shape = (channels + 2, *net.shape[1:])
    elif op in ("max", "average") and shrinks:
        net.add("MaxPool" if op == "max" else "AveragePool", **pool)
        net.shape = (channels, *((s - 2) // 2 + 1 for s in net.shape[1:]))
    elif op == "transpose" and net.rank == 2:
        net.add("Transpose", perm=[0, 1, 3, 2])


@st.composite
def _networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A few pieces behind one convolution, and sometimes a classifier."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    size = _SIZE if rank < 3 else 5
    net = _Net(np.random.default_rng(draw(st.integers(0, 2**16))), rank, (3, *[size] * rank))
    net.conv(draw(st.sampled_from([4, 6])), draw(st.sampled_from([1, 3])))
    spatial = net.shape[1:]
    for op in draw(st.lists(st.sampled_from(_OPS), max_size=5)):
        kept = net.shape[1:]
        _grow(net, op, draw)
        if op == "gate":
            net.shape = (net.shape[0], *kept)
    if draw(st.booleans()):
        channels = net.shape[0]
        net.add("GlobalAveragePool")
        net.add("Flatten")
        weight = net.constant(net.random.normal(0, 0.5, (channels, 4)).astype(np.float32))
        if draw(st.booleans()):
            net.add("Gemm", weight, net.constant(np.ones(4, np.float32)))
        else:
            net.add("MatMul", weight)
    graph = helper.make_graph(
        net.nodes, "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *spatial])],
        [onnx.ValueInfoProto(name=net.last)], net.constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


@st.composite
def _recipes(draw: st.DrawFn) -> tuple[Recipe, str | None]:
    """Bits, and the grid of weights below 8 bits; None: the calibrated one."""
    bits = st.sampled_from([2, 3, 4, 8])
    recipe = Recipe(weights=draw(bits), activations=draw(bits), first_last=draw(bits), threads=1)
    return recipe, draw(st.sampled_from([None, "signed", "affine", "half"]))


def _planned(model: Model, data: Dataset, recipe: Recipe, grid: str | None) -> QuantPlan:
    plan = calibrate(model, find_points(model), data, recipe)
    changed = {}
    for layer in find_points(model).layers.values():
        quant = plan.tensors[layer.weight]
        if grid is not None and quant.qtype.bits < 8:
            qtype = QType(quant.qtype.bits, grid)  # type: ignore[arg-type]
            weight = np.asarray(model.initializers[layer.weight], np.float32)
            changed[layer.weight] = affine.weight_quant(weight, qtype, layer.axis, quant.scale / 8)
    return plan.updated(changed)


@settings(max_examples=40, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(proto=_networks(), asked=_recipes())
def test_it_loads_blocks_equal_the_whole_and_kernels_are_exact(
    proto: onnx.ModelProto, asked: tuple[Recipe, str | None]
) -> None:
    recipe, grid = asked
    model = fork(from_proto(proto), recipe.activations)
    shape = (4, *(s or 1 for s in model.shapes["x"][1:]))
    data = Dataset({"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)})
    plan = _planned(model, data, recipe, grid)
    emitted = emit(model, plan, ORT_CPU_AVX2)
    (output,) = model.outputs

    whole = Session(emitted, optimize=False, threads=1).run(data.inputs)[output]
    values = dict(data.inputs)
    for block in partition(model):
        part = Session(emit(extract(model, block), plan, ORT_CPU_AVX2), optimize=False, threads=1)
        values.update(part.run({name: values[name] for name in block.inputs}))  # type: ignore[arg-type]
    np.testing.assert_array_equal(values[output], whole)

    found = node_parity(emitted, data, 4, threads=1)
    assert found.nodes > 0
    # A step where a value lies between two; of a table's 256 entries one may serve many elements.
    assert found.max_steps <= 1, replace(found, operators=())
    assert found.mismatched_fraction <= 0.05
