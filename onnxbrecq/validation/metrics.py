"""Metrics beyond top-1 accuracy: mean average precision, and the user's own function.

A metric sees the outputs of both models run by run, and says at the end how good each is, in
percent. The interval of the drop is a paired bootstrap: both models are scored on the same
resampled samples.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.functions import FUNCTION, function
from onnxbrecq.errors import DataError
from onnxbrecq.report.result import Accuracy
from onnxbrecq.validation.detection import PRECISIONS, MeanAveragePrecision

_RESAMPLES = 200
_SEED = 0  # the interval is part of a result that is the same for the same inputs

Function = Callable[..., Any]
Outputs = Mapping[str, NDArray[Any]]
Rows = NDArray[Any] | list[NDArray[Any]]  # of all samples: an array, or one for each


class Metric(Protocol):
    """What scores two models on the same samples."""

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Takes in the float model's and the quantized model's outputs of one run."""

    def accuracy(self) -> Accuracy:
        """The scores of all that was taken in."""


def metric_for(
    labelled: Dataset | None, wanted: str | Function | None, detections: str | Function | None
) -> Metric | None:
    """The metric that the evaluation data call for; None: top-1, where there are labels.

    Args:
        labelled: evaluation data.
        wanted: `mAP` (COCO's, over overlaps of 0.50 to 0.95), `mAP50`, a function of outputs and
            samples or its name `module:function`; None: what the data hold decides.
        detections: what turns the outputs of a run into boxes, or its name; None: the model gives
            them.

    Raises:
        DataError: the data do not have what the metric needs, or there is no such function.
    """
    if wanted is None and (labelled is None or labelled.boxes is None):
        return None
    if labelled is None:
        raise DataError("a metric needs evaluation data; pass them with -e (--eval)")
    decode = function(detections) if isinstance(detections, str) else detections
    if callable(wanted):
        return CustomMetric(getattr(wanted, "__name__", "metric"), wanted, labelled)
    if wanted is not None and FUNCTION.fullmatch(wanted):
        return CustomMetric(wanted, function(wanted), labelled)
    name = wanted or "mAP"
    if name not in PRECISIONS:
        raise DataError(f"metric {name!r}: give {' or '.join(PRECISIONS)}, or module:function")
    return MeanAveragePrecision(name, labelled, decode)


class CustomMetric:
    """A function of the user's: outputs and samples in, percent out, a number or one a sample.

    It is called with every output by name and with every input, and `labels`, `boxes`, `classes`
    and `image_index` where the data have them, samples along axis 0. An output without a row for
    each sample is a list with an array for each.
    """

    def __init__(self, name: str, scored: Function, data: Dataset) -> None:
        """A metric of that name on those samples."""
        self._name = name
        self._scored = scored
        self._data = data
        self._runs: tuple[list[Outputs], list[Outputs]] = ([], [])

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Takes in the outputs of one run; they are kept."""
        self._runs[0].append(expected)
        self._runs[1].append(actual)

    def accuracy(self) -> Accuracy:
        """The scores, and the interval of their difference.

        Raises:
            DataError: the function raises, or returns no finite numbers.
        """
        both = tuple(self._joined(runs) for runs in self._runs)
        first, second = (self._score(outputs, None) for outputs in both)
        drops = (
            self._drops(first - second) if first.ndim else self._called_again(both)
        )  # a score for each sample: no need to call it again
        low, high = np.percentile(drops, [2.5, 97.5])
        before, after = float(first.mean()), float(second.mean())
        samples = len(self._data)
        return Accuracy(
            self._name, before, after, before - after, (float(low), float(high)), samples
        )

    def _drops(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([differences[index].mean() for index in self._resamples()])

    def _called_again(self, both: Sequence[Mapping[str, Rows]]) -> NDArray[np.float64]:
        float_model, quantized = both
        return np.array(
            [
                float(self._score(float_model, index)) - float(self._score(quantized, index))
                for index in self._resamples()
            ]
        )

    def _resamples(self) -> list[NDArray[np.intp]]:
        random, count = np.random.default_rng(_SEED), len(self._data)
        return [random.integers(0, count, count) for _ in range(_RESAMPLES)]

    def _joined(self, runs: Sequence[Outputs]) -> dict[str, Rows]:
        """Every output of all samples."""
        parts: dict[str, list[NDArray[Any]]] = defaultdict(list)
        for outputs in runs:
            for name, value in outputs.items():
                parts[name].append(value)
        return {name: self._rows(name, values) for name, values in parts.items()}

    def _rows(self, name: str, parts: list[NDArray[Any]]) -> Rows:
        count = len(self._data)
        alike = all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts)
        if alike and sum(len(part) for part in parts) == count:
            return np.concatenate(parts)
        if len(parts) == count:
            return parts
        raise DataError(
            f"metric {self._name}: output {name!r} has no row for each sample; export the model "
            "for one sample at a time"
        )

    def _score(
        self, outputs: Mapping[str, Rows], index: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        """Percent, [] or [samples]; of the samples at `index`, or of all."""
        samples: dict[str, NDArray[Any]] = dict(self._data.part(slice(None)))
        labels, boxes = self._data.labels, self._data.boxes
        if labels is not None:
            samples["labels"] = labels
        if index is not None:
            outputs = {name: _at(rows, index) for name, rows in outputs.items()}
            samples = {name: array[index] for name, array in samples.items()}
            boxes = boxes.at(index) if boxes else None
        try:
            found = np.asarray(
                self._scored(outputs, {**samples, **(boxes.arrays() if boxes else {})}), np.float64
            )
        except Exception as error:  # the user's code may raise anything
            raise DataError(
                f"metric {self._name}: raised {type(error).__name__}: {error}"
            ) from error
        if found.shape not in ((), (len(self._data),)) or not np.isfinite(found).all():
            raise DataError(
                f"metric {self._name}: returned {found.dtype} {list(found.shape)}; return percent: "
                "a finite number, or one for each sample"
            )
        return found


def _at(rows: Rows, index: NDArray[np.intp]) -> Rows:
    return [rows[i] for i in index] if isinstance(rows, list) else rows[index]
