"""The best bits for a budget of size: by the sum over layers, and by the very file."""

from collections.abc import Callable

from onnxbrecq.mixed import Menu, chosen, explored
from onnxbrecq.progress import silent
from onnxbrecq.search.allocate import Limit

MenuOf = Callable[..., Menu]  # the fixture of conftest.py


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
