"""What the user asks for: validated once, here; the only place with defaults."""

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

Effort = Literal["fast", "balanced", "best", "paper"]
Search = Literal["exact", "genetic"]

WEIGHT_BITS = (2, 3, 4, 8)
ACTIVATION_BITS = (2, 3, 4, 8, 16)
EFFORTS = ("fast", "balanced", "best", "paper")
DEVICES = ("auto", "cpu", "cuda")
SEARCHES = ("exact", "genetic")
BUDGETS = ("size", "bitops", "latency")
LATENCIES = ("onnxruntime", "table", "systolic")
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
        letterbox: (height, width) of a box that the image is scaled into, its proportions kept, or
            None; after `resize`.
        fill: the pixel value, 0…255, of what the letterbox leaves free, half on each side.
        center_crop: (height, width) cut from the middle, or None.
        scale: factor on the 0…255 values, before mean and std.
        mean: per channel, in the order of `channels`, after `scale`.
        std: per channel, likewise.
        channels: the order the model wants.
        layout: the order of the axes of one sample, batch aside.
    """

    resize_short: int | None = None
    resize: tuple[int, int] | None = None
    letterbox: tuple[int, int] | None = None
    fill: int = 0
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
        if not _numbers([self.fill], 1, int, least=0) or self.fill > 255:
            raise RecipeError(f"data.preprocess.fill = {self.fill}: want a pixel value, 0 to 255")
        for key in ("resize", "letterbox", "center_crop"):
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

    @classmethod
    def preset(cls, name: object) -> Self:
        """The preprocessing that goes by that name (`PRESETS`).

        Raises:
            RecipeError: none does.
        """
        _one_of("data.preprocess.preset", name, tuple(PRESETS))
        return cls(**PRESETS[str(name)])


# What models of these origins take: torchvision's classifiers; those that came from Caffe (and
# Keras' mode "caffe"); TensorFlow's (Keras' mode "tf"); YOLO's detectors.
_CROPPED: Mapping[str, Any] = {"resize_short": 256, "center_crop": (224, 224)}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {**_CROPPED, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "imagenet-bgr-caffe": {
        **_CROPPED, "scale": 1.0, "mean": (103.939, 116.779, 123.68), "channels": "BGR",
    },
    "tf": {**_CROPPED, "scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0), "layout": "NHWC"},
    "letterbox": {"letterbox": (640, 640), "fill": 114},
}  # fmt: skip


@dataclass(frozen=True)
class Reconstruction:
    """How blocks are learned; the defaults are those of `balanced`.

    Attributes:
        start: what rounding starts from: second-order rounding, or each weight's nearest level.
        iterations: optimiser steps per block; 0: none, the start is the result.
        trials: how often a block is learned, each time with a third of the rounding rate before;
            what is best on the samples that judge is kept.
        batch_size: samples a step, at most.
        batch_places: places of a feature map, or tokens, a step: of large maps as few samples, at
            least four, as have so many; 0: as many as there are.
        batch_macs: multiply-accumulates of the float block a step: of samples that take many as
            few, at least one; 0: as many as it takes.
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
    batch_macs: float = 1.25e9
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

    def samples_a_step(self, places: int, macs: int) -> int:
        """The fewer, the more places, or work, each has.

        Of places each gives a gradient: on the first unit of MobileNetV2 (112 x 112, 2 bits) 4
        samples a step end where 16 do, in a quarter of the time. Fewer cost 0.1 to 0.3 dB on
        smaller maps (W2A4, three networks), which is only worth it where a step takes long: of an
        MLP of ViT-B (4 bits, 400 steps) one sample leaves 6 % more error than two, in 0.6 of the
        time; 200 steps of two as much. Its attention ends alike with two, four and seven.
        """
        most = self.batch_size
        if self.batch_places:
            most = min(most, max(-(-self.batch_places // places), _FEWEST))
        if self.batch_macs and macs:
            most = min(most, max(int(min(self.batch_macs / macs, most)), 1))
        return most


_FEWEST = 4  # samples a step
_BOUNDS = {
    **dict.fromkeys(("trials", "batch_size"), (1, math.inf)),
    **dict.fromkeys(
        ("iterations", "batch_places", "batch_macs", "rounding_rate", "scale_rate", "bias_rate",
         "step_rate", "regularization"), (0, math.inf),
    ),
    **dict.fromkeys(("settle", "drop"), (0, 1)),
}  # fmt: skip

# `paper` is BRECQ's schedule as its authors published it: 20 000 steps for rounding, activations in
# float, then 5000 for the steps of activations.
_EFFORT: dict[str, Reconstruction] = {
    "fast": Reconstruction(iterations=0),
    "balanced": Reconstruction(),
    "best": Reconstruction(iterations=2000, trials=2, batch_size=32, batch_macs=0),
    "paper": Reconstruction(
        start="nearest", iterations=25_000, batch_size=32, batch_places=0, batch_macs=0,
        rounding_rate=1e-3, scale_rate=0.0, bias_rate=0.0, step_rate=4e-4, settle=0.2,
        loss="fisher", regularizer="absolute", regularization=0.01, drop=1.0, step_search=False,
    ),
}  # fmt: skip


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
        _one_of("budget", self.key, BUDGETS)
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
        _one_of("budget", key, BUDGETS)
        if key == "size" and not value.endswith("%"):
            return cls(key, _bytes("budget size", value))
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
        _one_of("latency.model", self.model, LATENCIES)
        for key in ("rows", "columns"):
            if not _numbers([getattr(self, key)], 1, int, least=1):
                raise RecipeError(f"latency.{key} = {getattr(self, key)}: want at least 1")
        for key in ("clock_mhz", "bandwidth_gbs"):
            if not (_numbers([getattr(self, key)], 1, float) and getattr(self, key) > 0):
                raise RecipeError(f"latency.{key} = {getattr(self, key)}: want more than 0")
        if (self.model == "table") != (self.table is not None):
            raise RecipeError('latency.table: give it with latency.model = "table", and then only')


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
    effort: Effort = "balanced"
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
        if self.first_last is not None:
            _one_of("first_last", self.first_last, WEIGHT_BITS)
        self._check_search()
        _one_of("effort", self.effort, EFFORTS)
        if self.target is not None:
            _one_of("target", self.target, TARGETS)
        _one_of("device", self.device, DEVICES)
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
                _one_of(f"pinned {pattern!r}", bits, WEIGHT_BITS)
        if self.search is not None:
            _one_of("search", self.search, SEARCHES)
        for key, allowed in (("offered", WEIGHT_BITS), ("offered_activations", (2, 3, 4, 8))):
            for bits in getattr(self, key):
                _one_of(key, bits, allowed)
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
        table = dict(table)
        data = table.pop("data", {})
        _known("data", data, {"preprocess"})
        values = _fields(cls, "", table)
        preset = overrides.pop("preset", None)
        if "preprocess" in data or preset is not None:
            values["preprocess"] = _preprocess(data.get("preprocess", {}), preset)
        if "reconstruction" in table:
            effort = overrides.get("effort", values.get("effort", cls.effort))
            _one_of("effort", effort, EFFORTS)
            given = _fields(Reconstruction, "reconstruction.", table["reconstruction"])
            values["reconstruction"] = dataclasses.replace(_EFFORT[effort], **given)
        if "latency" in table:
            values["latency"] = Latency(**_fields(Latency, "latency.", table["latency"]))
        for wins, other in (("budget", "weights"), ("weights", "budget")):
            if wins in overrides:  # the command line wins over what excludes it
                values.pop(other, None)
        values.update(overrides)
        _worded(values)
        if isinstance(values.get("max_memory"), str):
            values["max_memory"] = _bytes("max_memory", values["max_memory"])
        return cls(**values)

    def settings(self) -> Reconstruction:
        """How blocks are learned."""
        return self.reconstruction or _EFFORT[self.effort]

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
        return float(share[1]) / 100 * float_bytes if share else _bytes("max_size", self.max_size)

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**found, "weights": None} if self.mixed else found


def _worded(values: dict[str, Any]) -> None:
    """Edits the values: what is written in words becomes what it means."""
    if values.get("activations") == "float":
        values["activations"] = None
    if values.get("first_last") == "free":
        values["first_last"] = None
    if "pinned" in values:
        pins = values["pinned"]
        if not isinstance(pins, dict):
            raise RecipeError(f"recipe: pinned = {pins!r}: want a table of patterns and bits")
        values["pinned"] = {k: None if bits == "float" else bits for k, bits in pins.items()}
    if "budget" in values:
        given = values["budget"]
        texts = [f"{k}={v}" for k, v in given.items()] if isinstance(given, dict) else given
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise RecipeError(f"recipe: budget = {given!r}: want a table or a list of KEY=VALUE")
        values["budget"] = tuple(Budget.parse(text) for text in texts)
    if isinstance(values.get("latency"), str):
        given = values["latency"]
        values["latency"] = (
            Latency(model="systolic") if given == "systolic" else Latency("table", given)
        )
    if "weights" in values and values.get("budget"):
        raise RecipeError(
            "weights and a budget: a budget chooses the bits of each layer; give one of the two "
            "(`offered` says which bits there are to choose from)"
        )
    if values.get("max_drop") is not None and not {"weights", "budget", "search"} & set(values):
        values["search"] = "exact"


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


def _preprocess(table: object, preset: str | None) -> Preprocess:
    """The preprocessing of a TOML table; its own keys win over those of its preset."""
    given = dict(table) if isinstance(table, dict) else table
    named = given.pop("preset", None) if isinstance(given, dict) else None
    base = Preprocess() if preset is named is None else Preprocess.preset(preset or named)
    return dataclasses.replace(base, **_fields(Preprocess, "data.preprocess.", given))


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
        worded = (
            (key == "activations" and value == "float")
            or (key == "first_last" and value == "free")
            or (key in ("max_memory", "max_size") and isinstance(value, str))
        )
        if (
            wanted
            and not worded
            and (not isinstance(value, wanted) or (isinstance(value, bool) and name != "bool"))
        ):
            raise RecipeError(f"recipe: {prefix}{key} = {value!r}: want {name}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return values
