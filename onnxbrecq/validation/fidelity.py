"""How near the quantized model's outputs are to the float model's.

    SQNR = 10 log10( sum ref^2 / sum (ref - q)^2 )     over all elements of all float outputs

Both models run batch by batch, and only sums and predicted classes are kept: outputs may be images.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import ModelError
from onnxbrecq.progress import Progress, silent
from onnxbrecq.report.result import Fidelity
from onnxbrecq.runtime.session import Outputs, Session, paired_runs
from onnxbrecq.validation.accuracy import share_interval

# float32 has 24 significant bits: nothing nearer can be told apart, and infinity is not JSON.
SQNR_CEILING_DB = 20 * np.log10(2.0**24)

Array = NDArray[np.generic]
Classes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two models made of the same samples.

    Attributes:
        samples: how many.
        signal: output name → sum of the squared reference.
        noise: output name → sum of the squared differences, for the same outputs: the float ones
            whose shapes are equal in both models for every sample.
        predictions: the top-1 classes; None unless the first output holds class scores.
        uncompared: outputs whose shape depends on the data and differed.
    """

    samples: int
    signal: Mapping[str, float]
    noise: Mapping[str, float]
    predictions: "Predictions | None"
    uncompared: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Top-1 classes [samples] of the reference and of the quantized model, of `classes`."""

    reference: Classes
    quantized: Classes
    classes: int


def compare(
    reference: Session,
    quantized: Session,
    data: Dataset,
    batch_size: int,
    *,
    seen: Callable[[Outputs, Outputs], None] | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Both models' outputs for all of `data`, reduced to sums and classes.

    Whatever else is wanted of them, `seen` is shown the outputs of each run.

    Raises:
        DataError: there are no samples.
        ModelError: a run fails, or the quantized model gives NaN or infinity where the reference
            does not.
    """
    signal: dict[str, float] = defaultdict(float)
    noise: dict[str, float] = defaultdict(float)
    uncompared: set[str] = set()
    predictions: list[Predictions | None] = []
    for expected, actual in paired_runs(reference, quantized, data, batch_size, progress=progress):
        if seen is not None:
            seen(expected, actual)
        for name, value in expected.items():
            if not np.issubdtype(value.dtype, np.floating):
                continue
            if value.shape != actual[name].shape:
                uncompared.add(name)
                continue
            energy, error = _energies(name, value, actual[name])
            signal[name] += energy
            noise[name] += error
        first = reference.outputs[0]
        predictions.append(top1_predictions(expected[first], actual[first]))
    kept = [name for name in reference.outputs if name in signal and name not in uncompared]
    return Comparison(
        len(data),
        {name: signal[name] for name in kept},
        {name: noise[name] for name in kept},
        joined(predictions),
        tuple(name for name in reference.outputs if name in uncompared),
    )


def fidelity(comparison: Comparison) -> Fidelity | None:
    """Agreement and SQNR; None if no output can be compared number by number."""
    if not comparison.signal:
        return None
    same = agreement(comparison.predictions)
    count = round(same * comparison.samples / 100) if same is not None else 0
    return Fidelity(
        agreement=same,
        sqnr_db=sqnr_db(sum(comparison.signal.values()), sum(comparison.noise.values())),
        samples=comparison.samples,
        agreement_interval_95=None if same is None else share_interval(count, comparison.samples),
    )


def top1_predictions(expected: Array, actual: Array) -> Predictions | None:
    """The classes of one batch, if both are class scores: floats [N, C] with C at least 2."""
    shape = expected.shape
    if len(shape) != 2 or shape[1] < 2 or actual.shape != shape:
        return None
    if not np.issubdtype(expected.dtype, np.floating):
        return None
    return Predictions(expected.argmax(axis=1), actual.argmax(axis=1), shape[1])


def joined(parts: Sequence[Predictions | None]) -> Predictions | None:
    """The classes of all batches, if each batch has them."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Predictions(
        np.concatenate([part.reference for part in known]),
        np.concatenate([part.quantized for part in known]),
        known[0].classes,
    )


def agreement(predictions: Predictions | None) -> float | None:
    """Percent of samples of the same class; None without classes, or without rows of them."""
    if predictions is None or not len(predictions.reference):
        return None
    same = int(np.count_nonzero(predictions.reference == predictions.quantized))
    return 100 * same / len(predictions.reference)


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within what float32 can tell apart."""
    if noise <= 0:
        return float(SQNR_CEILING_DB)
    if signal <= 0:
        return float(-SQNR_CEILING_DB)
    return float(np.clip(10 * np.log10(signal / noise), -SQNR_CEILING_DB, SQNR_CEILING_DB))


def _energies(name: str, expected: Array, actual: Array) -> tuple[float, float]:
    """Sums of squares of the reference and of the difference, where the reference is finite."""
    finite = np.isfinite(expected)
    value = expected[finite].astype(np.float64)
    other = actual[finite].astype(np.float64)
    broken = np.count_nonzero(~np.isfinite(other))
    if broken:
        raise ModelError(
            f"output {name!r}: {broken} of {other.size} values of the quantized model are NaN or "
            "infinite where the float model's are finite; quantize with more bits or other data"
        )
    return float(np.square(value).sum()), float(np.square(value - other).sum())
