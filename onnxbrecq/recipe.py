"""What the user asks for: validated once, here; the only place with defaults."""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from onnxbrecq.errors import RecipeError

Effort = Literal["fast", "balanced", "best", "paper"]

WEIGHT_BITS = (2, 3, 4, 8)
ACTIVATION_BITS = (2, 3, 4, 8, 16)
EFFORTS = ("fast", "balanced", "best", "paper")
DEVICES = ("auto", "cpu", "cuda")
BLOCK_SIZES = (16, 32, 64, 128, 256)
TARGETS = ("ort-cpu", "ort-cpu-avx2", "openvino", "tensorrt", "qnn", "portable")


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed or isinstance(value, bool):
        raise RecipeError(f"{key} = {value!r}: choose one of {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class Preprocess:
    """How an image file becomes a model input.

    Attributes:
        resize_short: scale the shorter side to this many pixels (bilinear), or None.
        resize: exact (height, width), or None; after `resize_short`.
        center_crop: (height, width) cut from the middle, or None.
        scale: factor on the 0…255 values, before mean and std.
        mean: per channel, in the order of `channels`, after `scale`.
        std: per channel, likewise.
        channels: the order the model wants.
        layout: the order of the axes of one sample, batch aside.
    """

    resize_short: int | None = None
    resize: tuple[int, int] | None = None
    center_crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        _one_of("data.preprocess.channels", self.channels, ("RGB", "BGR"))
        _one_of("data.preprocess.layout", self.layout, ("NCHW", "NHWC"))
        if self.resize_short is not None and not _numbers([self.resize_short], 1, int, least=1):
            raise RecipeError(f"data.preprocess.resize_short = {self.resize_short}: want pixels")
        for key in ("resize", "center_crop"):
            size = getattr(self, key)
            if size is not None and not _numbers(size, 2, int, least=1):
                raise RecipeError(f"data.preprocess.{key} = {size}: want [height, width]")
        if not _numbers([self.scale], 1, float):
            raise RecipeError(f"data.preprocess.scale = {self.scale}: want a number")
        for key in ("mean", "std"):
            if not _numbers(getattr(self, key), 3, float):
                raise RecipeError(
                    f"data.preprocess.{key} = {getattr(self, key)}: want three numbers"
                )
        if 0 in self.std:
            raise RecipeError("data.preprocess.std: must not be 0")


@dataclass(frozen=True)
class Reconstruction:
    """How blocks are learned; the defaults are those of `balanced`.

    Attributes:
        start: what rounding starts from: second-order rounding, or each weight's nearest level.
        iterations: optimiser steps per block; 0: none, the start is the result.
        trials: how often a block is learned, each time with a third of the rounding rate before;
            what is best on the samples that judge is kept.
        batch_size: samples a step, at most.
        batch_places: places of a feature map a step: of large maps as few samples, at least four,
            as have so many; 0: always `batch_size` samples.
        rounding_rate: learning rate of the rounding variables.
        scale_rate: learning rate of the weight scales, relative to each; 0: they stay.
        bias_rate: learning rate of the biases, relative to the rounding error; 0: they stay.
        step_rate: learning rate of the activation steps below 8 bits, relative to each.
        settle: share of the steps, the last, in which the weights are hard and the rest goes on.
        loss: squared error, or squared error weighted by the Fisher information.
        regularizer: whether the term that drives rounding to 0 or 1 is relative to the block's
            starting error, or absolute as in the paper.
        regularization: its weight (paper: lambda).
        drop: share of the values that pass unquantized while activations below 8 bits learn
            (QDrop, Wei et al., ICLR 2022); with 1 they are quantized only while the block settles.
            0 by default: where blocks learn on what the quantized blocks before deliver, half
            dropped was no better (ResNet-20: W4A4 17.9 dB for 17.95, W2A4 13.8 for 14.0).
        step_search: whether activation steps are tried finer and coarser on the deployed block.
    """

    start: Literal["second-order", "nearest"] = "second-order"
    iterations: int = 400
    trials: int = 1
    batch_size: int = 16
    batch_places: int = 1 << 14
    rounding_rate: float = 0.1
    scale_rate: float = 3e-3
    bias_rate: float = 3e-2
    step_rate: float = 1e-3
    settle: float = 0.15
    loss: Literal["mse", "fisher"] = "mse"
    regularizer: Literal["relative", "absolute"] = "relative"
    regularization: float = 300.0
    drop: float = 0.0
    step_search: bool = True

    def __post_init__(self) -> None:
        _one_of("reconstruction.start", self.start, ("second-order", "nearest"))
        _one_of("reconstruction.loss", self.loss, ("mse", "fisher"))
        _one_of("reconstruction.regularizer", self.regularizer, ("relative", "absolute"))
        for key, (least, most) in _BOUNDS.items():
            value = getattr(self, key)
            if not least <= value <= most:
                raise RecipeError(f"reconstruction.{key} = {value}: want {least} to {most:g}")

    def steps(self, *, coarse: bool) -> int:
        """Optimiser steps for a block; where all is 8 bits, a quarter: little is left to learn."""
        return self.iterations if coarse else -(-self.iterations // 4)

    def samples_a_step(self, places: int) -> int:
        """The fewer, the more places of a feature map each has for a gradient to be taken at.

        Measured on the first unit of MobileNetV2 (112 x 112 places, 2 bits): 4 samples a step end
        where 16 do, in a quarter of the time.
        """
        if not self.batch_places:
            return self.batch_size
        return min(self.batch_size, max(-(-self.batch_places // places), _FEWEST))


_FEWEST = 4  # samples a step
_BOUNDS = {
    **dict.fromkeys(("trials", "batch_size"), (1, math.inf)),
    **dict.fromkeys(
        ("iterations", "batch_places", "rounding_rate", "scale_rate", "bias_rate", "step_rate",
         "regularization"), (0, math.inf),
    ),
    **dict.fromkeys(("settle", "drop"), (0, 1)),
}  # fmt: skip

# `paper` is BRECQ's schedule as its authors published it: 20 000 steps for rounding, activations in
# float, then 5000 for the steps of activations.
_EFFORT: dict[str, Reconstruction] = {
    "fast": Reconstruction(iterations=0),
    "balanced": Reconstruction(),
    "best": Reconstruction(iterations=2000, trials=2, batch_size=32),
    "paper": Reconstruction(
        start="nearest", iterations=25_000, batch_size=32, batch_places=0,
        rounding_rate=1e-3, scale_rate=0.0, bias_rate=0.0, step_rate=4e-4, settle=0.2,
        loss="fisher", regularizer="absolute", regularization=0.01, drop=1.0, step_search=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything a quantization depends on besides the model and the data.

    Attributes:
        weights: bits of weights.
        activations: bits of the activations that weight layers read; 16: of all activations; None
            leaves them all float (weight-only).
        block_size: inputs of a Gemm or MatMul that share a scale, output by output; None: all do.
            For weight-only quantization.
        first_last: bits of the first and the last weight layer, weights and inputs.
        effort: how long to optimise.
        target: the runtime the model is for (`onnxbrecq.emit.targets` says what each takes); None:
            `ort-cpu`, or `ort-cpu-avx2` on a processor whose kernels for signed 8-bit weights
            saturate.
        max_drop: the gate, in percentage points; None: no gate.
        min_integer: the gate, as the share of all multiply-accumulates of weight layers that must
            run in integer kernels, from 0 to 1; None: no gate.
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
    first_last: int = 8
    effort: Effort = "balanced"
    target: str | None = None
    max_drop: float | None = None
    min_integer: float | None = None
    seed: int = 0
    threads: int | None = None
    max_memory: int | None = None
    device: str = "auto"
    preprocess: Preprocess | None = None
    reconstruction: Reconstruction | None = None

    def __post_init__(self) -> None:
        _one_of("weights", self.weights, WEIGHT_BITS)
        if self.activations is not None:
            _one_of("activations", self.activations, ACTIVATION_BITS)
        if self.block_size is not None:
            _one_of("block_size", self.block_size, BLOCK_SIZES)
            if self.activations is not None:
                raise RecipeError(
                    f"block_size = {self.block_size}: integer kernels take one scale for each "
                    "output of a layer; leave activations float (weight-only), or leave blocks out"
                )
        _one_of("first_last", self.first_last, WEIGHT_BITS)
        _one_of("effort", self.effort, EFFORTS)
        if self.target is not None:
            _one_of("target", self.target, TARGETS)
        _one_of("device", self.device, DEVICES)
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise RecipeError(f"max_drop = {self.max_drop}: want percentage points from 0 to 100")
        if self.min_integer is not None and not 0 <= self.min_integer <= 1:
            raise RecipeError(f"min_integer = {self.min_integer}: want a share from 0 to 1")
        if self.threads is not None and self.threads < 1:
            raise RecipeError(f"threads = {self.threads}: want at least 1")
        if self.max_memory is not None and self.max_memory < 1:
            raise RecipeError(f"max_memory = {self.max_memory}: want at least a byte")
        if self.seed < 0:
            raise RecipeError(f"seed = {self.seed}: want 0 or more")

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> Self:
        """The recipe in a TOML file; `overrides` (the command line) win.

        The file holds the attributes of `Recipe` at top level, those of `Preprocess` under
        `[data.preprocess]` and those of `Reconstruction` under `[reconstruction]`;
        `activations = "float"` means weight-only; `max_memory` may be a size such as "4GiB".

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
        table = dict(table)
        data = table.pop("data", {})
        _known("data", data, {"preprocess"})
        values = _fields(cls, "", table)
        if "preprocess" in data:
            values["preprocess"] = Preprocess(
                **_fields(Preprocess, "data.preprocess.", data["preprocess"])
            )
        if "reconstruction" in table:
            effort = overrides.get("effort", values.get("effort", cls.effort))
            _one_of("effort", effort, EFFORTS)
            given = _fields(Reconstruction, "reconstruction.", table["reconstruction"])
            values["reconstruction"] = dataclasses.replace(_EFFORT[effort], **given)
        if values.get("activations") == "float":
            values["activations"] = None
        values.update(overrides)
        if isinstance(values.get("max_memory"), str):
            values["max_memory"] = _bytes("max_memory", values["max_memory"])
        return cls(**values)

    def settings(self) -> Reconstruction:
        """How blocks are learned."""
        return self.reconstruction or _EFFORT[self.effort]

    def decisive(self) -> Self:
        """What decisions depend on: the gates and the bound of memory are as if not given."""
        return dataclasses.replace(self, max_drop=None, min_integer=None, max_memory=None)

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return dataclasses.asdict(self)


def _numbers(
    values: object, count: int, kind: type[int] | type[float], least: float = -math.inf
) -> bool:
    """Whether `values` are `count` finite numbers of that kind, none below `least`."""
    kinds = int if kind is int else (int, float)
    return (
        isinstance(values, tuple | list)
        and len(values) == count
        and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
        and all(math.isfinite(v) and v >= least for v in values)
    )


def _bytes(key: str, text: str) -> int:
    """A size with its unit: 1 GB are 10**9 bytes, 1 GiB 2**30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmgt]?)(i?)b)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise RecipeError(f"{key} = {text!r}: want a size such as 4GiB or 500MB, or bytes")
    number, prefix, binary = found.groups()
    unit = (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower())
    return int(float(number) * unit)


def _known(where: str, table: object, allowed: set[str]) -> None:
    if not isinstance(table, dict):
        raise RecipeError(f"recipe: {where} must be a table")
    for key in table:
        if key not in allowed:
            raise RecipeError(f"recipe: unknown key {where}.{key}; known: {sorted(allowed)}")


_NUMBERS = {"float": (int, float), "int": (int,), "str": (str,), "Effort": (str,), "bool": (bool,)}


def _fields(cls: type, prefix: str, table: object) -> dict[str, Any]:
    """The keyword arguments that `table` gives for the dataclass `cls`, types checked."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    _known(prefix.rstrip(".") or "top level", table, set(kinds) - {"preprocess"})
    assert isinstance(table, dict)
    values = {}
    for key, value in table.items():
        name = kinds[key].split(".")[-1].split(" |")[0].rstrip("'>").removeprefix("<class '")
        wanted = _NUMBERS.get(name)
        worded = (key == "activations" and value == "float") or (
            key == "max_memory" and isinstance(value, str)
        )
        if (
            wanted
            and not worded
            and (not isinstance(value, wanted) or (isinstance(value, bool) and name != "bool"))
        ):
            raise RecipeError(f"recipe: {prefix}{key} = {value!r}: want {name}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return values
