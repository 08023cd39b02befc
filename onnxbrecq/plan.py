"""What was decided about a model's tensors: frozen values, keyed by ONNX tensor name.

A quantized tensor is described by one formula (`onnxbrecq.affine`):

    value = scale * (step * level - offset),   level in 0 ... 2**bits - 1

where `step` and `offset` follow from the grid:

    signed   step 1, offset 2**(bits-1)     symmetric integers -2**(bits-1) ... 2**(bits-1) - 1
    affine   step 1, offset zero_point      asymmetric
    half     step 2, offset zero_point      asymmetric, zero in half steps: an odd zero point lies
                                            between two levels, so that none is spent on it

One scale and zero point hold for the whole tensor, for a channel, or for a block: so many
consecutive values of a channel of a matrix.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from onnxbrecq.errors import PlanError

Grid = Literal["signed", "affine", "half"]

_FORMAT = "onnxbrecq-plan-4"
_BITS = (2, 3, 4, 8, 16)


@dataclass(frozen=True)
class QType:
    """The levels a tensor may take: how many bits, and on which grid."""

    bits: int
    grid: Grid

    @property
    def levels(self) -> int:
        """The number of levels, 2**bits."""
        return 1 << self.bits

    @property
    def step(self) -> int:
        """Integer distance of two neighbouring levels."""
        return 2 if self.grid == "half" else 1


@dataclass(frozen=True, eq=False)
class TensorQuant:
    """How one tensor is quantized.

    Attributes:
        qtype: bits and grid.
        scale: float32, positive. Shape () per tensor; [C] along `axis`; in blocks that of the
            matrix, its other axis divided by `block_size` and rounded up.
        zero_point: int32, same shape as `scale`; not used by the signed grid, 0 there.
        axis: the channel axis; None per tensor.
        levels: uint8, the tensor's shape: the level of each weight; None for activations.
        block_size: values of a block, the last of which may be shorter; None: no blocks.
    """

    qtype: QType
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int | None = None
    levels: NDArray[np.uint8] | None = None
    block_size: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorQuant):
            return NotImplemented
        return (
            self.qtype == other.qtype
            and self.axis == other.axis
            and self.block_size == other.block_size
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and _equal_or_absent(self.levels, other.levels)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class QuantPlan:
    """All decisions so far, and the model they were made for.

    Attributes:
        tensors: ONNX tensor name → decision. A tensor without an entry stays float.
        biases: initializer name → float32 [C] in place of the model's: what rounding the weights
            shifts on average is taken back here, at no cost when the model runs; and the factors of
            a LayerNormalization whose channels were made alike.
        source_sha256: the float model's file hash.
        data_sha256: hash of the calibration samples.
        recipe: what was asked for, as plain JSON values.
    """

    tensors: Mapping[str, TensorQuant] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    source_sha256: str = ""
    data_sha256: str = ""
    recipe: Mapping[str, object] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantPlan):
            return NotImplemented
        return (
            self.tensors == other.tensors
            and self.biases.keys() == other.biases.keys()
            and all(np.array_equal(b, other.biases[n]) for n, b in self.biases.items())
            and self.source_sha256 == other.source_sha256
            and self.data_sha256 == other.data_sha256
            and self.recipe == other.recipe
        )

    __hash__ = None  # type: ignore[assignment]

    def updated(
        self,
        tensors: Mapping[str, TensorQuant],
        biases: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> "QuantPlan":
        """A new plan in which the given decisions replace or join the present ones."""
        return replace(
            self,
            tensors={**self.tensors, **tensors},
            biases={**self.biases, **(biases or {})},
        )

    def save(self, path: Path) -> None:
        """Writes the plan as one safetensors file."""
        path.write_bytes(self.as_bytes())

    def as_bytes(self) -> bytes:
        """The plan as a safetensors file; the header holds everything but arrays."""
        arrays: dict[str, NDArray[np.generic]] = {}
        header = {}
        for name in sorted(self.tensors):
            quant = self.tensors[name]
            header[name] = {
                "bits": quant.qtype.bits,
                "grid": quant.qtype.grid,
                "axis": quant.axis,
                "block_size": quant.block_size,
            }
            arrays[f"{name}:scale"] = np.array(quant.scale, order="C")
            arrays[f"{name}:zero_point"] = np.array(quant.zero_point, order="C")
            if quant.levels is not None:
                arrays[f"{name}:levels"] = np.array(quant.levels, order="C")
        for name in sorted(self.biases):
            arrays[f"{name}:bias"] = np.array(self.biases[name], order="C")
        metadata = {
            "format": _FORMAT,
            "source_sha256": self.source_sha256,
            "data_sha256": self.data_sha256,
            "recipe": json.dumps(self.recipe, sort_keys=True),
            "tensors": json.dumps(header, sort_keys=True),
        }
        return _ordered(save(arrays, metadata))

    @staticmethod
    def load(path: Path) -> "QuantPlan":
        """The plan that `save` wrote, equal to it.

        Raises:
            PlanError: the file is missing, damaged, or not a plan.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise PlanError(f"{path} is not a plan of this version ({_FORMAT})")
                keys = set(file.keys())
                tensors = {
                    name: TensorQuant(
                        QType(int(entry["bits"]), entry["grid"]),
                        file.get_tensor(f"{name}:scale"),
                        file.get_tensor(f"{name}:zero_point"),
                        entry["axis"],
                        file.get_tensor(f"{name}:levels") if f"{name}:levels" in keys else None,
                        entry["block_size"],
                    )
                    for name, entry in json.loads(metadata["tensors"]).items()
                }
                biases = {
                    key.removesuffix(":bias"): file.get_tensor(key)
                    for key in sorted(keys)
                    if key.endswith(":bias")
                }
                recipe = json.loads(metadata["recipe"])
                source, data = metadata["source_sha256"], metadata["data_sha256"]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise PlanError(f"{path}: cannot be read as a plan: {error}") from error
        for name, quant in tensors.items():
            fault = _fault(quant)
            if fault:
                raise PlanError(f"{path}: tensor {name!r} {fault}; quantize the model again")
        return QuantPlan(tensors, biases, source, data, recipe)


