"""How many bits a layer gets, and may get."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.bits import Bits, finest, offered_bits, tied, uniform_bits
from onnxbrecq.errors import RecipeError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.points import Points, find_points
from onnxbrecq.recipe import Recipe

_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
branches (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
    [first] a = Conv (x, w0)
    r = Relu (a)
    [left] b = Conv (r, w1)
    [right] c = Conv (r, w2)
    d = Add (b, c)
    [inner] e = Conv (d, w3)
    [last] y = Conv (e, w4)
}
"""
ALL = (2, 3, 4, 8)


@pytest.fixture
def points() -> Points:
    proto = onnx.parser.parse_model(_TEXT)
    for i in range(5):
        weight = np.random.default_rng(i).normal(size=(4, 4, 1, 1)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{i}"))
    return find_points(from_proto(proto))


def test_bits_as_the_recipe_says_them(points: Points) -> None:
    recipe = Recipe(weights=2, activations=4, pinned={"*t": 3, "left": None})
    assert uniform_bits(points, recipe) == {
        "first": Bits(3, 8),
        "left": Bits(None, None),
        "right": Bits(3, 4),
        "inner": Bits(2, 4),
        "last": Bits(3, 8),
    }


def test_first_and_last_as_all_others(points: Points) -> None:
    recipe = Recipe(weights=2, activations=4, first_last=None)
    assert set(uniform_bits(points, recipe).values()) == {Bits(2, 4)}


def test_what_is_offered_rises_to_the_finest(points: Points) -> None:
    recipe = Recipe(search="exact", offered=(8, 2, 4), pinned={"left": 4})
    offered = offered_bits(points, recipe, ALL, ALL)
    assert offered["inner"] == (Bits(2, 8), Bits(4, 8), Bits(8, 8))
    assert offered["left"] == (Bits(4, 8),)
    assert offered["first"] == offered["last"] == (Bits(8, 8),)
    assert finest(offered)["inner"] == Bits(8, 8)


def test_a_target_takes_what_it_takes(points: Points) -> None:
    recipe = Recipe(search="exact", offered=(2, 4, 8))
    assert offered_bits(points, recipe, (4, 8), (8,))["inner"] == (Bits(4, 8), Bits(8, 8))
    with pytest.raises(RecipeError, match=r"offered = \[2\]: the target takes none"):
        offered_bits(points, Recipe(search="exact", offered=(2,)), (4, 8), (8,))


def test_layers_that_read_one_tensor_are_tied(points: Points) -> None:
    recipe = Recipe(search="exact", offered=(4, 8), offered_activations=(4, 8))
    offered = offered_bits(points, recipe, ALL, ALL)
    assert offered["left"] == (Bits(4, 4), Bits(8, 4), Bits(4, 8), Bits(8, 8))
    assert tied(points, offered) == (("left", "right"),)


def test_beside_a_pinned_layer_data_has_its_bits(points: Points) -> None:
    """One tensor has one quantizer: what another layer reads of it would not be fewer."""
    recipe = Recipe(search="exact", offered=(4, 8), offered_activations=(4, 8), pinned={"left": 8})
    offered = offered_bits(points, recipe, ALL, ALL)
    assert offered["left"] == (Bits(8, 8),)
    assert offered["right"] == (Bits(4, 8), Bits(8, 8))
    assert tied(points, offered) == ()


def test_a_pin_that_matches_nothing_is_refused(points: Points) -> None:
    with pytest.raises(RecipeError, match="'middle'; layers are first, left"):
        uniform_bits(points, Recipe(pinned={"middle": 8}))
