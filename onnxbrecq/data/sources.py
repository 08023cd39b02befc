"""Where samples come from: an .npz, a .npy, a folder of either images or .npy, or a function.

Every source ends in `checks.checked`, so that what leaves this module fits the model.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxbrecq.data import boxes as detection
from onnxbrecq.data import images
from onnxbrecq.data.arrays import Array, check_memory, read_npy, read_npz, whole
from onnxbrecq.data.checks import check_names, checked, input_type, only_input
from onnxbrecq.data.dataset import Dataset, Samples
from onnxbrecq.data.functions import FUNCTION, function, named
from onnxbrecq.errors import DataError
from onnxbrecq.graph.model import Model
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import PRESETS, Preprocess

KINDS = "an .npz, a .npy, a folder of images or of .npy files, or module:function"

_LABELS = "labels"
_IMAGE = "image_index"
_TRUTH = (_LABELS, *detection.NAMES)

_Read = tuple[dict[str, Samples], Mapping[str, Array]]  # inputs, and what is true of them by name


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Attributes:
        preprocess: for a folder of images.
        folder: where decoded images lie; None: that of temporary files.
        progress: told of them.
    """

    preprocess: Preprocess | None = None
    folder: Path | None = None
    progress: Progress = silent


def calibration(source: str | None, model: Model, reading: Reading) -> Dataset | None:
    """Unlabelled samples for `model`; labels that are there are not read.

    Args:
        source: what the user gave; None: STEM.calib.npz beside the model, and None if there is
            no such file.
        model: whose inputs they are for.
        reading: how.

    Raises:
        DataError: they do not fit the model.
    """
    found = beside(model, "calib") if source is None else source
    if found is None:
        return None
    inputs, _ = _read(found, model, reading, labelled=False)
    return checked(model, inputs, None, found)


def evaluation(source: str | None, model: Model, reading: Reading) -> Dataset | None:
    """Evaluation samples for `model`, with their labels where the source has any.

    Args:
        source: what the user gave; None: STEM.eval.npz beside the model, and None if there is
            no such file.
        model: whose inputs they are for.
        reading: how.

    Raises:
        DataError: they do not fit the model.
    """
    found = beside(model, "eval") if source is None else source
    if found is None:
        return None
    inputs, truth = _read(found, model, reading, labelled=True)
    data = checked(model, inputs, truth.get(_LABELS), found)
    return dataclasses.replace(data, boxes=detection.boxes_of(truth, len(data), found))


def beside(model: Model, role: str) -> str | None:
    """The data file of that role beside the model, if it is there."""
    if model.path is None:
        return None
    path = model.path.with_name(f"{model.path.stem}.{role}.npz")
    return str(path) if path.exists() else None


def _read(source: str, model: Model, reading: Reading, *, labelled: bool) -> _Read:
    path = Path(source)
    try:
        if path.is_dir():
            return _folder(path, model, reading, labelled=labelled)
        if path.exists():
            return _file(path, model, reading, labelled=labelled)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    if FUNCTION.fullmatch(source):
        return _called(source, model)
    raise DataError(f"{source}: no such file or folder; give {KINDS}")


def _file(path: Path, model: Model, reading: Reading, *, labelled: bool) -> _Read:
    if path.suffix.lower() == ".npz":
        return _npz(path, model, reading, labelled=labelled)
    if path.suffix.lower() == ".npy":
        return {only_input(model, str(path)): read_npy(path)}, {}
    raise DataError(f"{path}: is no data that can be read; give {KINDS}")


def _npz(path: Path, model: Model, reading: Reading, *, labelled: bool) -> _Read:
    truth = [name for name in _TRUTH if labelled and name not in model.inputs]
    arrays, names = read_npz(path, [*model.inputs, *truth], reading.folder)
    check_names(model, names, str(path))
    inputs = {name: arrays[name] for name in model.inputs}
    return inputs, {name: whole(arrays[name]) for name in truth if name in arrays}


def _folder(folder: Path, model: Model, reading: Reading, *, labelled: bool) -> _Read:
    """The files' samples in the order of their paths; of folders inside where it has no others."""
    name = only_input(model, str(folder))
    pictures, arrays = _kinds(folder.iterdir())
    if not pictures and not arrays:
        pictures, arrays = _kinds(folder.rglob("*"))
    if bool(pictures) == bool(arrays):
        held = "both images and .npy files" if pictures else "neither images nor .npy files"
        raise DataError(f"{folder}: holds {held}; give a folder with files of one of the kinds")
    labels = _folder_labels(folder, pictures or arrays) if labelled else {}
    if arrays:
        return {name: _stacked(arrays, model, name)}, labels
    if reading.preprocess is None:
        raise DataError(
            f"{folder}: images need --preprocess with one of {', '.join(PRESETS)}, or "
            "[data.preprocess] in a recipe (resize_short, center_crop, scale, mean, std, channels, "
            "layout); pass it with --recipe FILE.toml"
        )
    found = images.decode_all(
        pictures, reading.preprocess, input_type(model, name), str(folder),
        wanted=model.shapes.get(name), folder=reading.folder, progress=reading.progress,
    )  # fmt: skip
    return {name: found}, labels


