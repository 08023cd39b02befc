"""How a long stage tells whoever watches how far it is; the library never prints."""

from typing import Protocol


class Progress(Protocol):
    """Called with a stage's name, the steps done and their total; `detail` is for the reader."""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """One step of a stage is done."""


def silent(stage: str, done: int, total: int, detail: str = "") -> None:
    """Watches nothing."""
