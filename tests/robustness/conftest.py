"""What the tests of robustness share."""

from collections.abc import Iterator

import pytest
from children import Children


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """The command line in forked children."""
    with Children() as server:
        yield server
