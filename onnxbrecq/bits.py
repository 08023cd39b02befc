"""How many bits each layer gets, decided once, before anything is calibrated.

A layer's bits are those of its weight and of the data it reads. Uniform bits follow from the recipe
alone; mixed ones are chosen (`onnxbrecq.search`) among those that the recipe offers each layer.
Either way layers that the recipe pins, and the first and the last one, keep what it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxbrecq.errors import RecipeError
from onnxbrecq.graph.points import Points
from onnxbrecq.graph.weights import Layer
from onnxbrecq.recipe import Recipe

_NAMED = 5  # layers in a message


@dataclass(frozen=True, order=True)
class Bits:
    """Bits of a layer's weight and of the data it reads; None: float."""

    weight: int | None
    data: int | None


Allocation = Mapping[str, Bits]  # layer (its node's name) → its bits


def uniform_bits(points: Points, recipe: Recipe) -> dict[str, Bits]:
    """The bits of every layer as the recipe says them.

    Raises:
        RecipeError: a pin matches no layer.
    """
    pins = _pins(points, recipe)
    return {
        name: Bits(
            _weight(layer, recipe, pins), _data(layer, recipe, pins) if layer.integer else None
        )
        for name, layer in points.layers.items()
    }


def offered_bits(
    points: Points, recipe: Recipe, weights: Sequence[int], activations: Sequence[int | None]
) -> dict[str, tuple[Bits, ...]]:
    """What each layer may get, the finest last; one choice where it is pinned.

    Args:
        points: the model's quantization points.
        recipe: what is offered and pinned.
        weights: bits of weights that the target takes.
        activations: bits of activations that it takes.

    Raises:
        RecipeError: a pin matches no layer, or nothing that is offered is taken.
    """
    pins = _pins(points, recipe)
    offered = sorted(set(recipe.offered) & set(weights))
    reads = sorted(set(recipe.offered_activations) & {bits for bits in activations if bits})
    for key, asked, taken in (
        ("offered", recipe.offered, offered),
        ("offered_activations", recipe.offered_activations, reads),
    ):
        if asked and not taken:
            raise RecipeError(f"{key} = {list(asked)}: the target takes none of them")
    said = uniform_bits(points, recipe)
    tables = points.tied({table.weight for table in points.tables.values()})
    closed = {
        name for name, layer in points.layers.items()
        if name in pins
        or layer.weight in tables
        or _is_shared(points, layer)
        or (layer.edge and recipe.first_last is not None)
    }  # fmt: skip
    least = _least_data(points, {name: said[name] for name in closed})
    found: dict[str, tuple[Bits, ...]] = {}
    for name, layer in points.layers.items():
        data: list[int | None] = [said[name].data]
        if reads and layer.integer and layer.data in points.points:
            least_here = least.get(points.points[layer.data].group, 0)
            data = [bits for bits in reads if bits >= least_here] or [least_here]
        free = tuple(Bits(w, a) for a in data for w in offered)
        found[name] = (said[name],) if name in closed else free
    return found


def _is_shared(points: Points, layer: Layer) -> bool:
    """Whether other layers have the same weight: they would have to choose alike."""
    return len(points.points[layer.weight].layers) > 1


def _least_data(points: Points, closed: Allocation) -> dict[str, int]:
    """Quantizer → the most bits that a layer without a choice reads of it: others read as many."""
    found: dict[str, int] = {}
    for name, bits in closed.items():
        data = points.layers[name].data
        if bits.data is not None and data in points.points:
            group = points.points[data].group
            found[group] = max(found.get(group, 0), bits.data)
    return found


def finest(offered: Mapping[str, Sequence[Bits]]) -> dict[str, Bits]:
    """The last that each layer is offered."""
    return {name: choices[-1] for name, choices in offered.items()}


def tied(points: Points, offered: Mapping[str, Sequence[Bits]]) -> tuple[tuple[str, ...], ...]:
    """Layers that read one quantizer, of several bits to choose from: all get the same."""
    readers: dict[str, list[str]] = {}
    for name, layer in points.layers.items():
        if layer.data in points.points and len({bits.data for bits in offered[name]}) > 1:
            readers.setdefault(points.points[layer.data].group, []).append(name)
    return tuple(tuple(names) for names in readers.values() if len(names) > 1)


def _pins(points: Points, recipe: Recipe) -> dict[str, int | None]:
    """Layer → the bits its weight is pinned to; of several patterns the last holds."""
    found: dict[str, int | None] = {}
    for pattern, bits in recipe.pinned.items():
        names = [name for name in points.layers if fnmatchcase(name, pattern)]
        if not names:
            known = ", ".join(list(points.layers)[:_NAMED])
            raise RecipeError(f"pinned: no layer is called {pattern!r}; layers are {known}, ...")
        found.update(dict.fromkeys(names, bits))
    return found


def _weight(layer: Layer, recipe: Recipe, pins: Mapping[str, int | None]) -> int | None:
    if layer.node in pins:
        return pins[layer.node]
    return recipe.first_last if layer.edge and recipe.first_last is not None else recipe.weights


def _data(layer: Layer, recipe: Recipe, pins: Mapping[str, int | None]) -> int | None:
    """16 bits hold for all: runtimes want one type for all operands of an operator."""
    bits = recipe.activations
    if layer.node in pins and pins[layer.node] is None:
        return None
    if bits is None or bits > 8 or not layer.edge or recipe.first_last is None:
        return bits
    return recipe.first_last
