"""What the user asks for: validated once, when it is made."""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe.budget import Budget, Latency
from onnxbrecq.recipe.checks import one_of, size_in_bytes
from onnxbrecq.recipe.preprocess import Preprocess
from onnxbrecq.recipe.reconstruction import (
    DEFAULT_EFFORT,
    EFFORTS,
    SETTINGS,
    Effort,
    Reconstruction,
)
from onnxbrecq.recipe.tables import values_of

Search = Literal["exact", "genetic"]

WEIGHT_BITS = (2, 3, 4, 8)
ACTIVATION_BITS = (2, 3, 4, 8, 16)
DEVICES = ("auto", "cpu", "cuda")
SEARCHES = ("exact", "genetic")
BLOCK_SIZES = (16, 32, 64, 128, 256)
TARGETS = ("ort-cpu", "ort-cpu-avx2", "openvino", "tensorrt", "qnn", "portable")


@dataclass(frozen=True)
class Recipe:
    """Everything a quantization depends on besides the model and the data.

    Attributes:
        weights: bits of weights.
        activations: bits of the activations that weight layers read; 16: of all activations; None
            leaves them all float (weight-only).
        block_size: inputs of a Gemm or MatMul that share a scale, output by output; None: all do.
            For weight-only quantization.
        first_last: bits of the first and the last weight layer, weights and inputs; None: they are
            as all others.
        pinned: pattern of layers' names (`*`, `?`, `[...]`) → bits of their weights, whatever the
            others have; None: these layers stay float.
        budget: what the model may cost, each at most: with one, each layer's bits are chosen
            (mixed precision), in place of `weights`.
        search: how they are chosen: exactly, or by the paper's genetic search. None: no mixed
            precision without a budget; with `max_drop` and no budget, the smallest model that
            passes.
        offered: bits of weights to choose from.
        offered_activations: of what layers read, to choose from; none: all as `activations` says.
        search_samples: on which sensitivities are measured.
        latency: what a latency budget means.
        effort: how long to optimise.
        target: the runtime the model is for (`onnxbrecq.emit.targets` says what each takes); None:
            `ort-cpu`, or `ort-cpu-avx2` on a processor whose kernels for signed 8-bit weights
            saturate.
        max_drop: the gate, in percentage points; None: no gate.
        min_integer: the gate, as the share of all multiply-accumulates of weight layers that must
            run in integer kernels, from 0 to 1; None: no gate.
        max_size: the gate, of the written files: bytes, a size such as "3MB", or "12%" of the float
            model's; None: no gate.
        min_speedup: the gate, as how many times as fast as the float model it has to be, with one
            sample and one thread; None: no gate.
        seed: of every random choice.
        threads: of torch and onnxruntime; None: all cores.
        max_memory: bytes the process may take, beyond which activations go to disk; None: half of
            what is free. The result does not depend on it.
        device: where blocks are optimised; `auto`: on a GPU if torch can use one.
        preprocess: for image folders.
        reconstruction: how blocks are learned, in place of what `effort` says.
    """

    weights: int = 4
    activations: int | None = 8
    block_size: int | None = None
    first_last: int | None = 8
    pinned: Mapping[str, int | None] = field(default_factory=dict)
    budget: tuple[Budget, ...] = ()
    search: Search | None = None
    offered: tuple[int, ...] = (2, 4, 8)
    offered_activations: tuple[int, ...] = ()
    search_samples: int = 128
    latency: Latency = field(default_factory=Latency)
    effort: Effort = DEFAULT_EFFORT
    target: str | None = None
    max_drop: float | None = None
    min_integer: float | None = None
    max_size: int | str | None = None
    min_speedup: float | None = None
    seed: int = 0
    threads: int | None = None
    max_memory: int | None = None
    device: str = "auto"
    preprocess: Preprocess | None = None
    reconstruction: Reconstruction | None = None

    def __post_init__(self) -> None:
        one_of("weights", self.weights, WEIGHT_BITS)
        if self.activations is not None:
            one_of("activations", self.activations, ACTIVATION_BITS)
        if self.block_size is not None:
            one_of("block_size", self.block_size, BLOCK_SIZES)
            if self.activations is not None:
                raise RecipeError(
                    f"block_size = {self.block_size}: integer kernels take one scale for each "
                    "output of a layer; leave activations float (weight-only), or leave blocks out"
                )
        if self.first_last is not None:
            one_of("first_last", self.first_last, WEIGHT_BITS)
        self._check_search()
        one_of("effort", self.effort, EFFORTS)
        if self.target is not None:
            one_of("target", self.target, TARGETS)
        one_of("device", self.device, DEVICES)
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise RecipeError(f"max_drop = {self.max_drop}: want percentage points from 0 to 100")
        if self.min_integer is not None and not 0 <= self.min_integer <= 1:
            raise RecipeError(f"min_integer = {self.min_integer}: want a share from 0 to 1")
        if self.max_size is not None and not 0 < self.size_limit(1) < math.inf:
            raise RecipeError(f"max_size = {self.max_size}: want more than nothing")
        if self.min_speedup is not None and not 0 < self.min_speedup < math.inf:
            raise RecipeError(f"min_speedup = {self.min_speedup}: want a factor above 0")
        if self.threads is not None and self.threads < 1:
            raise RecipeError(f"threads = {self.threads}: want at least 1")
        if self.max_memory is not None and self.max_memory < 1:
            raise RecipeError(f"max_memory = {self.max_memory}: want at least a byte")
        if self.seed < 0:
            raise RecipeError(f"seed = {self.seed}: want 0 or more")

    def _check_search(self) -> None:
        """What mixed precision is to choose from."""
        for pattern, bits in self.pinned.items():
            if bits is not None:
                one_of(f"pinned {pattern!r}", bits, WEIGHT_BITS)
        if self.search is not None:
            one_of("search", self.search, SEARCHES)
        for key, allowed in (("offered", WEIGHT_BITS), ("offered_activations", (2, 3, 4, 8))):
            for bits in getattr(self, key):
                one_of(key, bits, allowed)
        if not self.offered:
            raise RecipeError("offered = []: want at least one number of bits")
        if self.offered_activations and (self.activations is None or self.activations > 8):
            raise RecipeError("offered_activations: there are none of 8 bits and less to choose")
        keys = [budget.key for budget in self.budget]
        if len(set(keys)) < len(keys):
            raise RecipeError(f"budget: {', '.join(keys)}: give each key once")
        if self.search_samples < 2:
            raise RecipeError(f"search_samples = {self.search_samples}: want at least 2")

    @property
    def mixed(self) -> bool:
        """Whether each layer's bits are chosen."""
        return self.search is not None or bool(self.budget)

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> Self:
        """The recipe in a TOML file; `overrides` (the command line) win.

        The file holds the attributes of `Recipe` at top level, those of `Preprocess` under
        `[data.preprocess]`, where `preset = NAME` stands for those of a preset, those of
        `Reconstruction` under `[reconstruction]` and those of `Latency` under `[latency]`;
        `activations = "float"` means weight-only, `first_last = "free"` none; `max_memory` may be a
        size such as "4GiB"; `budget` is a table or a list of `KEY=VALUE`; in `[pinned]` bits may be
        "float". `max_drop` without bits of weights, a budget or a search asks for the smallest
        model that passes.

        Raises:
            RecipeError: the file is unreadable, or a key is unknown or of the wrong type.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as TOML: {error}") from error
        return cls.from_table(table, **overrides)

    @classmethod
    def from_table(cls, table: dict[str, Any], **overrides: Any) -> Self:
        """The recipe of an already parsed TOML table; see `from_toml`."""
        return cls(**values_of(cls, table, overrides))

    def settings(self) -> Reconstruction:
        """How blocks are learned."""
        return self.reconstruction or SETTINGS[self.effort]

    def decisive(self) -> Self:
        """What decisions depend on: the gates and the bound of memory are as if not given."""
        return dataclasses.replace(
            self, max_drop=None, min_integer=None, max_size=None, min_speedup=None,
            max_memory=None, latency=Latency(),
        )  # fmt: skip

    def size_limit(self, float_bytes: int) -> float:
        """Bytes of `max_size` (infinite without one) for a float model of so many."""
        if self.max_size is None:
            return math.inf
        if isinstance(self.max_size, int):
            return self.max_size
        share = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", self.max_size.strip())
        return (
            float(share[1]) / 100 * float_bytes
            if share
            else size_in_bytes("max_size", self.max_size)
        )

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**found, "weights": None} if self.mixed else found
