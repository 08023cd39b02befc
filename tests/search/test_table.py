"""What a table says, and that it survives JSON."""

import itertools
import json

import numpy as np
import pytest

from onnxbrecq.bits import Bits
from onnxbrecq.errors import DataError
from onnxbrecq.search.table import BlockTable, Sensitivity, combinations

BITS = (Bits(2, 8), Bits(4, 8), Bits(8, 8))


def block(count: int, *, interaction: float = 0.0) -> BlockTable:
    choices = dict.fromkeys("abcde"[:count], BITS)
    losses = {
        c: 0.1 + sum(4.0**-place for place in c) + interaction * (c.count(0) >= 2)
        for c in combinations(choices)
    }
    return BlockTable("block", choices, losses, {"a": (3.0, 2.0, 1.0)})


def whole(*blocks: BlockTable) -> Sensitivity:
    fixed = {"first": Bits(8, 8), "none": Bits(None, None)}
    return Sensitivity("m", "d", "ort-cpu", "fisher", 64, blocks, fixed, "kl", 0.5, 1.0, ("note",))


@pytest.mark.parametrize(("layers", "count"), [(1, 3), (2, 9), (3, 27), (4, 1 + 8 + 24)])
def test_what_is_measured(layers: int, count: int) -> None:
    measured = combinations(dict.fromkeys("abcd"[:layers], BITS))
    assert len(set(measured)) == len(measured) == count
    assert (2,) * layers in measured


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_the_loss_of_what_was_measured_is_what_was_measured(layers: int) -> None:
    table = whole(block(layers, interaction=0.3))
    for combination, loss in table.blocks[0].losses.items():
        bits = dict(zip(table.choices, (BITS[place] for place in combination), strict=True))
        assert table.loss(bits) == pytest.approx(loss)


def test_pairs_add_up_to_more_layers() -> None:
    table = whole(block(4, interaction=0.3))
    bits = dict.fromkeys("abc", BITS[0]) | {"d": BITS[2]}
    alone = 0.1 + 3 + 4.0**-2
    assert table.loss(bits) == pytest.approx(alone + 3 * 0.3)  # of three pairs
    assert table.loss(bits, interactions=False) == pytest.approx(alone)


def test_layers_that_add_up_do_not_interact() -> None:
    found = block(3)
    terms = [
        found.interaction({one: i, two: j})
        for one, two in itertools.combinations("abc", 2)
        for i, j in itertools.product(range(3), repeat=2)
    ]
    np.testing.assert_allclose(terms, 0, atol=1e-12)


def test_it_survives_json() -> None:
    table = whole(block(2), block(4))
    assert Sensitivity.from_json(json.loads(json.dumps(table.as_json()))) == table


@pytest.mark.parametrize("damage", [{}, {"blocks": [{"name": "x"}]}, {"fixed": 3}, {"samples": []}])
def test_a_damaged_table_is_refused(damage: dict[str, object]) -> None:
    found = {**whole(block(2)).as_json(), **damage} if damage else {}
    if "samples" in damage:
        found.pop("samples")
    with pytest.raises(DataError, match="measure it anew"):
        Sensitivity.from_json(found)


def test_missing_combinations_are_refused() -> None:
    found = whole(block(2)).as_json()
    found["blocks"][0]["losses"].pop()
    with pytest.raises(DataError, match="combinations are missing"):
        Sensitivity.from_json(found)
