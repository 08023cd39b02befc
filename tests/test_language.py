"""The language model of the fixtures: token and mask inputs, a length that is free."""

import logging
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from onnxbrecq import Recipe, Result, inspect, quantize
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.inspection import QuantizedInspection
from onnxbrecq.runtime.kernels import executed
from onnxbrecq.runtime.session import Session

_SOURCE = Path(__file__).parents[1] / "fixtures" / "language.onnx"


def _data(kind: str, count: int) -> Dataset:
    arrays = dict(np.load(_SOURCE.with_name(f"language.{kind}.npz")))
    labels = arrays.pop("labels", None)
    return Dataset(arrays, labels).head(count)


def _quantized(path: Path, **asked: object) -> Result:
    recipe = Recipe(effort="fast", threads=1, **asked)  # type: ignore[arg-type]
    return quantize(
        _SOURCE, _data("calib", 256), recipe, evaluation=_data("eval", 200), output=path
    )


def _shorter(path: Path) -> float:
    """Relative squared error on sentences cut off at 17 tokens."""
    feed = {name: value[:, :17] for name, value in _data("eval", 50).inputs.items()}
    found, wanted = (Session(p, threads=1).run(feed)["logits"] for p in (path, _SOURCE))
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def _by_onnxruntime(path: Path) -> float:
    """SQNR in dB of what onnxruntime's own quantizer makes at 4 bits in blocks of 32."""
    logging.getLogger("onnxruntime").setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(onnx.load(_SOURCE), 4, 32)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
    feed = _data("eval", 200).inputs
    found, wanted = (Session(p, threads=1).run(feed)["logits"] for p in (path, _SOURCE))
    return float(10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()))


def test_weights_alone_in_blocks(tmp_path: Path) -> None:
    path, theirs = tmp_path / "blocks.onnx", tmp_path / "theirs.onnx"
    result = _quantized(path, weights=4, first_last=4, activations=None, block_size=32)
    assert {layer.block_size for layer in result.layers} == {32}
    kernels = [node.op for node in executed(path, threads=1)]
    assert kernels.count("MatMulNBits") == len(result.layers) == 13
    told = inspect(path)
    assert isinstance(told, QuantizedInspection)
    stored = {(x["weight_bits"], x["block_size"]) for x in told.as_json()["layers"]}
    assert stored == {(4, 32), (8, None)}  # layers; the table of words
    assert _shorter(path) < 0.02
    other = _by_onnxruntime(theirs)
    assert result.output.size_bytes <= theirs.stat().st_size
    assert result.fidelity is not None
    assert result.fidelity.sqnr_db > other + 3


def test_weights_and_activations_of_8_bits(tmp_path: Path) -> None:
    path = tmp_path / "w8a8.onnx"
    result = _quantized(path, weights=8, activations=8)
    assert result.fidelity is not None
    assert result.fidelity.agreement is not None
    assert result.fidelity.agreement >= 96
    assert result.execution[0].integer_macs_fraction > 0.99
    assert _shorter(path) < 0.02
