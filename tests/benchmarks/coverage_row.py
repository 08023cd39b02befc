"""What the package makes of one model: the child process of `coverage.py`.

    python tests/benchmarks/coverage_row.py MODEL ROW.json [--no-quantize] [--threads N]

ROW.json is written anew after each stage, so that what was found out before a time limit, a lack of
memory or a crash is kept.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import OnnxbrecqError
from onnxbrecq.graph.blocks import Block, partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.recon.bridge import BridgeError, TorchBlock, import_block
from onnxbrecq.runtime.session import Session

SAMPLES = 8
PROBES = 2  # samples for the comparison of torch and onnxruntime
SIDE, TOKENS = 64, 16  # sizes of free spatial dimensions and of free sequences

Arrays = Mapping[str, NDArray[Any]]
Row = dict[str, Any]


class RowFile:
    """The row, on disk after every change."""

    def __init__(self, path: Path, row: Row) -> None:
        self._path = path
        self.row = row

    def add(self, **values: object) -> None:
        """Takes in what was found out."""
        self.row.update(values)
        self._path.write_text(json.dumps(self.row), encoding="utf-8")


def main() -> None:
    """Measures the model on the command line."""
    parser = argparse.ArgumentParser(description="Measures one model for coverage.py.")
    parser.add_argument("model", type=Path)
    parser.add_argument("row", type=Path)
    parser.add_argument("--no-quantize", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = RowFile(arguments.row, {"model": arguments.model.stem})
    model = _loaded(file, arguments.model)
    if model is None:
        return
    samples = random_samples(model)
    file.add(stage="blocks")
    try:
        measure_blocks(file, arguments.model, model, samples)
    except Exception as error:  # noqa: BLE001, RUF100  whatever is wrong is what is looked for
        file.add(blocks_error=one_line(error))
    if not arguments.no_quantize:
        file.add(stage="quantize")
        measure_quantized(file, arguments.model, samples, arguments.threads)
    file.add(stage="done")


def _loaded(file: RowFile, path: Path) -> Model | None:
    """The model, or None if it is refused; the row says why."""
    exporter = re.search(r"-(torchscript|dynamo)$", path.stem)
    proto = onnx.load(path, load_external_data=False)
    file.add(
        stage="load",
        model=path.stem.removesuffix(exporter[0]) if exporter else path.stem,
        exporter=exporter[1] if exporter else proto.producer_name or "unknown",
        opset=max(o.version for o in proto.opset_import if not o.domain),
    )
    started = time.perf_counter()
    try:
        model = load(path)
    except Exception as error:  # noqa: BLE001, RUF100  as above
        file.add(load_error=one_line(error), expected=isinstance(error, OnnxbrecqError))
        return None
    file.add(load_seconds=time.perf_counter() - started, batched=model.batched, notes=model.notes)
    return model


def measure_blocks(file: RowFile, path: Path, model: Model, samples: Dataset) -> None:
    """Blocks, islands, parity block by block, and of the chain with the file as it came."""
    points, blocks = find_points(model), partition(model)
    sizes = {layer.name: layer.parameters for layer in weight_layers(model)}
    total = sum(sizes.values())
    quantizable = sum(sizes.get(name, 0) for name in points.layers)
    file.add(blocks=len(blocks), weights=total, quantizable=quantizable / max(total, 1))
    probe = samples.head(PROBES if model.batched else 1).inputs
    values, differentiable = dict(probe), 0
    islands: list[Row] = []
    worst: tuple[float, str] = (0.0, "")
    for i, block in enumerate(blocks):
        part = extract(model, block)
        feed = {name: values[name] for name in block.inputs}
        made = Session(part.proto, threads=1).run(feed)
        weights = sum(sizes.get(name, 0) for name in block.nodes)
        try:
            error, name = _compared(import_block(part), part, feed, made)
            worst = max(worst, (error, name))
            differentiable += weights
        except Exception as error:  # noqa: BLE001, RUF100  as above
            reason = one_line(error, known=BridgeError)
            islands.append({"block": block.name, "weights": weights, "reason": reason})
        values = _needed({**values, **made}, blocks[i + 1 :], model)
    file.add(
        differentiable=differentiable / max(total, 1),
        islands=islands,
        parity=worst[0],
        parity_at=worst[1],
        chain=_chain_error(path, probe, {name: values[name] for name in model.outputs}),
    )


def _needed(values: Arrays, later: tuple[Block, ...], model: Model) -> dict[str, NDArray[Any]]:
    names = {name for block in later for name in block.inputs} | set(model.outputs)
    return {name: value for name, value in values.items() if name in names}


def _compared(block: TorchBlock, model: Model, feed: Arrays, expected: Arrays) -> tuple[float, str]:
    """The largest relative error of a block's outputs in torch, and the output's name.

    Raises:
        BridgeError: no gradient reaches one of the weights.
    """
    layers = find_points(model).layers.values()
    weights = {
        layer.weight: torch.from_numpy(np.array(model.initializers[layer.weight])).requires_grad_()
        for layer in layers
    }
    made = block.run({n: torch.from_numpy(np.array(a)) for n, a in feed.items()}, weights)
    floats = [value for value in made.values() if value.requires_grad]
    if weights and not floats:
        raise BridgeError("no output has a gradient")
    if floats:
        torch.autograd.backward(sum((value.float().sum() for value in floats), torch.zeros(())))
    missing = [name for name, weight in weights.items() if weight.grad is None]
    if missing:
        raise BridgeError(f"no gradient reaches the weight {missing[0]}")
    found = ((relative(made[n].detach().numpy(), a), n) for n, a in expected.items())
    return max(found, default=(0.0, ""))


def relative(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """max |actual - expected| / max |expected|; infinite where shapes or finiteness differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float32).tiny))


