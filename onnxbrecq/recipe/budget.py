"""What a mixed-precision model may cost."""

import math
import re
from dataclasses import dataclass
from typing import Literal, Self

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe.checks import numbers, one_of, size_in_bytes

BUDGETS = ("size", "bitops", "latency")
LATENCIES = ("onnxruntime", "table", "systolic")


@dataclass(frozen=True)
class Budget:
    """The most that a mixed-precision model may cost.

    Attributes:
        key: of what: `size` of the file in bytes, `bitops` of a sample, `latency` of a sample in
            milliseconds.
        amount: how much.
        relative: of the size, as a share of the float model's file.
    """

    key: str
    amount: float
    relative: bool = False

    def __post_init__(self) -> None:
        one_of("budget", self.key, BUDGETS)
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise RecipeError(f"budget {self.key} = {self.amount}: want more than 0")
        if self.relative and self.key != "size":
            raise RecipeError(f"budget {self.key}: only a size is a share of the float model's")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The budget that a command line or a recipe gives as `KEY=VALUE`.

        `size=3MB`, `size=12%` of the float model's file, `bitops=40G`, `latency=5ms`.

        Raises:
            RecipeError: it is none of these.
        """
        key, _, value = (part.strip() for part in text.partition("="))
        one_of("budget", key, BUDGETS)
        if key == "size" and not value.endswith("%"):
            return cls(key, size_in_bytes("budget size", value))
        unit = {"size": "%", "bitops": "", "latency": "(?:ms)?"}[key]
        found = re.fullmatch(rf"(\d+(?:\.\d+)?(?:e\d+)?) ?([kMGT]?){unit}", value)
        if found is None or (found[2] and key != "bitops"):
            wanted = {"size": "3MB or 12%", "bitops": "40G or 4e10", "latency": "5ms"}[key]
            raise RecipeError(f"budget {key} = {value!r}: want something like {wanted}")
        amount = float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")
        return cls(key, amount / 100, relative=True) if key == "size" else cls(key, amount)


@dataclass(frozen=True)
class Latency:
    """What is taken for the latency of a layer, so that a budget can hold it.

    Attributes:
        model: measured on `onnxruntime`, whose CPU kernels are as fast whatever the bits; read from
            a `table`; or computed for a `systolic` array.
        table: a CSV file: milliseconds of layers at each of their bits.
        rows: of the array: values of a sum that are multiplied at once.
        columns: of the array: output channels at a time.
        clock_mhz: cycles in a microsecond.
        bandwidth_gbs: gigabytes a second from and to memory.
    """

    model: Literal["onnxruntime", "table", "systolic"] = "onnxruntime"
    table: str | None = None
    rows: int = 32
    columns: int = 32
    clock_mhz: float = 500.0
    bandwidth_gbs: float = 8.0

    def __post_init__(self) -> None:
        one_of("latency.model", self.model, LATENCIES)
        for key in ("rows", "columns"):
            if not numbers([getattr(self, key)], 1, int, least=1):
                raise RecipeError(f"latency.{key} = {getattr(self, key)}: want at least 1")
        for key in ("clock_mhz", "bandwidth_gbs"):
            if not (numbers([getattr(self, key)], 1, float) and getattr(self, key) > 0):
                raise RecipeError(f"latency.{key} = {getattr(self, key)}: want more than 0")
        if (self.model == "table") != (self.table is not None):
            raise RecipeError('latency.table: give it with latency.model = "table", and then only')
