"""Layers that no runtime could compute, or only to NaN, are refused by name."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import from_proto

_SHAPES = {"w": (4, 3, 3, 3), "v": (4, 9, 1, 1), "m": (5, 2), "b": (4,), "g": (3,), "mask": (6, 6)}


def _proto(body: str, **broken: float) -> onnx.ModelProto:
    """A model of images [N, 3, 6, 6]; the first value of each `broken` constant is replaced."""
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, 6, 6] x) => (float y)'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        array = random.normal(size=shape).astype(np.float32)
        array.reshape(-1)[0] = broken.get(name, array.reshape(-1)[0])
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("[first] y = Conv (x, w)", "w"),
        ("[first] y = Conv (x, w, b)", "b"),
        ("[first] y = InstanceNormalization (x, g, g)", "g"),
    ],
    ids=["weight", "bias", "norm"],
)
def test_a_layer_that_multiplies_no_numbers_is_refused(body: str, name: str, value: float) -> None:
    said = f"constant '{name}.*' holds NaN or infinite .* 'first'"
    with pytest.raises(ModelError, match=said):
        from_proto(_proto(body, **{name: value}))


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        ("y = Add (x, mask)", {"mask": -np.inf}),
        ("h = Conv (x, w) y = Relu (h)", {"v": np.nan}),
    ],
    ids=["mask", "unused"],
)
def test_constants_elsewhere_may_be_infinite(body: str, broken: dict[str, float]) -> None:
    assert from_proto(_proto(body, **broken)).batched


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("h = Conv (x, w) [odd] y = Conv (h, v)", "'odd' .Conv.*data has 4 channels.*takes 9"),
        ("[odd] y = Conv <pads = [1, 1]> (x, w)", "'odd' .Conv.*pads has 2 numbers, 4 are"),
        ("[odd] y = Conv (x, m)", "'odd' .Conv.*4 dimensions, its weight 2"),
        ("[odd] y = MatMul (x, m)", "'odd' .MatMul.*sum over 6 and over 5"),
    ],
    ids=["channels", "pads", "rank", "sum"],
)
def test_a_layer_that_does_not_fit_its_data_is_refused(body: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        from_proto(_proto(body))
