"""The true boxes of detection data: `boxes`, `classes` and `image_index`, a row for each box."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.errors import DataError

NAMES = ("boxes", "classes", "image_index")


@dataclass(frozen=True, eq=False)
class Boxes:
    """True boxes.

    Attributes:
        boxes: float64 [boxes, 4]: left, top, right, bottom, in the frame of what the model gives.
        classes: int64 [boxes].
        image_index: int64 [boxes], the sample that each lies in.
    """

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    image_index: NDArray[np.int64]

    def head(self, count: int) -> "Boxes":
        """Those of the first `count` samples."""
        kept = self.image_index < count
        return Boxes(self.boxes[kept], self.classes[kept], self.image_index[kept])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in NAMES}

    def at(self, samples: NDArray[np.intp]) -> "Boxes":
        """Those of the samples, of which one may be there several times; they count anew."""
        rows = [np.flatnonzero(self.image_index == sample) for sample in samples]
        picked = np.concatenate(rows) if rows else np.zeros(0, np.intp)
        index = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return Boxes(self.boxes[picked], self.classes[picked], index)


def boxes_of(arrays: Mapping[str, NDArray[np.generic]], samples: int, origin: str) -> Boxes | None:
    """The boxes that the arrays of that name hold; None: there are no such arrays.

    Raises:
        DataError: one is missing, or they do not fit each other or the samples.
    """
    found = [name for name in NAMES if name in arrays]
    if not found:
        return None
    missing = [name for name in NAMES if name not in arrays]
    if missing:
        raise DataError(f"{origin}: has {' and '.join(found)}, but no array {missing[0]!r}")
    boxes = np.asarray(arrays["boxes"])
    if boxes.dtype.kind not in "fiu" or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(
            f"{origin}: boxes are {boxes.dtype} {list(boxes.shape)}; give a row of left, top, "
            "right, bottom for each box"
        )
    corners: NDArray[np.float64] = boxes.astype(np.float64)
    ordered = (corners[:, :2] <= corners[:, 2:]).all(axis=1)
    wrong = ~(np.isfinite(corners).all(axis=1) & ordered)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{origin}: box {first} is {boxes[first].tolist()}; want left, top, right, bottom, "
            "the latter two no less"
        )
    for name in NAMES[1:]:
        array = np.asarray(arrays[name])
        if array.dtype.kind not in "iu" or array.shape != boxes.shape[:1]:
            raise DataError(
                f"{origin}: {name} is {array.dtype} {list(array.shape)} for {len(boxes)} boxes; "
                "give an integer for each"
            )
    index = np.asarray(arrays["image_index"]).astype(np.int64)
    if index.size and (index.min() < 0 or index.max() >= samples):
        raise DataError(
            f"{origin}: image_index runs from {index.min()} to {index.max()} for {samples} samples"
        )
    classes = np.asarray(arrays["classes"]).astype(np.int64)
    return Boxes(corners, classes, index)
