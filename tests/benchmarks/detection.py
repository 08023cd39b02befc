"""What detectors lose: mAP of the float and of the quantized model; run by hand.

    python tests/benchmarks/detection.py --data DIR --models detector,nanodet \
        --settings W8A8,W4A8,W4A4 --output DIR

`detector` is the fixture, NonMaxSuppression in its graph. `nanodet` needs in DIR

    models/nanodet_m_416.onnx     coco/images/     coco/labels/NAME.txt

with lines of `class x y width height` for each box, relative to the picture. Its decoding is here:
the distances to the sides of a box are means of distributions over 0 ... 7 strides (Li et al.,
Generalized Focal Loss, NeurIPS 2020), at the centres of cells of 8, 16 and 32 pixels; then
suppression within each class. It calibrates on the pictures that it is judged on, whose labels it
does not see: there are no others.

mAP is COCO's own (pycocotools), at an overlap of 0.5 and over 0.5 ... 0.95.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rows
import subjects
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from real_models import Job, measured
from rows import Row

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import load
from onnxbrecq.runtime.session import Outputs, Session

Array = NDArray[np.float32]

FIXTURE = Path(__file__).parents[2] / "fixtures" / "detector.onnx"
STRIDES, DISTANCES = (8, 16, 32), 8
LEAST_SCORE, OVERLAP, MOST, CANDIDATES = 0.05, 0.6, 100, 1000  # NanoDet's own


@dataclass(frozen=True)
class Boxes:
    """Boxes [K, 4] of left, top, right, bottom; classes [K]; image of each; scores, if found."""

    boxes: Array
    classes: NDArray[np.int64]
    images: NDArray[np.int64]
    scores: Array | None = None

    def annotations(self) -> list[Row]:
        """As COCO has them."""
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        scores = np.ones(len(self.boxes)) if self.scores is None else self.scores
        return [
            {
                "id": i + 1, "image_id": int(self.images[i]), "category_id": int(self.classes[i]),
                "bbox": [*self.boxes[i, :2].tolist(), *sizes[i].tolist()],
                "area": float(sizes[i].prod()), "iscrowd": 0, "score": float(scores[i]),
            }
            for i in range(len(self.boxes))
        ]  # fmt: skip


def precision(found: Boxes, true: Boxes, images: int) -> tuple[float, float]:
    """mAP in percent, at an overlap of 0.5 and over 0.5 ... 0.95."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth, results = (_coco(boxes, true, images) for boxes in (true, found))
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[1]), 100 * float(evaluation.stats[0])


def _coco(boxes: Boxes, true: Boxes, images: int) -> COCO:
    index = COCO()
    index.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": int(c)} for c in np.unique(true.classes)],
        "annotations": boxes.annotations(),
    }
    index.createIndex()
    return index


# ---- the detectors --------------------------------------------------------------------------


