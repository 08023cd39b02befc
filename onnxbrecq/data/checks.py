"""Whether arrays are what the graph's inputs take: names, types, shapes, values, counts."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.data.arrays import Array
from onnxbrecq.data.dataset import Dataset, Samples
from onnxbrecq.data.rows import Rows
from onnxbrecq.errors import DataError
from onnxbrecq.graph.model import Model

_TEXT = ("U", "S", "O")  # kinds of numpy types that hold text
_CHUNK = 64  # samples looked at together for NaN, so that the mask stays small


def checked(
    model: Model, arrays: Mapping[str, Samples], labels: Array | None, origin: str
) -> Dataset:
    """The data set of `arrays`, one for each input of `model`.

    Args:
        model: whose inputs the arrays are for.
        arrays: input name → [samples, ...].
        labels: [samples], or None.
        origin: what the user called the data.

    Raises:
        DataError: an array is missing or does not fit its input, or the labels do not fit.
    """
    check_names(model, arrays, origin)
    for name in model.inputs:
        _check_type(model, name, arrays[name].dtype, origin)
        _check_shape(model, name, arrays[name].shape, origin)
    inputs = {name: _contiguous(arrays[name]) for name in model.inputs}
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{origin}: the arrays hold different numbers of samples: {counts}; a sample is a row "
            "of every array: give as many of each"
        )
    samples = next(iter(counts.values()))
    if samples == 0:
        raise DataError(f"{origin}: holds no samples; give at least one")
    for name, array in inputs.items():
        if isinstance(array, np.ndarray | Rows):  # images are finite
            _check_finite(name, array, origin)
    return Dataset(inputs, None if labels is None else _labels(labels, samples, origin), origin)


def check_names(model: Model, found: Collection[str], origin: str) -> None:
    """Refuses data that lacks an array under the exact name of each graph input.

    Raises:
        DataError: names what is wanted and what was found.
    """
    if not model.inputs:
        raise DataError(f"{origin}: the model has no inputs, so no data fits it")
    missing = [name for name in model.inputs if name not in found]
    if missing:
        raise DataError(
            f"{origin}: has no array {missing[0]!r}; wanted: {list(model.inputs)}, "
            f"found: {sorted(found)}; save the arrays under the names of the model's inputs"
        )


def only_input(model: Model, origin: str) -> str:
    """The name of the one graph input.

    Raises:
        DataError: there are several, so that an array without a name fits none.
    """
    if len(model.inputs) != 1:
        raise DataError(
            f"{origin}: holds arrays without names, but the model has the inputs "
            f"{list(model.inputs)}; give an .npz with an array for each"
        )
    return model.inputs[0]


def input_type(model: Model, name: str) -> np.dtype[np.generic]:
    """The numpy type of a graph input; object for text.

    Raises:
        DataError: it is no tensor.
    """
    kind = model.dtypes.get(name, 0)
    if kind == onnx.TensorProto.UNDEFINED:
        raise DataError(
            f"the model's input {name!r} is no tensor: not supported; make the part of the model "
            "that takes tensors a model of its own"
        )
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _check_type(model: Model, name: str, found: np.dtype[np.generic], origin: str) -> None:
    wanted = input_type(model, name)
    if wanted.kind == "O" and found.kind not in _TEXT:
        raise DataError(f"{origin}: array {name!r} is {found}, but the model's input is text")
    if wanted.kind != "O" and found != wanted:
        raise DataError(
            f"{origin}: array {name!r} is {found}, but the model's input is {wanted}; "
            f"convert it: array.astype({str(wanted)!r})"
        )


def _check_shape(model: Model, name: str, found: tuple[int, ...], origin: str) -> None:
    wanted = model.shapes.get(name)
    if wanted is None:
        wanted = (None,) * max(len(found), 1)
    if not wanted:
        raise DataError(
            f"the model's input {name!r} is a scalar, so that samples cannot lie along its axis 0; "
            "make it a constant of the model"
        )
    if wanted[0] not in (None, model.file_batch):
        raise DataError(
            f"the model's input {name!r} takes exactly {wanted[0]} samples at a time, another "
            f"input {model.file_batch}; export the model with a free batch dimension"
        )
    fits = len(found) == len(wanted) and all(
        want in (None, have) for have, want in zip(found[1:], wanted[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"{origin}: array {name!r} has shape {_shape(found)}, but the model's input is "
            f"{_shape(('samples', *wanted[1:]))}{_remedy(found, wanted)}"
        )


def _remedy(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """What to do about images whose channels stand in the wrong place."""
    if len(found) != 4 or len(wanted) != 4:
        return ""
    for axes, order in (((0, 3, 1, 2), "NHWC"), ((0, 2, 3, 1), "NCHW")):
        if all(w in (None, found[a]) for a, w in zip(axes[1:], wanted[1:], strict=True)):
            return f"; it looks like {order}: give array.transpose{axes}"
    return ""


def _contiguous(array: Samples) -> Samples:
    if not isinstance(array, np.ndarray):
        return array
    return np.ascontiguousarray(array, str if array.dtype.kind in _TEXT else None)


def _check_finite(name: str, array: Samples, origin: str) -> None:
    if array.dtype.kind in ("i", "u", "b", "U"):
        return
    for start in range(0, len(array), _CHUNK):
        part = array[start : start + _CHUNK]
        finite = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            first = start + int(np.argmin(finite))
            raise DataError(
                f"{origin}: array {name!r} holds NaN or infinite values, first in sample {first}; "
                "repair or remove that sample"
            )


def _labels(labels: Array, samples: int, origin: str) -> NDArray[np.int64]:
    """The labels as int64 [samples]."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"{origin}: labels are {labels.dtype}; give integer class indices")
    if labels.shape != (samples,):
        raise DataError(
            f"{origin}: labels have shape {_shape(labels.shape)} for {samples} samples; "
            "give one class index for each sample"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most > np.iinfo(np.int64).max:
        raise DataError(
            f"{origin}: labels run from {least} to {most}; class indices start at 0, and samples "
            "without a class have to be left out"
        )
    return labels.astype(np.int64)


def _shape(dims: tuple[object, ...]) -> str:
    return "[" + ", ".join("any" if dim is None else str(dim) for dim in dims) + "]"
