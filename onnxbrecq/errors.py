"""The errors a user can meet: each says what, where, the value, and what to do next."""

from typing import ClassVar


class OnnxbrecqError(Exception):
    """Base of every error raised on purpose; its text is one line fit for a shell.

    Attributes:
        topic: heading of docs/troubleshooting.md that says more, or None.
    """

    topic: ClassVar[str | None] = None

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ModelError(OnnxbrecqError):
    """The float model cannot be read, understood or run."""

    topic = "model"


class DataError(OnnxbrecqError):
    """Calibration or evaluation data does not fit the model."""

    topic = "data"


class RecipeError(OnnxbrecqError):
    """An option or a recipe key is unknown or out of range."""


class PlanError(OnnxbrecqError):
    """A plan on disk is damaged, or belongs to another model."""


class EmissionError(OnnxbrecqError):
    """A decision of the plan cannot be written for the target; names the node."""


class OutputError(OnnxbrecqError):
    """A file cannot be written where it was asked for."""
