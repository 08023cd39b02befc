"""Quantizes real models and writes one table of what came out; run by hand.

    python tests/benchmarks/real_models.py --data DIR --models resnet20,mobilenet_v2 \
        --settings W8A8,W4A8 --output DIR

DIR (or the environment variable ONNXBRECQ_BENCH_DATA) holds

    models/*.onnx
    cifar10/calibration.npz, evaluation.npz      images uint8 [N, 32, 32, 3], labels
    imagenet/calibration/, imagenet/evaluation/  images
    imagenet/evaluation_labels.txt               lines of `file index`
    coco/images/                                 images

and what is missing is skipped, which is said. Every row is made in a process of its own, so that
its peak memory is its own, and kept in OUTPUT/results.json at once: an interrupted run goes on
where it stopped. OUTPUT/results.md is the same for reading.

Methods: `onnxbrecq`; `nearest`, the same without reconstruction; `onnxruntime`, its own
`quantize_static` (QDQ, per channel, MinMax) on the same samples. All are measured by
`onnxbrecq.validate`. The labels of calibration samples are never used.
"""

import argparse
import json
import logging
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime import quantization as ort_quantization
from PIL import Image

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import load
from onnxbrecq.recipe import Preprocess, Recipe, Reconstruction

log = logging.getLogger("real_models")

_NEAREST = Reconstruction(start="nearest", iterations=0, step_search=False)

Array = NDArray[np.float32]
T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGENET = Preprocess(
    resize_short=256,
    center_crop=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclass(frozen=True)
class Subject:
    """A model file, the data it takes and how its inputs are made."""

    file: str
    data: str
    preprocess: Preprocess


SUBJECTS = {
    "resnet20": Subject(
        "cifar10_resnet20.onnx", "cifar10", Preprocess(mean=IMAGENET.mean, std=IMAGENET.std)
    ),
    "resnet18": Subject(
        "cifar10_resnet18_w16.onnx", "cifar10", Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    ),
    "vit": Subject(
        "cifar10_vit_d128_l6.onnx",
        "cifar10",
        Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    ),
    "mobilenet_v2": Subject(
        "mobilenet_v2_1.0_ptqdeq.onnx",
        "imagenet",
        replace(IMAGENET, scale=1.0, mean=(127.5,) * 3, std=(127.5,) * 3),
    ),
    "squeezenet": Subject(
        "squeezenet1.1_ncnn.onnx",
        "imagenet",
        replace(IMAGENET, scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0,) * 3, channels="BGR"),
    ),
    "menet": Subject("menet108_8x1_g3.onnx", "imagenet", IMAGENET),
    "fdmobilenet": Subject("fdmobilenet_x0.25.onnx", "imagenet", IMAGENET),
    "nanodet": Subject(
        "nanodet_m_416.onnx",
        "coco",
        Preprocess(
            resize=(416, 416),
            scale=1.0,
            mean=(103.53, 116.28, 123.675),
            std=(57.375, 57.12, 58.395),
            channels="BGR",
        ),
    ),
}


@dataclass(frozen=True)
class Job:
    """One row to make. `weights` and `activations` in bits; None: float activations."""

    model: str
    method: str
    setting: str
    effort: str
    calibration: int
    evaluation: int
    threads: int

    @property
    def bits(self) -> tuple[int, int | None]:
        """Bits of weights and activations; W4A32 and W4Afloat mean float activations."""
        found = re.fullmatch(r"W(\d)A(\d|32|float)", self.setting)
        if found is None:
            raise SystemExit(f"setting {self.setting!r}: want W<bits>A<bits>, such as W4A8")
        weights, activations = found.groups()
        return int(weights), int(activations) if activations in set("2348") else None

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two rows the same row."""
        return (
            self.model, self.method, self.setting, self.effort, self.calibration, self.evaluation,
        )  # fmt: skip

    def recipe(self) -> Recipe:
        """The recipe of this row."""
        weights, activations = self.bits
        steps = _NEAREST if self.method == "nearest" else None
        return Recipe(
            weights=weights,
            activations=activations,
            effort=self.effort,  # type: ignore[arg-type]
            threads=self.threads,
            reconstruction=steps,
        )


# ---- data -----------------------------------------------------------------------------------


def samples(subject: Subject, root: Path, name: str, job: Job) -> tuple[Dataset, Dataset]:
    """Calibration samples without labels, and evaluation samples (with labels if there are)."""
    folder, pre = root / subject.data, subject.preprocess
    if subject.data == "cifar10":
        parts = [np.load(folder / f"{kind}.npz") for kind in ("calibration", "evaluation")]
        seen, judged = (
            normalised(part["images"][:count], pre)
            for part, count in zip(parts, (job.calibration, job.evaluation), strict=True)
        )
        labels = parts[1]["labels"][: job.evaluation].astype(np.int64)
    elif subject.data == "imagenet":
        lines = (folder / "evaluation_labels.txt").read_text(encoding="utf-8").split("\n")
        pairs = [line.split() for line in lines if line.strip()]
        pairs = spread(pairs, job.evaluation)
        seen = images(spread(files(folder / "calibration"), job.calibration), pre)
        judged = images([folder / "evaluation" / Path(file).name for file, _ in pairs], pre)
        labels = np.array([int(index) for _, index in pairs], np.int64)
    else:
        paths = files(folder / "images")
        half = len(paths) // 2
        seen = images(paths[: min(half, job.calibration)], pre)
        judged, labels = images(paths[half:][: job.evaluation], pre), None
    return Dataset({name: seen}, None, subject.data), Dataset({name: judged}, labels, subject.data)


def files(folder: Path) -> list[Path]:
    """The images of `folder` by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def spread(items: list[T], count: int) -> list[T]:
    """`count` of `items`, evenly spaced: files in order of their names may be sorted by class."""
    if count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


