"""The laws of an allocation, against every allocation there is."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxbrecq.bits import Bits
from onnxbrecq.errors import RecipeError
from onnxbrecq.search.allocate import Limit, Problem, exact, least
from onnxbrecq.search.costs import Cost
from onnxbrecq.search.genetic import genetic
from onnxbrecq.search.table import BlockTable, Sensitivity, combinations

BITS = (Bits(2, 8), Bits(4, 8), Bits(8, 8))
MIXED = (Bits(4, 4), Bits(8, 4), Bits(4, 8), Bits(8, 8))


def table(sizes: tuple[int, ...], seed: int, bits: tuple[Bits, ...] = BITS) -> Sensitivity:
    """Blocks of so many layers, whose losses fall over orders of magnitude with their bits."""
    random = np.random.default_rng(seed)
    blocks = []
    for i, size in enumerate(sizes):
        choices = {f"b{i}.{j}": bits for j in range(size)}
        weight = np.exp(random.normal(0, 3, size))
        losses = {
            c: float(sum(w * 4.0 ** -(len(bits) * k) for w, k in zip(weight, c, strict=True)))
            * (1 + random.random())
            for c in combinations(choices)
        }
        blocks.append(BlockTable(f"b{i}", choices, losses))
    return Sensitivity("", "", "ort-cpu", "fisher", 1, tuple(blocks), {})


def cost(found: Sensitivity, seed: int, key: str = "size") -> Cost:
    random = np.random.default_rng(seed)
    sizes = {name: int(random.integers(1, 10_000)) for name in found.choices}
    layers = {
        name: tuple(float(size * (b.weight or 32) * (b.data or 32)) for b in found.choices[name])
        for name, size in sizes.items()
    }
    return Cost(key, "units", float(random.integers(0, 10_000)), layers)


def problem(found: Sensitivity, ties: tuple[tuple[str, ...], ...] = ()) -> Problem:
    return Problem(found.choices, found.factors(), ties)


def budget(of: Cost, share: float) -> Limit:
    low, high = (of.base + sum(f(costs) for costs in of.layers.values()) for f in (min, max))
    return Limit(of, low + share * (high - low))


def every(found: Sensitivity) -> list[Mapping[str, int]]:
    ranges = [range(len(bits)) for bits in found.choices.values()]
    return [dict(zip(found.choices, places, strict=True)) for places in itertools.product(*ranges)]


shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 10**6), st.floats(0, 1), st.floats(0.2, 1))
def test_no_allocation_within_the_budgets_loses_less(
    sizes: tuple[int, ...], seed: int, share: float, other: float
) -> None:
    found = table(sizes, seed)
    whole, limits = problem(found), [budget(cost(found, seed), share)]
    limits.append(budget(cost(found, seed + 1, "bitops"), other))
    within = [places for places in every(found) if whole.holds(dict(places), limits)]
    if not within:
        with pytest.raises(RecipeError, match="budget"):
            exact(whole, limits)
        return
    best = exact(whole, limits)
    assert all(best.costs[limit.cost.key] <= limit.most for limit in limits)
    assert best.loss == pytest.approx(min(whole.loss(dict(p)) for p in within), rel=1e-9)
    assert best.loss == pytest.approx(found.loss(best.bits))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_more_budget_never_predicts_more_loss(seed: int, one: float, two: float) -> None:
    found = table((3, 2, 3), seed)
    small, large = sorted((one, two))
    losses = [exact(problem(found), [budget(cost(found, seed), x)]).loss for x in (small, large)]
    assert losses[1] <= losses[0] * (1 + 1e-9)


def test_pairs_stand_for_blocks_of_more_layers() -> None:
    found = table((5,), 3)
    whole, limit = problem(found), budget(cost(found, 4), 0.4)
    best = exact(whole, [limit])
    within = [places for places in every(found) if whole.holds(dict(places), [limit])]
    assert best.loss == pytest.approx(min(whole.loss(dict(p)) for p in within), rel=1e-9)


def test_layers_that_lose_nothing_take_the_fewest_bits() -> None:
    losses = {c: 0.5 if c[0] == 0 else 0.1 for c in itertools.product(range(3), repeat=2)}
    block = BlockTable("b", {"x": BITS, "y": BITS}, losses)
    found = Sensitivity("", "", "", "fisher", 1, (block,), {})
    best = exact(problem(found), [budget(cost(found, 0), 1.0)])
    assert best.bits == {"x": BITS[1], "y": BITS[0]}


def test_the_same_again() -> None:
    """Two layers alike: which of them gets the bits is chance, but always the same."""
    losses = {c: float(sum(4.0**-k for k in c)) for c in itertools.product(range(3), repeat=2)}
    block = BlockTable("b", {"x": BITS, "y": BITS}, losses)
    found = Sensitivity("", "", "", "fisher", 1, (block,), {})
    same = Cost("size", "bytes", 0.0, dict.fromkeys("xy", (2.0, 4.0, 8.0)))
    one, two = (exact(problem(found), [Limit(same, 7.0)]) for _ in range(2))
    assert one.bits == two.bits
    assert sorted(bits.weight or 0 for bits in one.bits.values()) == [2, 4]


def test_layers_that_read_one_tensor_read_the_same_bits() -> None:
    found = table((2, 1), 5, MIXED)
    tie = (("b0.0", "b1.0"),)
    for share in (0.1, 0.3, 0.5, 0.8):
        limits = [budget(cost(found, 6), share)]
        for best in (exact(problem(found, tie), limits), genetic(problem(found, tie), limits, 0)):
            assert best.bits["b0.0"].data == best.bits["b1.0"].data


def test_a_budget_that_cannot_be_met_names_the_nearest() -> None:
    found = table((2, 2), 7)
    of = cost(found, 8)
    low = least(problem(found), of)
    with pytest.raises(RecipeError, match=f"least that can be had is {low:.0f}B"):
        exact(problem(found), [Limit(of, 0.9 * low)])
    assert exact(problem(found), [Limit(of, low)]).costs["size"] == low


def test_budgets_that_exclude_each_other_are_named_together() -> None:
    found = table((1, 1), 9)
    one = Cost("size", "bytes", 0.0, {"b0.0": (1.0, 2.0, 4.0), "b1.0": (1.0, 2.0, 4.0)})
    two = Cost("bitops", "", 0.0, {"b0.0": (4.0, 2.0, 1.0), "b1.0": (4.0, 2.0, 1.0)})
    with pytest.raises(RecipeError, match=r"had with bitops <= 2 is 8B"):
        exact(problem(found), [Limit(one, 7.0), Limit(two, 2.0)])


@pytest.mark.parametrize("share", [0.1, 0.35, 0.7])
def test_the_genetic_search_is_never_better(share: float) -> None:
    found = table((3, 3, 2, 4), 10)
    limits = [budget(cost(found, 11), share)]
    best, other = exact(problem(found), limits), genetic(problem(found), limits, 0)
    assert other.costs["size"] <= limits[0].most
    assert other.loss >= best.loss * (1 - 1e-9)
    assert other.loss == pytest.approx(found.loss(other.bits))
    assert genetic(problem(found), limits, 0).bits == other.bits


def test_sixty_layers_are_proved_optimal() -> None:
    found = table((3,) * 20, 12)
    best = exact(problem(found), [budget(cost(found, 13), 0.3)])
    assert best.gap is not None
    assert best.gap < 1e-6


def test_nothing_to_choose_is_no_budget_to_keep() -> None:
    nothing = Problem({}, ())
    of = Cost("size", "bytes", 100.0, {})
    assert exact(nothing, [Limit(of, 100.0)]).bits == {}
    with pytest.raises(RecipeError, match="100B"):
        exact(nothing, [Limit(of, 99.0)])