def detections(model: str, path: Path, data: Dataset) -> Boxes:
    """What the model at `path` finds in each sample."""
    session, found = Session(path, threads=1), []
    for i, feed in enumerate(data.batches(1)):
        made = session.run(feed)
        boxes, scores, classes = _given(made) if model == "detector" else nanodet(made)
        found.append((boxes, classes, np.full(len(boxes), i), scores))
    return Boxes(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _given(made: Outputs) -> tuple[Array, Array, NDArray[np.int64]]:
    kept = made["scores"][0] > 0
    return made["boxes"][0][kept], made["scores"][0][kept], made["classes"][0][kept]


def nanodet(made: Outputs) -> tuple[Array, Array, NDArray[np.int64]]:
    """Boxes [K, 4] in pixels of the input, scores [K] and classes [K] of one sample.

    Args:
        made: per level, scores [1, cells, classes] and logits [1, cells, 4 * DISTANCES].
    """
    values = list(made.values())
    levels = len(STRIDES)
    boxes, scores = [], []
    for stride, level, logits in zip(STRIDES, values[:levels], values[levels:], strict=True):
        side = int(np.sqrt(level.shape[1]))
        axis = (np.arange(side, dtype=np.float32) + 0.5) * stride
        centres = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        odds = logits[0].reshape(-1, 4, DISTANCES)
        odds = np.exp(odds - odds.max(axis=2, keepdims=True))
        mean = (odds / odds.sum(axis=2, keepdims=True)) @ np.arange(DISTANCES, dtype=np.float32)
        reach = mean * stride
        boxes.append(np.concatenate([centres - reach[:, :2], centres + reach[:, 2:]], axis=1))
        scores.append(level[0])
    return suppressed(np.concatenate(boxes), np.concatenate(scores))


def suppressed(boxes: Array, scores: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """The best of boxes [N, 4] and scores [N, classes] that overlap little within their class."""
    places, classes = np.nonzero(scores > LEAST_SCORE)
    best = scores[places, classes].argsort(kind="stable")[::-1][:CANDIDATES]
    places, classes = places[best], classes[best]
    corners = boxes[places].astype(np.float64)
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    inner = (high - low).clip(min=0).prod(axis=2)
    area = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    covers = inner > OVERLAP * (area[:, None] + area[None] - inner)
    covers &= classes[:, None] == classes[None]
    kept: list[int] = []
    for i in range(len(places)):
        if not covers[i, kept].any():
            kept.append(i)
    kept = kept[:MOST]
    return boxes[places[kept]], scores[places[kept], classes[kept]], classes[kept]


# ---- their data -----------------------------------------------------------------------------


def data(model: str, root: Path) -> tuple[Dataset, Dataset, Boxes]:
    """Calibration samples, evaluation samples, and the boxes that are there."""
    if model == "detector":
        seen = dict(np.load(FIXTURE.with_suffix(".calib.npz")))
        held = dict(np.load(FIXTURE.with_suffix(".eval.npz")))
        true = Boxes(held["boxes"], held["classes"], held["image_index"])
        return Dataset(seen), Dataset({"input": held["input"]}), true
    subject = subjects.SUBJECTS[model]
    paths = subjects.files(root / subject.data / "images")
    reads = load(subjects.source(model, root)).inputs[0]
    samples = Dataset({reads: subjects.images(paths, subject.preprocess)})
    assert subject.preprocess.resize is not None
    return samples, samples, labels(paths, subject.preprocess.resize)


def labels(paths: Sequence[Path], size: tuple[int, int]) -> Boxes:
    """The boxes of the pictures, in the frame of `subjects.framed`."""
    boxes, classes, images = [], [], []
    for i, path in enumerate(paths):
        with Image.open(path) as file:
            width, height = file.size
        factor = min(size[0] / height, size[1] / width)
        shape = np.array([round(width * factor), round(height * factor)])
        corner = (np.array([size[1], size[0]]) - shape) // 2
        told = path.parents[1] / "labels" / f"{path.stem}.txt"
        for line in told.read_text(encoding="utf-8").splitlines() if told.exists() else ():
            kind, *numbers = line.split()
            centre, extent = np.array(numbers, np.float64).reshape(2, 2) * shape
            boxes.append(
                np.concatenate([centre - extent / 2, centre + extent / 2]) + np.tile(corner, 2)
            )
            classes.append(int(kind))
            images.append(i)
    return Boxes(np.array(boxes, np.float32), np.array(classes), np.array(images))


# ---- the table ------------------------------------------------------------------------------

COLUMNS = {
    "model": "{}", "setting": "{}", "effort": "{}", "float50": "{:.1f}", "map50": "{:.1f}",
    "drop50": "{:+.1f}", "float": "{:.1f}", "map": "{:.1f}", "sqnr_db": "{:.1f}",
    "size_ratio": "{:.3f}", "integer_macs": "{:.3f}", "latency_ratio": "{:.2f}",
    "seconds": "{:.0f}",
}  # fmt: skip


def make_row(job: Job, root: Path) -> Row:
    """The finished row of `job`."""
    seen, held, true = data(job.model, root)
    path = FIXTURE if job.model == "detector" else subjects.source(job.model, root)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "quantized.onnx"
        start = time.perf_counter()
        result = onnxbrecq.quantize(
            path, seen.head(job.calibration), job.recipe(), evaluation=held, output=output
        )
        seconds = time.perf_counter() - start
        found = [
            precision(detections(job.model, file, held), true, len(held)) for file in (path, output)
        ]
    (float50, floats), (map50, maps) = found
    made = {"float50": float50, "map50": map50, "drop50": float50 - map50, "map": maps}
    return {**measured(result.as_json()), **made, "float": floats, "seconds": seconds}


def missing(job: Job, root: Path) -> str | None:
    """Why a row cannot be made, or None."""
    if job.model == "detector":
        return None if FIXTURE.exists() else f"{FIXTURE} is missing"
    return subjects.absent(job.model, root)


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Quantizes detectors; writes one table.")
    parser.add_argument("--data", type=Path, default=os.environ.get("ONNXBRECQ_BENCH_DATA", "."))
    parser.add_argument("--models", default="detector,nanodet")
    parser.add_argument("--settings", default="W8A8,W4A8,W4A4")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--calibration", type=int, default=512, help="samples, at most")
    arguments = rows.arguments(parser)
    jobs = [
        Job(name, "onnxbrecq", setting, arguments.effort, arguments.calibration, 0,
            arguments.threads)
        for name in arguments.models.split(",") for setting in arguments.settings.split(",")
    ]  # fmt: skip
    for job in jobs:
        job.recipe()  # a wrong setting ends the run here, not after the first row
    rows.run(
        jobs, partial(make_row, root=Path(arguments.data)),
        partial(missing, root=Path(arguments.data)), partial(rows.table, COLUMNS), arguments.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