def images(paths: Sequence[Path], pre: Preprocess) -> Array:
    """The images as model inputs, [N, 3, H, W]."""
    return np.concatenate([normalised(np.asarray(framed(p, pre))[None], pre) for p in paths])


def framed(path: Path, pre: Preprocess) -> Image.Image:
    """The image, resized and cropped; letterboxed where an exact size is wanted."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    if pre.resize is not None:
        height, width = pre.resize
        factor = min(height / image.height, width / image.width)
        size = (round(image.width * factor), round(image.height * factor))
        canvas = Image.new("RGB", (width, height))
        corner = ((width - size[0]) // 2, (height - size[1]) // 2)
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR), corner)
        return canvas
    if pre.resize_short is not None:
        factor = pre.resize_short / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.BILINEAR)
    if pre.center_crop is not None:
        height, width = pre.center_crop
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image


def normalised(pixels: NDArray[np.uint8], pre: Preprocess) -> Array:
    """[N, H, W, 3] RGB bytes as model inputs, [N, 3, H, W]."""
    if pre.channels == "BGR":
        pixels = pixels[..., ::-1]
    values = pixels.astype(np.float32) * np.float32(pre.scale)
    values = (values - np.array(pre.mean, np.float32)) / np.array(pre.std, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


# ---- one row --------------------------------------------------------------------------------


def make_row(job: Job, root: Path) -> dict[str, object]:
    """The finished row of `job`."""
    subject = SUBJECTS[job.model]
    source = root / "models" / subject.file
    calibration, evaluation = samples(subject, root, load(source).inputs[0], job)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "quantized.onnx"
        start = time.perf_counter()
        if job.method == "onnxruntime":
            quantize_static(job, source, calibration, output)
            seconds = time.perf_counter() - start
            result = onnxbrecq.validate(output, source, calibration, evaluation, job.recipe())
        else:
            result = onnxbrecq.quantize(
                source, calibration, job.recipe(), evaluation=evaluation, output=output
            )
            seconds = result.total_seconds - result.stages.get("validate", 0.0)
    return {**job_columns(job), **measured(result.as_json()), "seconds": seconds}


def quantize_static(job: Job, source: Path, calibration: Dataset, output: Path) -> None:
    """Writes what onnxruntime's own quantizer makes of the canonical graph of `source`."""
    model = load(source)
    kinds = {8: ort_quantization.QuantType.QInt8, 4: ort_quantization.QuantType.QInt4}
    with tempfile.TemporaryDirectory() as folder:
        canonical = Path(folder) / "canonical.onnx"
        proto = model.proto
        opset = {8: 13, 4: 21}[job.bits[0]]  # scales per channel came with 13, INT4 with 21
        if model.opset < opset:
            proto = version_converter.convert_version(proto, opset)
            for node in proto.graph.node:  # conversion drops names and adds constants
                if node.output[0] in model.producer:
                    node.name = model.producer[node.output[0]].name
        onnx.save(proto, canonical)
        ort_quantization.quantize_static(
            canonical,
            output,
            Reader(calibration, 16 if model.batched else 1),
            quant_format=ort_quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ort_quantization.QuantType.QUInt8,
            weight_type=kinds[job.bits[0]],
        )


class Reader:
    """Calibration feeds, as quantize_static wants them."""

    def __init__(self, data: Dataset, size: int) -> None:
        self.feeds: Iterator[object] = iter(data.batches(size))

    def get_next(self) -> object:
        """The next feed; None at the end."""
        return next(self.feeds, None)


def job_columns(job: Job) -> dict[str, object]:
    """What tells rows apart."""
    names = ("model", "method", "setting", "effort", "calibration", "evaluation")
    return dict(zip(names, job.key, strict=True))


