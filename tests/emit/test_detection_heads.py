"""Detection heads: boxes a hundred times larger than logits have a scale of their own."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph import normalise
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.passes.heads import edit_heads
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.coverage import coverage

_ANCHORS, _CLASSES, _LARGER, _BINS = 3, 8, 100.0, 8
_ALL = 4 + _CLASSES

_STEM = """a = Conv <pads = [1, 1, 1, 1]> (x, stem) f0 = Relu (a)
    f1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (f0) """
_LEVELS = {
    # YOLOv5 and v7: anchors; YOLOX: boxes and scores are joined; YOLOv8: distributions of distances
    "anchors": """h{i} = Conv (f{i}, whole) r{i} = Reshape (h{i}, anchors{i})
        t{i} = Transpose <perm = [0, 1, 3, 4, 2]> (r{i}) p{i}, q{i} = Split <axis = 4> (t{i}, ends)
        s{i} = Sigmoid (q{i}) j{i} = Concat <axis = 4> (p{i}, s{i}) l{i} = Reshape (j{i}, rows) """,
    "joined": """p{i} = Conv (f{i}, boxes) q{i} = Conv (f{i}, scores) s{i} = Sigmoid (q{i})
        j{i} = Concat <axis = 1> (p{i}, s{i}) k{i} = Reshape (j{i}, columns)
        l{i} = Transpose <perm = [0, 2, 1]> (k{i}) """,
    "distributions": """p{i} = Conv (f{i}, bins) q{i} = Conv (f{i}, scores)
        j{i} = Concat <axis = 1> (p{i}, q{i}) l{i} = Reshape (j{i}, longer) """,
}  # fmt: skip
_ENDS = {
    "anchors": "y = Concat <axis = 1> (l0, l1)",
    "joined": "y = Concat <axis = 1> (l0, l1)",
    "distributions": """z = Concat <axis = 2> (l0, l1) d, c = Split <axis = 1> (z, halves)
        r = Reshape (d, sides) t = Transpose <perm = [0, 2, 1, 3]> (r)
        e = Softmax <axis = 1> (t) m = Conv (e, mean) b = Reshape (m, four) s = Sigmoid (c)
        k = Concat <axis = 1> (b, s) y = Transpose <perm = [0, 2, 1]> (k)""",
}
_SHAPES = {
    "anchors0": [0, _ANCHORS, _ALL, 8, 8], "anchors1": [0, _ANCHORS, _ALL, 4, 4],
    "rows": [0, -1, _ALL], "columns": [0, _ALL, -1], "ends": [4, _CLASSES],
    "longer": [0, 4 * _BINS + _CLASSES, -1], "halves": [4 * _BINS, _CLASSES],
    "sides": [0, 4, _BINS, -1], "four": [0, 4, -1],
}  # fmt: skip


def _weights() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    made = {
        name: random.normal(size=(channels, 16, 1, 1)) / 4
        for name, channels in (
            ("whole", _ANCHORS * _ALL), ("boxes", 4), ("scores", _CLASSES), ("bins", 4 * _BINS),
        )
    }  # fmt: skip
    made["whole"].reshape(_ANCHORS, _ALL, 16)[:, :4] *= _LARGER
    made["boxes"] *= _LARGER
    made["bins"] *= 4
    made["stem"] = random.normal(size=(16, 3, 3, 3)) / 4
    made["mean"] = np.arange(_BINS).reshape(1, -1, 1, 1)
    return {name: array.astype(np.float32) for name, array in made.items()}


def _proto(kind: str) -> onnx.ModelProto:
    body = _STEM + "".join(_LEVELS[kind].format(i=i) for i in (0, 1)) + _ENDS[kind]
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    proto = onnx.parser.parse_model(
        f"{head} net (float[N, 3, 8, 8] x) => (float[N, B, V] y) {{ {body} }}"
    )
    read = {name for node in proto.graph.node for name in node.input}
    shapes = {name: np.array(value, np.int64) for name, value in _SHAPES.items()}
    for name, array in {**_weights(), **shapes}.items():
        if name in read:
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _quality(kind: str) -> tuple[float, float, float, int]:
    """SQNR of boxes and of scores in dB, share of integer work, and quantizers behind Convs."""
    x = np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)
    proto = _proto(kind)
    model = from_proto(proto)
    points = find_points(model)
    plan = calibrate(model, points, Dataset({"x": x}), Recipe(weights=8, activations=8, threads=1))
    made = emit(model, plan, ORT_CPU_AVX2)
    source, found = (Session(file, threads=1).run({"x": x})["y"] for file in (proto, made))
    noise = (found - source).astype(np.float64) ** 2
    power = source.astype(np.float64) ** 2
    boxes, scores = (
        10 * np.log10(power[..., part].sum() / noise[..., part].sum())
        for part in (slice(4), slice(4, None))
    )
    ran = integer_kernels(tuple(points.layers), executed(made, threads=1))
    assert None not in ran.values()
    heads = {x.node for x in points.layers.values() if x.edge and x.data not in model.inputs}
    groups = {points.points[n.output[0]].group for n in model.nodes if n.name in heads}
    share = coverage(model, ran).integer_macs_fraction
    return float(boxes), float(scores), share, len(groups)


_CELLS = 64 + 16  # of both levels
_MEAN = _CELLS * 4 * _BINS  # multiply-accumulates of what stays float
_WORK = 64 * 16 * 27 + _CELLS * 16 * (4 * _BINS + _CLASSES) + _MEAN


@pytest.mark.parametrize(
    ("kind", "integer"), [("anchors", 1), ("joined", 1), ("distributions", 1 - _MEAN / _WORK)]
)
def test_boxes_and_scores_have_a_scale_each(kind: str, integer: float) -> None:
    """8 bits over a normal distribution's range give some 40 dB, and so do those of the data."""
    boxes, scores, share, groups = _quality(kind)
    assert groups == 4  # two on each level
    assert min(boxes, scores) > 30
    assert share == pytest.approx(integer)


def test_parts_of_one_layer_gain_what_their_ranges_differ_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart = _quality("anchors")
    kept = tuple(edit for edit in normalise._REWRITES if edit is not edit_heads)
    monkeypatch.setattr(normalise, "_REWRITES", kept)
    together = _quality("anchors")
    assert (apart[3], together[3]) == (4, 2)
    assert apart[1] > together[1] + 20
    assert apart[0] > together[0] - 1
