"""Where samples come from: an .npz, a .npy, a folder of either images or .npy, or a function.

Every source ends in `checks.checked`, so that what leaves this module fits the model.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxbrecq.data import images
from onnxbrecq.data.arrays import Array, check_memory, read_npy, read_npz
from onnxbrecq.data.checks import check_names, checked, input_type, only_input
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import DataError
from onnxbrecq.graph.model import Model
from onnxbrecq.recipe import Preprocess

KINDS = "an .npz, a .npy, a folder of images or of .npy files, or module:function"

_LABELS = "labels"
_DETECTION = ("boxes", "classes", "image_index")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

_Read = tuple[dict[str, Array], Array | None]  # inputs, labels


def calibration(source: str | None, model: Model, preprocess: Preprocess | None) -> Dataset:
    """Unlabelled samples for `model`; labels that are there are not read.

    Args:
        source: what the user gave; None: STEM.calib.npz beside the model.
        model: whose inputs they are for.
        preprocess: for a folder of images.

    Raises:
        DataError: there are none, or they do not fit the model.
    """
    found = _beside(model, "calib") if source is None else source
    if found is None:
        looked = f"{model.path.stem}.calib.npz beside {model.path}" if model.path else "a file"
        raise DataError(
            f"no calibration data: {looked} does not exist; pass {KINDS} with -d (--data)"
        )
    inputs, _ = _read(found, model, preprocess, labelled=False)
    return checked(model, inputs, None, found)


def evaluation(source: str | None, model: Model, preprocess: Preprocess | None) -> Dataset | None:
    """Evaluation samples for `model`, with their labels where the source has any.

    Args:
        source: what the user gave; None: STEM.eval.npz beside the model, and None if there is
            no such file.
        model: whose inputs they are for.
        preprocess: for a folder of images.

    Raises:
        DataError: they do not fit the model.
    """
    found = _beside(model, "eval") if source is None else source
    if found is None:
        return None
    inputs, labels = _read(found, model, preprocess, labelled=True)
    return checked(model, inputs, labels, found)


def _beside(model: Model, role: str) -> str | None:
    """The data file of that role beside the model, if it is there."""
    if model.path is None:
        return None
    path = model.path.with_name(f"{model.path.stem}.{role}.npz")
    return str(path) if path.exists() else None


def _read(source: str, model: Model, preprocess: Preprocess | None, *, labelled: bool) -> _Read:
    path = Path(source)
    try:
        if path.is_dir():
            return _folder(path, model, preprocess, labelled=labelled)
        if path.exists():
            return _file(path, model, labelled=labelled)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from error
    if _FUNCTION.fullmatch(source):
        return _called(source, model)
    raise DataError(f"{source}: no such file or folder; give {KINDS}")


def _file(path: Path, model: Model, *, labelled: bool) -> _Read:
    if path.suffix.lower() == ".npz":
        return _npz(path, model, labelled=labelled)
    if path.suffix.lower() == ".npy":
        return {only_input(model, str(path)): read_npy(path)}, None
    raise DataError(f"{path}: is no data that can be read; give {KINDS}")


def _npz(path: Path, model: Model, *, labelled: bool) -> _Read:
    wanted = [*model.inputs, *([_LABELS] if labelled else [])]
    arrays, names = read_npz(path, wanted)
    if labelled and any(name in names and name not in model.inputs for name in _DETECTION):
        raise DataError(
            f"{path}: holds {' and '.join(n for n in _DETECTION if n in names)}, but detection "
            "metrics are not in this version; leave them out to compare outputs only"
        )
    check_names(model, names, str(path))
    labels = arrays.get(_LABELS) if labelled and _LABELS not in model.inputs else None
    return {name: arrays[name] for name in model.inputs}, labels


def _folder(folder: Path, model: Model, preprocess: Preprocess | None, *, labelled: bool) -> _Read:
    """The files' samples in the order of the file names."""
    name = only_input(model, str(folder))
    files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    for path in files:
        if not path.exists():
            raise DataError(f"{path}: leads to a file that does not exist; mend or remove the link")
    files = [path for path in files if path.is_file()]
    pictures = [path for path in files if path.suffix.lower() in images.SUFFIXES]
    arrays = [path for path in files if path.suffix.lower() == ".npy"]
    if bool(pictures) == bool(arrays):
        held = "both images and .npy files" if pictures else "neither images nor .npy files"
        raise DataError(f"{folder}: holds {held}; give a folder with files of one of the kinds")
    labels = _folder_labels(folder, pictures or arrays) if labelled else None
    if arrays:
        return {name: _stacked(arrays, model, name)}, labels
    if preprocess is None:
        raise DataError(
            f"{folder}: images need [data.preprocess] in a recipe (resize_short, center_crop, "
            "scale, mean, std, channels, layout); pass it with --recipe FILE.toml"
        )
    dtype = input_type(model, name)
    return {name: images.decode_all(pictures, preprocess, dtype, str(folder))}, labels


def _stacked(files: Sequence[Path], model: Model, name: str) -> Array:
    """The .npy files as one array; each is a batch, or a single sample without a batch axis."""
    parts: list[Array] = []
    held = 0
    for path in files:
        part = _batch(read_npy(path), model, name)
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


def _folder_labels(folder: Path, files: Sequence[Path]) -> Array | None:
    """The label of each file, from labels.txt inside or FOLDER_labels.txt beside; None: neither."""
    real = folder.resolve()
    for path in (real / "labels.txt", real.with_name(f"{real.name}_labels.txt")):
        if path.is_file():
            table = _label_table(path)
            missing = [file.name for file in files if file.name not in table]
            if missing:
                raise DataError(
                    f"{path}: has no line for {missing[0]!r} ({len(missing)} of {len(files)} files "
                    "are missing); give a line `name label` for each"
                )
            return np.array([table[file.name] for file in files], np.int64)
    return None


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
    function = _imported(source)
    parts: dict[str, list[Array]] = {}
    held = 0
    try:
        for item in _items(function(), source):
            for name, array in _feed(item, model, source).items():
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
    labels = None if _LABELS in model.inputs else arrays.pop(_LABELS, None)
    return arrays, labels


def _imported(source: str) -> Callable[[], object]:
    """The function that `module:function` names, found on sys.path or in the working folder."""
    module_name, _, function_name = source.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # a module may raise anything while it is imported
        raise DataError(
            f"{source}: module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}); it is looked for in the working folder first"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise DataError(f"{source}: module {module_name!r} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


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
    values = item if isinstance(item, Mapping) else {only_input(model, source): item}
    check_names(model, values, source)
    names = dict.fromkeys([*model.inputs, *([_LABELS] if _LABELS in values else [])])
    return {name: _batch(np.asarray(values[name]), model, name) for name in names}


def _joined(name: str, batches: Sequence[Array], source: str) -> Array:
    kinds = {(array.dtype, array.shape[1:]) for array in batches}
    if len(kinds) > 1:
        told = " and ".join(sorted(f"{dtype} {['samples', *dims]}" for dtype, dims in kinds)[:2])
        raise DataError(f"{source}: yields {name!r} as {told}; all samples must be alike")
    return np.concatenate(batches)
