"""Mean average precision of detections, by COCO's own evaluation (pycocotools).

    mAP     over overlaps of 0.50, 0.55 ... 0.95       mAP50     at an overlap of 0.50

at most 100 boxes an image, objects of all sizes, mean over the classes that occur. Boxes are left,
top, right, bottom; those of the data and those of the model in the same frame.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.boxes import Boxes
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import DataError
from onnxbrecq.report.result import Accuracy

# Metric → the least overlaps (intersection over union) of a box that counts as found.
PRECISIONS: Mapping[str, tuple[float, ...]] = {
    "mAP": tuple(np.linspace(0.5, 0.95, 10)),
    "mAP50": (0.5,),
}

_MOST_BOXES = 100  # of an image
_RESAMPLES = 200
_SEED = 0

Outputs = Mapping[str, NDArray[Any]]


class Detections(NamedTuple):
    """What a model finds in one sample: boxes [k, 4], scores [k], classes [k]."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]


class MeanAveragePrecision:
    """The metric, fed run by run."""

    def __init__(
        self, name: str, data: Dataset, decode: Callable[[Outputs], Any] | None = None
    ) -> None:
        """One of `PRECISIONS` on those samples.

        Args:
            name: which.
            data: samples with boxes.
            decode: from the outputs of a run to (boxes, scores, classes) for each of its samples;
                None: the model gives boxes, scores and classes itself.

        Raises:
            DataError: the data have no boxes, or pycocotools is not installed.
        """
        if data.boxes is None:
            raise DataError(
                f"metric {name}: {data.origin or 'the evaluation data'} has no boxes; give arrays "
                "boxes, classes and image_index"
            )
        self._name, self._truth, self._samples = name, data.boxes, len(data)
        self._decode = decode
        self._found: tuple[list[Detections], list[Detections]] = ([], [])
        self._coco = _pycocotools()

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Takes in the float model's and the quantized model's outputs of one run."""
        for outputs, found in zip((expected, actual), self._found, strict=True):
            found.extend(decoded(self._decode, outputs))

    def accuracy(self) -> Accuracy:
        """The precisions in percent, and the interval of their difference.

        Raises:
            DataError: the model does not give detections for each sample.
        """
        wrong = next((len(f) for f in self._found if len(f) != self._samples), None)
        if wrong is not None:
            raise DataError(
                f"metric {self._name}: the model gives detections for {wrong} samples of "
                f"{self._samples}"
            )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            first, second = (self._evaluated(found) for found in self._found)
            before, after = _precision(first), _precision(second)
            drops = [
                _precision(first, index) - _precision(second, index) for index in self._resamples()
            ]
        low, high = np.percentile(drops, [2.5, 97.5])
        return Accuracy(
            self._name, before, after, before - after, (float(low), float(high)), self._samples
        )

    def _resamples(self) -> list[NDArray[np.intp]]:
        random = np.random.default_rng(_SEED)
        return [random.integers(0, self._samples, self._samples) for _ in range(_RESAMPLES)]

    def _evaluated(self, found: Sequence[Detections]) -> Any:
        """COCO's evaluation with each image's boxes matched."""
        truth = self._index(_annotations(self._truth, None))
        made = Boxes(
            np.concatenate([d.boxes for d in found]),
            np.concatenate([d.classes for d in found]),
            np.repeat(np.arange(len(found)), [len(d.scores) for d in found]),
        )
        scores = np.concatenate([d.scores for d in found])
        evaluation = self._coco.cocoeval.COCOeval(
            truth, self._index(_annotations(made, scores)), "bbox"
        )
        evaluation.params.iouThrs = np.array(PRECISIONS[self._name])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [_MOST_BOXES]
        evaluation.evaluate()
        return evaluation

    def _index(self, annotations: list[dict[str, Any]]) -> Any:
        index = self._coco.coco.COCO()
        index.dataset = {
            "images": [{"id": i} for i in range(self._samples)],
            "categories": [{"id": int(c)} for c in np.unique(self._truth.classes)],
            "annotations": annotations,
        }
        index.createIndex()
        return index


def decoded(decode: Callable[[Outputs], Any] | None, outputs: Outputs) -> list[Detections]:
    """The detections of each sample of a run.

    Raises:
        DataError: `decode` raises or returns something else, or the outputs are no detections.
    """
    if decode is None:
        return _given(outputs)
    try:
        return [_detections(*sample) for sample in decode(outputs)]
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"detections: the function must return boxes [k, 4], scores [k] and classes [k] for "
            f"each sample ({type(error).__name__}: {error})"
        ) from error


def _given(outputs: Outputs) -> list[Detections]:
    """Those of a model that gives boxes [N, k, 4], scores [N, k] and classes [N, k], or all without
    N for one sample. Classes are integers, or their name says so.
    """
    boxes = [v for v in outputs.values() if v.ndim > 1 and v.shape[-1] == 4 and v.dtype.kind == "f"]
    if len(boxes) == 1:
        rest = {n: v for n, v in outputs.items() if v.shape == boxes[0].shape[:-1]}
        named = [n for n in rest if any(word in n.lower() for word in ("label", "class"))]
        kinds = [n for n, v in rest.items() if v.dtype.kind in "iu"]
        classes = next(iter(kinds or named), None)
        scores = [n for n, v in rest.items() if n != classes and v.dtype.kind == "f"]
        if classes is not None and len(scores) == 1:
            three = boxes[0], rest[scores[0]], rest[classes]
            samples = zip(*three, strict=True) if boxes[0].ndim == 3 else [three]
            return [_detections(*sample) for sample in samples]
    told = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    raise DataError(
        f"the outputs are no boxes [.., k, 4], scores [.., k] and classes [.., k]: {told}; pass "
        "--detections module:function, which makes them of the outputs"
    )


def _detections(boxes: object, scores: object, classes: object) -> Detections:
    found = Detections(
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(scores, np.float64).reshape(-1),
        np.asarray(classes).astype(np.int64).reshape(-1),
    )
    if not len(found.boxes) == len(found.scores) == len(found.classes):
        raise ValueError(
            f"{len(found.boxes)} boxes, {len(found.scores)} scores, {len(found.classes)} classes"
        )
    return found


def _annotations(found: Boxes, scores: NDArray[np.float64] | None) -> list[dict[str, Any]]:
    """The boxes as COCO has them: left, top, width, height."""
    sizes = found.boxes[:, 2:] - found.boxes[:, :2]
    return [
        {
            "id": i + 1,  # 0 is no match
            "image_id": int(found.image_index[i]),
            "category_id": int(found.classes[i]),
            "bbox": [*found.boxes[i, :2].tolist(), *sizes[i].tolist()],
            "area": float(sizes[i].prod()),
            "iscrowd": 0,
            **({} if scores is None else {"score": float(scores[i])}),
        }
        for i in range(len(found.boxes))
    ]


def _precision(evaluation: Any, index: NDArray[np.intp] | None = None) -> float:
    """Mean average precision in percent, of the images at `index` or of all; edits `evaluation`."""
    matched = evaluation.evalImgs
    images = len(evaluation.params.imgIds)
    if index is not None:
        starts = range(0, len(matched), images)  # class by class
        evaluation.evalImgs = [matched[start + i] for start in starts for i in index]
    evaluation.accumulate()
    evaluation.evalImgs = matched
    precision = evaluation.eval["precision"]
    known = precision[precision > -1]  # -1: of classes that do not occur
    return 100 * float(known.mean()) if known.size else 0.0


def _pycocotools() -> ModuleType:
    try:
        importlib.import_module("pycocotools.cocoeval")
        importlib.import_module("pycocotools.coco")
        return importlib.import_module("pycocotools")
    except ImportError as error:
        raise DataError(
            "mAP needs pycocotools: pip install 'onnxbrecq[detection]'; or pass --metric "
            f"module:function ({error})"
        ) from error
