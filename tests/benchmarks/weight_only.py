"""Weights alone in few bits, a scale for each block of inputs: beside onnxruntime's own quantizer.

    python tests/benchmarks/weight_only.py [--models language] [--bits 4,2] [--block-sizes 32]

onnxruntime's is `onnxruntime.quantization.matmul_nbits_quantizer` with its defaults but for bits
and block size: round-to-nearest with zero points, of MatMul alone. Ours takes Gemm as well, and
gives every layer the same bits. Names are those of `subjects.py`, or paths. Columns:

    bytes        of the file
    packed       layers that a default session runs as MatMulNBits, of all Gemm and MatMul
    sqnr_db      of the outputs against the float model's, on the evaluation samples
    agreement    per cent of the evaluation samples with the float model's top-1
    top1         per cent of the evaluation samples that are right (float: in the first row)
"""

import argparse
import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import onnx
import subjects
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import load
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.kernels import executed
from onnxbrecq.runtime.session import Session
from onnxbrecq.validation.fidelity import Comparison, compare, fidelity

_COLUMNS = ("model", "bits", "block", "by", "bytes", "packed", "sqnr_db", "agreement", "top1")
_EFFORTS = ("fast", "balanced")
_SAMPLES, _BATCH = 512, 50


def rows(name: str, bits: int, block_size: int, given: argparse.Namespace) -> Iterator[list[str]]:
    """The lines of a model: of onnxruntime's file, then of ours by each effort."""
    source = subjects.source(name, given.data)
    seen, judged = subjects.samples(name, given.data, calibration=_SAMPLES, evaluation=1000)
    judged = judged or seen
    layers = sum(layer.op in ("Gemm", "MatMul") for layer in weight_layers(load(source)))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "quantized.onnx"
        for by in ("onnxruntime", *_EFFORTS):
            if by == "onnxruntime":
                quantizer = MatMulNBitsQuantizer(onnx.load(source), bits, block_size)
                quantizer.process()
                quantizer.model.save_model_to_file(str(output))
            else:
                recipe = Recipe(
                    weights=bits, first_last=bits, activations=None, block_size=block_size,
                    effort=by, threads=given.threads,
                )  # fmt: skip
                onnxbrecq.quantize(source, seen, recipe, output=output, force=True)
            packed = sum(node.op == "MatMulNBits" for node in executed(output, given.threads))
            sessions = (Session(path, threads=given.threads) for path in (source, output))
            told = _measured(compare(*sessions, judged, _BATCH), judged)
            yield [name, str(bits), str(block_size), by, f"{output.stat().st_size:,}",
                   f"{packed} of {layers}", *told]  # fmt: skip


def _measured(found: Comparison, judged: Dataset) -> list[str]:
    """SQNR, agreement and top-1."""
    near = fidelity(found)
    assert near is not None
    agreement = "" if near.agreement is None else f"{near.agreement:.1f}"
    if found.predictions is None or judged.labels is None:
        return [f"{near.sqnr_db:.1f}", agreement, ""]
    of = [getattr(found.predictions, name) for name in ("reference", "quantized")]
    whole, few = (100 * float((classes == judged.labels).mean()) for classes in of)
    return [f"{near.sqnr_db:.1f}", agreement, f"{few:.1f} (float {whole:.1f})"]


def main() -> None:
    """Prints the table, line by line."""
    logging.getLogger("onnxruntime").setLevel(logging.WARNING)  # it tells of every node
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="language")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--block-sizes", default="32")
    parser.add_argument("--data", type=Path, default=Path(), help="of the models in subjects.py")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    asked = (given.models.split(","), *(map(int, v.split(",")) for v in
                                        (given.bits, given.block_sizes)))  # fmt: skip
    click.echo(f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}")
    for name, bits, block_size in itertools.product(*asked):
        for row in rows(name, bits, block_size, given):
            click.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
