"""The best bits for a budget of size: by the sum over layers, and by the very file."""

from collections.abc import Callable

from onnxbrecq.mixed import Menu, chosen, explored
from onnxbrecq.progress import silent
from onnxbrecq.search.allocate import Limit

MenuOf = Callable[..., Menu]  # the fixture of conftest.py


def test_at_the_size_of_a_uniform_model_its_own_edges_may_be_chosen(menu: MenuOf) -> None:
    space = explored(menu(first_last=None), silent)
    choices = space.problem.choices
    uniform = {
        name: next(bits for bits in found if bits.weight == 4) for name, found in choices.items()
    }
    for edge in (next(iter(choices)), next(reversed(choices))):
        uniform[edge] = next(bits for bits in choices[edge] if bits.weight == 8)
    size = space.menu.file_bytes(uniform)
    found = chosen(space, [Limit(space.menu.size, size)])
    assert found.costs["size"] == space.menu.file_bytes(found.bits) <= size
    assert found.loss <= space.table.loss(uniform)


def test_at_the_size_of_even_bits_nothing_is_chosen_that_loses_more(menu: MenuOf) -> None:
    space = explored(menu(), silent)
    even = {
        name: next(bits for bits in found if bits.weight == 4)
        for name, found in space.problem.choices.items()
    }
    size = space.menu.file_bytes(even)
    found = chosen(space, [Limit(space.menu.size, size)])
    assert found.costs["size"] == space.menu.file_bytes(found.bits) <= size
    assert found.loss <= space.table.loss(even)