def measured(result: dict[str, object]) -> dict[str, object]:
    """The columns of the table, from a result's JSON."""
    accuracy = result["accuracy"] or {}
    fidelity = result["fidelity"] or {}
    execution = result["execution"][0]  # type: ignore[index]
    return {
        "float": accuracy.get("float"),  # type: ignore[attr-defined]
        "quantized": accuracy.get("quantized"),  # type: ignore[attr-defined]
        "drop": accuracy.get("drop"),  # type: ignore[attr-defined]
        "interval_95": accuracy.get("interval_95"),  # type: ignore[attr-defined]
        "agreement": fidelity.get("agreement"),  # type: ignore[attr-defined]
        "sqnr_db": fidelity.get("sqnr_db"),  # type: ignore[attr-defined]
        "size_ratio": result["size"]["ratio"],  # type: ignore[index]
        "integer_macs": execution["integer_macs_fraction"],
        "float_nodes": execution["float_nodes"],
        "latency_ms": execution["latency_ms"],
        "latency_ratio": 1 / execution["speedup"],
        "peak_mb": result["memory"]["peak_bytes"] / 1e6,  # type: ignore[index]
        "environment": result["environment"],
    }


# ---- the table ------------------------------------------------------------------------------

COLUMNS = {
    "model": "{}",
    "setting": "{}",
    "method": "{}",
    "float": "{:.1f}",
    "quantized": "{:.1f}",
    "drop": "{:+.1f}",
    "agreement": "{:.1f}",
    "sqnr_db": "{:.1f}",
    "size_ratio": "{:.3f}",
    "integer_macs": "{:.3f}",
    "latency_ratio": "{:.2f}",
    "seconds": "{:.0f}",
    "peak_mb": "{:.0f}",
}


def keep(rows: list[dict[str, object]], folder: Path) -> None:
    """Writes the rows as JSON and Markdown, each by renaming a finished file."""
    for name, text in (
        ("results.json", json.dumps(rows, indent=1) + "\n"),
        ("results.md", markdown(rows)),
    ):
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)


def markdown(rows: list[dict[str, object]]) -> str:
    """The table for reading; failed rows give the error."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for row in rows:
        cells = [
            form.format(row[name]) if row.get(name) is not None else "–"
            for name, form in COLUMNS.items()
        ]
        if "error" in row:
            cells[3:] = [str(row["error"]), *[""] * (len(cells) - 4)]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def missing(job: Job, root: Path) -> str | None:
    """Why a row cannot be made, or None."""
    subject = SUBJECTS[job.model]
    for path in (root / "models" / subject.file, root / subject.data):
        if not path.exists():
            return f"{path} is missing"
    if job.method == "onnxruntime" and (job.bits[0] not in (4, 8) or job.bits[1] != 8):
        return "quantize_static knows 8-bit activations and 4 or 8-bit weights only"
    return None


def run(jobs: Sequence[Job], root: Path, folder: Path) -> None:
    """Makes the rows that are not there yet."""
    for job in jobs:
        job.recipe()  # a wrong setting ends the run here, not after the first row
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    rows = [row for row in rows if "error" not in row]
    done = {tuple(row[name] for name in job_columns(jobs[0])) for row in rows}
    for job in jobs:
        title = f"{job.model} {job.setting} {job.method}"
        reason = "already there" if job.key in done else missing(job, root)
        if reason:
            log.info("%s: skipped: %s", title, reason)
            continue
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                row = pool.submit(make_row, job, root).result()
            except Exception as error:  # noqa: BLE001, RUF100  one failed row must not end the table
                log.exception("%s failed", title)
                row = {**job_columns(job), "error": f"{type(error).__name__}: {error}"}
        rows.append(row)
        keep(rows, folder)
        log.info("%s", markdown([row]).splitlines()[-1])


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Quantizes real models; writes one table.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA"))
    parser.add_argument("--models", default=",".join(SUBJECTS))
    parser.add_argument("--settings", default="W8A8,W4A8")
    parser.add_argument("--methods", default="onnxbrecq,onnxruntime")
    parser.add_argument("--baseline", choices=["nearest"], help="adds rows of this method")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--calibration", type=int, default=1024, help="samples, at most")
    parser.add_argument("--evaluation", type=int, default=650, help="samples")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.data is None:
        log.info("no data: give --data DIR or set ONNXBRECQ_BENCH_DATA; nothing was done")
        return
    methods = arguments.methods.split(",") + ([arguments.baseline] if arguments.baseline else [])
    names = arguments.models.split(",")
    unknown = sorted(set(names) - set(SUBJECTS))
    if unknown:
        parser.error(f"unknown models {unknown}; known: {sorted(SUBJECTS)}")
    jobs = [
        Job(name, method, setting, arguments.effort, arguments.calibration, arguments.evaluation,
            arguments.threads)
        for name in names for setting in arguments.settings.split(",") for method in methods
    ]  # fmt: skip
    run(jobs, Path(arguments.data), arguments.output)


if __name__ == "__main__":
    main()
