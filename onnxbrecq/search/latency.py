"""What a layer's bits cost in time: from a table, from a model of an array, or measured here.

A *table* (CSV) tells of layers by name or by shape, at each of their bits:

    layer,weight_bits,activation_bits,ms
    /conv1/Conv,8,8,0.21

    op,input,weight,output,weight_bits,activation_bits,ms
    Conv,32x56x56,64x32x3x3,64x56x56,4,8,0.13

`layer` may be a pattern (`*`); shapes are those of one sample. Of several rows that fit, the first
counts.

A *systolic array* of R x C multipliers holds the weights (weight stationary). A layer is, for each
of its groups, a product of P outputs' places, K values that each sums, N channels; its tiles take
the cycles that SCALE-Sim counts (Samajdar et al., 2018), 2 R + C + P - 2 each:

    cycles = groups * ceil(K / (R f)) * ceil(N / C) * (2 R + C + P - 2)      f = 64 / (w a)
    ms = max(cycles / clock, bytes of weights, data and outputs / bandwidth)

A multiplier of 8 x 8 bits does f products of w x a bits at once, as those of Bit Fusion (Sharma et
al., 2018): 2, 4 and 8 bits each count as they are, 3 as 4. Reading and computing overlap; outputs
have 8 bits; a layer that stays float counts as 32 x 32 bits, for which the array needs 16 passes.
"""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from onnxbrecq.bits import Bits
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import Target
from onnxbrecq.errors import RecipeError
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.model import Model, attribute
from onnxbrecq.plan import QuantPlan
from onnxbrecq.recipe import Latency
from onnxbrecq.runtime.profile import profile

_COLUMNS = ("weight_bits", "activation_bits", "ms")
_SHAPES = ("op", "input", "weight", "output")
_FLOAT, _OUTPUT = 32, 8  # bits

Timed = Callable[[str, Bits], float]  # layer, bits → ms


@dataclass(frozen=True)
class Shape:
    """A layer's operator and dimensions, of one sample."""

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    groups: int

    def told(self) -> dict[str, str]:
        """As a row of a table has them."""
        dims = {key: "x".join(map(str, getattr(self, key))) for key in _SHAPES[1:]}
        return {"op": self.op, **dims}


def shapes(model: Model) -> dict[str, Shape]:
    """Layer → its shape; unknown dimensions count once."""
    nodes = {node.name: node for node in model.nodes}
    found = {}
    for layer in weight_layers(model):
        node = nodes[layer.name]
        data = next(name for name in node.input if name != layer.weight)
        dims = [
            tuple(size or 1 for size in model.shapes.get(name, (1, 1))[1:])
            for name in (data, node.output[0])
        ]
        groups = attribute(node, "group", 1)
        assert isinstance(groups, int)
        weight = tuple(int(size or 1) for size in model.shapes[layer.weight])
        found[layer.name] = Shape(layer.op, dims[0], weight, dims[1], groups)
    return found


def from_table(path: Path, model: Model) -> Timed:
    """Milliseconds as the CSV file tells them.

    Raises:
        RecipeError: the file cannot be read; or, when asked, tells nothing of a layer at its bits.
    """
    rows, known = _rows(path), shapes(model)

    def ms(layer: str, bits: Bits) -> float:
        told = known[layer].told()
        for row in rows:
            fits = (
                fnmatchcase(layer, row["layer"])
                if row.get("layer")
                else all(row.get(key) == told[key] for key in _SHAPES)
            )
            if (
                fits
                and _same(row["weight_bits"], bits.weight)
                and _same(row["activation_bits"], bits.data)
            ):
                return float(row["ms"])
        wanted = ",".join([*told.values(), *(_word(b) for b in (bits.weight, bits.data)), "..."])
        raise RecipeError(
            f"{path}: no latency of layer {layer!r} at these bits; add {','.join(_SHAPES)},"
            f"{','.join(_COLUMNS)} = {wanted}"
        )

    return ms


def systolic(array: Latency, model: Model) -> Timed:
    """Milliseconds on a weight-stationary array."""
    known = shapes(model)

    def ms(layer: str, bits: Bits) -> float:
        shape = known[layer]
        widths = [_width(b) for b in (bits.weight, bits.data)]
        places, summed, channels = _product(shape)
        together = 64 / (widths[0] * widths[1])
        tiles = math.ceil(summed / (array.rows * together)) * math.ceil(channels / array.columns)
        cycles = shape.groups * tiles * (2 * array.rows + array.columns + places - 2)
        read = [math.prod(shape.weight) * widths[0], math.prod(shape.input) * widths[1]]
        moved = (sum(read) + math.prod(shape.output) * _OUTPUT) / 8
        return float(max(cycles / (array.clock_mhz * 1e3), moved / (array.bandwidth_gbs * 1e6)))

    return ms


def measured(
    model: Model, plan: QuantPlan, target: Target, threads: int | None
) -> Mapping[str, tuple[float, float]]:
    """Layer → ms of onnxruntime for one sample, alone between quantizers and in float.

    Raises:
        ModelError: a layer does not run.
    """
    nodes = {node.name: node for node in model.nodes}
    found = {}
    for name, shape in shapes(model).items():
        node = nodes[name]
        weight = next(layer.weight for layer in weight_layers(model) if layer.name == name)
        data = next(n for n in node.input if n != weight)
        alone = submodel(model, [node], (data,), (node.output[0],))
        sizes = (model.batch or 1, *shape.input)
        feed = {data: np.random.default_rng(0).normal(size=sizes).astype(np.float32)}
        times = [
            sum(kernel.ms for kernel in profile(proto, feed, threads=threads))
            for proto in (emit(alone, plan, target), alone.proto)
        ]
        found[name] = (times[0], times[1])
    return found


def _product(shape: Shape) -> tuple[int, int, int]:
    """P, K and N of each group."""
    if shape.op in ("Gemm", "MatMul"):
        outputs = shape.output[-1] if shape.output else 1
        return math.prod(shape.output) // outputs, math.prod(shape.weight) // outputs, outputs
    places = math.prod(shape.output[1:])
    return places, math.prod(shape.weight[1:]), shape.weight[0] // shape.groups


def _width(bits: int | None) -> int:
    return next(width for width in (2, 4, 8, 16, 32) if width >= (bits or _FLOAT))


def _word(bits: int | None) -> str:
    return "float" if bits is None else str(bits)


def _same(text: str, bits: int | None) -> bool:
    return text.strip() == _word(bits)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{k: v or "" for k, v in row.items() if k} for row in reader]
            columns = set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"latency.table {path}: cannot be read: {error}") from error
    missing = [name for name in _COLUMNS if name not in columns]
    if missing or not ("layer" in columns or columns.issuperset(_SHAPES)):
        raise RecipeError(
            f"latency.table {path}: want the columns {', '.join(_COLUMNS)} and layer, or "
            f"{', '.join(_SHAPES)}; it has {', '.join(sorted(columns)) or 'none'}"
        )
    for i, row in enumerate(rows):
        try:
            fine = math.isfinite(float(row["ms"])) and float(row["ms"]) >= 0
        except ValueError:
            fine = False
        if not fine:
            raise RecipeError(
                f"latency.table {path}, row {i + 1}: ms = {row['ms']!r}: want a number"
            )
    return rows
