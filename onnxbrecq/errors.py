"""The errors a user can meet: each says what, where, the value, and what to do next."""

from typing import ClassVar

_LONGEST = 600  # characters of a message: names and what others say may be of any length


class OnnxbrecqError(Exception):
    """Base of every error raised on purpose; its text is one line fit for a shell.

    Attributes:
        topic: heading of docs/troubleshooting.md that says more, or None.
    """

    topic: ClassVar[str | None] = None

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
        super().__init__(text)


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


# How the loader of libraries, C++, torch, the system and oneDNN say that memory is at an end.
_NO_MEMORY = (
    "failed to map segment", "bad_alloc", "allocate memory", "annot allocate", "start new thread",
    "could not create a primitive",
)  # fmt: skip


def is_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: nothing to be concluded from, but to stop at."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)