def _kinds(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The images and the .npy files among the paths, sorted; hidden ones are left out."""
    files = sorted(path for path in paths if path.name[0] != ".")
    for path in files:
        if not path.exists():
            raise DataError(f"{path}: leads to a file that does not exist; mend or remove the link")
    files = [path for path in files if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in images.SUFFIXES]
    return pictures, [path for path in files if path.suffix.lower() == ".npy"]


def _stacked(files: Sequence[Path], model: Model, name: str) -> Array:
    """The .npy files as one array; each is a batch, or a single sample without a batch axis."""
    parts: list[Array] = []
    held = 0
    for path in files:
        part = _batch(whole(read_npy(path)), model, name)
        if parts and (part.shape[1:], part.dtype) != (parts[0].shape[1:], parts[0].dtype):
            raise DataError(
                f"{path}: samples are {part.dtype} {list(part.shape[1:])}, but those of "
                f"{files[0].name} are {parts[0].dtype} {list(parts[0].shape[1:])}; make them alike"
            )
        held += part.nbytes
        check_memory(held, str(path.parent))
        parts.append(part)
    return np.concatenate(parts)


def _batch(array: Array, model: Model, name: str) -> Array:
    """`array` with a batch axis: one is added to what has a dimension less than the input."""
    rank = len(model.shapes[name]) if name in model.shapes else 1
    return array[np.newaxis] if array.ndim in (0, rank - 1) else array


def _folder_labels(folder: Path, files: Sequence[Path]) -> dict[str, Array]:
    """The label of each file, from labels.txt inside or FOLDER_labels.txt beside, if there."""
    real = folder.resolve()
    for path in (real / "labels.txt", real.with_name(f"{real.name}_labels.txt")):
        if path.is_file():
            table = _label_table(path)
            names = [file.relative_to(folder).as_posix() for file in files]
            names = [name if name in table else name.rpartition("/")[2] for name in names]
            missing = [name for name in names if name not in table]
            if missing:
                raise DataError(
                    f"{path}: has no line for {missing[0]!r} ({len(missing)} of {len(files)} files "
                    "are missing); give a line `name label` for each"
                )
            return {_LABELS: np.array([table[name] for name in names], np.int64)}
    return {}


def _label_table(path: Path) -> dict[str, int]:
    """File name → label, from lines `name label`."""
    table: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name or not re.fullmatch(r"\d{1,18}", label):
            raise DataError(f"{path}: line {number}: want `name label`, got {line.strip()!r}")
        if table.setdefault(name.strip(), int(label)) != int(label):
            raise DataError(f"{path}: line {number}: {name.strip()!r} has two different labels")
    return table


def _called(source: str, model: Model) -> _Read:
    """What a function of the user's returns: feeds or arrays, each a batch or a single sample."""
    called = _source(source)
    parts: dict[str, list[Array]] = {}
    held = samples = 0
    try:
        for item in _items(called(), source):
            feed = _feed(item, model, source)
            if _IMAGE in feed and _IMAGE not in model.inputs:  # it counts from the item's first
                feed[_IMAGE] = feed[_IMAGE] + samples
            samples += len(feed[model.inputs[0]])
            for name, array in feed.items():
                held += array.nbytes
                parts.setdefault(name, []).append(array)
            check_memory(held, source)
    except DataError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"{source}: raised {type(error).__name__}: {error}") from error
    if not parts:
        raise DataError(f"{source}: returned no samples; yield arrays, or dicts by input name")
    arrays = {name: _joined(name, batches, source) for name, batches in parts.items()}
    inputs: dict[str, Samples] = {name: arrays.pop(name) for name in model.inputs}
    return inputs, arrays


def _source(source: str) -> Callable[[], object]:
    """What `module:function` names, as a function; a loader is one that returns itself."""
    found = named(source)
    if isinstance(found, Iterable) and not isinstance(found, type):
        return lambda: found
    return function(source)


def _items(returned: object, source: str) -> Iterable[object]:
    if isinstance(returned, Mapping):
        return [returned]
    if isinstance(returned, Iterable):
        return returned
    raise DataError(
        f"{source}: returned {type(returned).__name__}; return an iterable of arrays, or of dicts "
        "by input name"
    )


def _feed(item: object, model: Model, source: str) -> dict[str, Array]:
    """One item as arrays with a batch axis."""
    values = _named(item, model, source)
    check_names(model, values, source)
    names = dict.fromkeys([*model.inputs, *(name for name in _TRUTH if name in values)])
    return {name: _batch(_array(values[name]), model, name) for name in names}


def _named(item: object, model: Model, source: str) -> Mapping[str, object]:
    """The item by input name; a tuple of tensors is in the order of the inputs, labels behind."""
    if isinstance(item, Mapping):
        return item
    if not isinstance(item, tuple | list) or not all(hasattr(part, "shape") for part in item):
        return {only_input(model, source): item}
    names = (*model.inputs, _LABELS)
    if not len(model.inputs) <= len(item) <= len(names):
        raise DataError(
            f"{source}: yields {len(item)} tensors, but the model has the inputs "
            f"{list(model.inputs)}; yield one for each, in this order, and the labels behind them"
        )
    return dict(zip(names, item, strict=False))


def _array(value: Any) -> Array:
    """The value as an array; tensors of torch leave their graph and their device."""
    found = value.detach().cpu() if hasattr(value, "detach") else value
    return np.asarray(found)


def _joined(name: str, batches: Sequence[Array], source: str) -> Array:
    kinds = {(array.dtype, array.shape[1:]) for array in batches}
    if len(kinds) > 1:
        told = " and ".join(sorted(f"{dtype} {['samples', *dims]}" for dtype, dims in kinds)[:2])
        raise DataError(f"{source}: yields {name!r} as {told}; all samples must be alike")
    return np.concatenate(batches)