def _chain_error(path: Path, probe: Arrays, outputs: Arrays) -> float | str:
    """How far the blocks, one after the other, are from the file as it came, in onnxruntime."""
    try:
        source = Session(path, threads=1)
        parts = [
            source.run({name: array[i : i + 1] for name, array in probe.items()})
            for i in range(len(next(iter(probe.values()))))
        ]
    except OnnxbrecqError as error:
        return one_line(error)
    if len(parts) == 1:
        return max(relative(outputs[n], a) for n, a in parts[0].items())
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return max(relative(outputs[name], array) for name, array in joined.items())


def measure_quantized(file: RowFile, path: Path, samples: Dataset, threads: int) -> None:
    """Weights and activations of 8 bits at effort `fast`: whether it comes through."""
    recipe = Recipe(weights=8, activations=8, effort="fast", threads=threads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = onnxbrecq.quantize(path, samples, recipe, output=Path(folder) / "q.onnx")
        except Exception as error:  # noqa: BLE001, RUF100  as above
            file.add(quantize_error=one_line(error), expected=isinstance(error, OnnxbrecqError))
            return
    file.add(
        quantize_seconds=time.perf_counter() - started,
        sqnr_db=result.fidelity.sqnr_db if result.fidelity else None,
        integer_macs=result.execution[0].integer_macs_fraction,
        unlearned=[{"block": b.name, "reason": b.note} for b in result.blocks if b.note],
        result_notes=result.notes,
    )


def random_samples(model: Model, count: int = SAMPLES) -> Dataset:
    """Colours under noise for images, ids within the table that they index, ones for masks."""
    generator = np.random.default_rng(0)
    inputs = {name: _random(model, name, count, generator) for name in model.inputs}
    return Dataset(inputs, origin="noise")


def _random(model: Model, name: str, count: int, generator: np.random.Generator) -> NDArray[Any]:
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(model.dtypes[name]))
    declared = model.shapes.get(name, (None,))
    rest = [d if d is not None else _free(i, len(declared)) for i, d in enumerate(declared)][1:]
    shape = (count, *rest)
    if kind.kind == "f" and len(shape) == 4:
        coarse = torch.from_numpy(generator.standard_normal((*shape[:2], 4, 4)))
        smooth = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear").numpy()
        return (smooth + 0.3 * generator.standard_normal(shape)).astype(kind)
    if kind.kind == "f":
        return generator.standard_normal(shape).astype(kind)
    rows = next(_tables(model, name), 0)
    if rows:
        return generator.integers(rows, size=shape).astype(kind)
    return np.ones(shape, kind)


def _free(axis: int, rank: int) -> int:
    """A size for a free dimension: 3 channels, and then pixels; or tokens."""
    if rank != 4:
        return TOKENS
    return 3 if axis == 1 else SIDE


def _tables(model: Model, name: str) -> Iterator[int]:
    """Rows of the constants that the ids `name` index, through casts and reshapes."""
    for node in model.consumers.get(name, ()):
        if node.op_type == "Gather" and node.input[1] == name:
            if node.input[0] in model.initializers:
                yield model.initializers[node.input[0]].shape[0]
        elif node.op_type in ("Cast", "Reshape", "Unsqueeze", "Identity"):
            yield from _tables(model, node.output[0])


def one_line(error: BaseException, known: type[BaseException] = OnnxbrecqError) -> str:
    """What an error says; its type in front where it is not one of ours."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, known) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main()