def _fault(quant: TensorQuant) -> str | None:
    """What is wrong with a decision that was read; None: nothing."""
    bits, grid = quant.qtype.bits, quant.qtype.grid
    if grid not in get_args(Grid) or bits not in _BITS:
        return f"has {bits} bits on the grid {grid!r}, which there is not"
    if quant.scale.dtype != np.float32 or quant.zero_point.dtype != np.int32:
        return f"has scales of {quant.scale.dtype} and zero points of {quant.zero_point.dtype}"
    if quant.scale.shape != quant.zero_point.shape:
        return "has other numbers of scales and of zero points"
    if not (np.isfinite(quant.scale).all() and (quant.scale > 0).all()):
        return "has a scale that is not a positive number"
    # Offsets of weights are written as INT8; the zero point of an activation is one of its levels.
    lowest, highest = (0, quant.qtype.levels - 1) if quant.levels is None else (-128, 127)
    if quant.zero_point.min(initial=0) < lowest or quant.zero_point.max(initial=0) > highest:
        return f"has a zero point beyond {lowest} to {highest}"
    levels = quant.levels
    if levels is not None and (
        levels.dtype != np.uint8 or levels.max(initial=0) >= quant.qtype.levels
    ):
        return f"has levels beyond its {bits} bits"
    return None


def _ordered(file: bytes) -> bytes:
    """The safetensors file with its header in alphabetical order, where the library's is random.

    Its length in 8 bytes, the header in JSON and spaces up to a multiple of 8, then the arrays.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[end:]


def _equal_or_absent(a: NDArray[np.uint8] | None, b: NDArray[np.uint8] | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b)
