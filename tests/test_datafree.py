"""Samples made from the model alone."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq import datafree
from onnxbrecq.datafree import _scale, _start, made_data
from onnxbrecq.errors import DataError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.recipe import Recipe

RECIPE = Recipe(threads=1)


def build(text: str, **shapes: tuple[int, ...]) -> Model:
    """The model of the text with small random constants of these shapes."""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        value = random.normal(size=shape).astype(np.float32)
        value = np.abs(value) + 0.5 if name.startswith("v") else value
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return from_proto(proto)


NORMED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 12, 12] x) => (float[N, 5] y) {
    a = Conv (x, w)
    b = BatchNormalization (a, g, e, m, v)
    c = Relu (b)
    d = GlobalAveragePool (c)
    f = Flatten (d)
    y = Gemm <transB = 1> (f, u)
}
"""


def normed(inputs: float = 1.0) -> Model:
    """A network whose BatchNormalization has seen inputs of that deviation."""
    model = build(NORMED, w=(8, 3, 3, 3), g=(8,), e=(8,), m=(8,), v=(8,), u=(5, 8))
    for norm in model.norms.values():  # what a unit input gives, see below
        norm.std[:] = np.sqrt(np.square(model.initializers[model.nodes[0].input[1]])
                              .sum(axis=(1, 2, 3))) * inputs  # fmt: skip
    return model


def test_images_are_distilled_towards_the_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datafree, "_SAMPLES", (32, 32))
    made = made_data(normed(), RECIPE)
    assert made.facts.how == "distilled"
    assert made.facts.norms == 1
    assert made.facts.loss_after < made.facts.loss_before  # type: ignore[operator]
    images = made.data.inputs["x"]
    assert images.shape == (32, 3, 12, 12)
    assert images.dtype == np.float32
    assert np.array_equal(images, made_data(normed(), RECIPE).data.inputs["x"])


@pytest.mark.parametrize("inputs", [0.25, 1.0, 60.0])
def test_the_scale_is_that_of_the_norms(inputs: float) -> None:
    model = normed(inputs)
    noise = {"x": np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)}
    assert _scale(model, noise, ["x"], RECIPE) == inputs


TOKENS = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[N, S] ids, int64[N, S] segments, int64[N, S] position_ids, int64[N, S] mask)
  => (float[N, S, 6] y) {
    a = Gather (words, ids)
    b = Gather (kinds, segments)
    c = Gather (places, position_ids)
    f = Cast <to = 1> (mask)
    h = Unsqueeze (f, axes)
    d = Add (a, b)
    e = Add (d, c)
    k = Mul (e, h)
    y = MatMul (k, w)
}
"""


def test_token_ids_are_drawn_from_the_vocabulary() -> None:
    proto = onnx.parser.parse_model(TOKENS)
    random = np.random.default_rng(0)
    for name, rows in {"words": 50, "kinds": 2, "places": 64, "w": 6}.items():
        value = random.normal(size=(rows, 6)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axes"))
    made = made_data(from_proto(proto), RECIPE)
    assert made.facts.how == "sampled"
    ids, segments, places, mask = (
        np.asarray(made.data.inputs[n]) for n in ("ids", "segments", "position_ids", "mask")
    )
    assert ids.shape == (256, 32)
    assert set(ids.flat) == set(range(50))
    assert not segments.any()
    assert np.array_equal(places[5], np.arange(32))
    assert mask.all()


def test_text_cannot_be_made_up() -> None:
    model = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (string[N] words, float[N, 3] x) => (float[N, 2] y) { y = MatMul (x, w) }
    """, w=(3, 2))  # fmt: skip
    with pytest.raises(DataError, match="'words' is object; pass data with -d"):
        made_data(model, RECIPE)


def test_shapes_that_do_not_fit_together_are_one_line() -> None:
    """Where two inputs must have the same free length as a constant, guesses fail."""
    model = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, S] x) => (float[N, 2] y) { a = Add (x, c) y = MatMul (a, w) }
    """, c=(1, 7), w=(7, 2))  # fmt: skip
    with pytest.raises(DataError, match=r"does not fit the model .*pass data with -d"):
        made_data(model, RECIPE)


def test_channels_last_images() -> None:
    model = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 9, 10, 3] x) => (float[N, 9, 10, 2] y) { y = MatMul (x, w) }
    """, w=(3, 2))  # fmt: skip
    assert _start(model, "x", 4, 0).shape == (4, 9, 10, 3)
