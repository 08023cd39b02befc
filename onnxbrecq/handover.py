"""The hand-over: a folder with a quantized model, what was promised of it, and the means to check.

MODEL.onnx [.data]   as it was written
manifest.json        hashes, recipe, target, versions, provider, promised integer coverage
samples.npz          some inputs, and what the model made of them here
verify.py            replays them with nothing but onnxruntime and numpy
SHA256SUMS           of all of these, as `sha256sum -c` reads it
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxbrecq.data import sources
from onnxbrecq.data.dataset import Dataset, whole
from onnxbrecq.data.sources import Reading
from onnxbrecq.errors import DataError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import read
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model
from onnxbrecq.graph.outline import edit_to_outline
from onnxbrecq.graph.provenance import provenance
from onnxbrecq.output import claim_folder, write_folder
from onnxbrecq.recipe import Preprocess
from onnxbrecq.runtime.doctor import environment
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.session import PROVIDER, Session
from onnxbrecq.runtime.verify import FORMAT, MANIFEST, SUMS
from onnxbrecq.validation.coverage import coverage
from onnxbrecq.validation.parity import output_scales

PathLike = str | os.PathLike[str]
Array = NDArray[np.generic]

_SAMPLES, _SCRIPT = "samples.npz", "verify.py"
_COUNT = 4
_CHUNK = 1 << 20
_LEVELS = 255  # a step of an output that stays float: of an 8-bit grid over its range
# Other runtimes and processors differ by rounding ties, which add up over depth: OpenVINO by up to
# four steps from onnxruntime's CPU provider (ResNet-20, W8A8).
_LEAST_TOLERANCE = 4.0
_MARGIN = 2.0  # on what the unoptimised session differs by here


@dataclass(frozen=True)
class Bundle:
    """What was written: the folder, and its manifest as plain JSON values."""

    folder: Path
    manifest: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `bundle`."""
        return {"schema_version": 1, "folder": str(self.folder), **self.manifest}


def bundle(
    quantized: PathLike,
    folder: PathLike,
    data: PathLike | Dataset | None = None,
    *,
    samples: int = _COUNT,
    provider: str = PROVIDER,
    preprocess: Preprocess | None = None,
    force: bool = False,
) -> Bundle:
    """Writes the hand-over of a quantized model.

    Args:
        quantized: its file.
        folder: where to write; a bundle that is there already is replaced with `force` only.
        data: samples for it; None: STEM.eval.npz or STEM.calib.npz beside it, else random numbers,
            and the manifest says so.
        samples: how many go with it.
        provider: onnxruntime's execution provider where it will run; outputs and integer kernels
            are those of the CPU provider here.
        preprocess: for a folder of images.
        force: replace a bundle.

    Raises:
        ModelError: the model cannot be read or run.
        DataError: the samples do not fit it.
        OutputError: the folder cannot be written.
    """
    source, destination = Path(quantized), Path(folder)
    claim_folder(destination, MANIFEST, force=force)
    proto, files = read(source)
    model = _as_model(edit_to_outline(proto, str(source)), tuple(files))
    chosen = _samples(source, model, data, samples, preprocess)
    arrays, listed = _expected(source, proto, model, chosen)
    copies = {path.relative_to(source.parent).as_posix(): path for path in files}
    made = {_SAMPLES: arrays, _SCRIPT: _script()}
    sums = {
        **{name: _facts(_parts(path)) for name, path in copies.items()},
        **{name: _facts([content]) for name, content in made.items()},
    }
    manifest = {
        "format": FORMAT,
        "tool": {"name": "onnxbrecq", "version": version("onnxbrecq")},
        "model": {"file": source.name, "opset": _opset(proto), "ir_version": proto.ir_version},
        "files": sums,
        **_origin(proto, source),
        "provider": provider,
        "integer": _promised(source, model),
        "samples": {
            "file": _SAMPLES, "origin": chosen.origin, "count": len(chosen),
            "batch": model.file_batch or 1, **listed,
        },
        "environment": environment(),
    }  # fmt: skip
    text = json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n"
    write_folder(
        destination,
        {
            **{name: _parts(path) for name, path in copies.items()},
            **{name: [content] for name, content in made.items()},
            MANIFEST: [text],
            SUMS: [_listed({**sums, MANIFEST: _facts([text])})],
        },
        force=force,
    )
    return Bundle(destination, manifest)


def _opset(proto: onnx.ModelProto) -> int:
    return max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=0)


def _origin(proto: onnx.ModelProto, source: Path) -> dict[str, Any]:
    """What the file says of itself; None where another tool wrote it."""
    told = provenance(proto, str(source))
    return {
        "target": told.target if told else None,
        "recipe": dict(told.recipe) if told else None,
        "source_sha256": told.source_sha256 if told else None,
        "data_sha256": told.data_sha256 if told else None,
        "bits": {name: list(bits) for name, bits in told.bits.items()} if told else None,
    }


def _promised(source: Path, model: Model) -> dict[str, Any]:
    """The share of the work in integer kernels, and what it is a share of: layer → MACs."""
    covered = coverage(
        model, integer_kernels([x.name for x in weight_layers(model)], executed(source))
    )
    return {
        "provider": PROVIDER,
        "macs_fraction": covered.integer_macs_fraction,
        "float_layers": list(covered.float_nodes),
        "layers": {layer.name: layer.macs for layer in weight_layers(model)},
    }


def _listed(sums: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Hashes and files as `sha256sum` writes them."""
    lines = (f"{facts['sha256']}  {name}\n" for name, facts in sorted(sums.items()))
    return "".join(lines).encode()


def _as_model(proto: onnx.ModelProto, files: tuple[Path, ...]) -> Model:
    """A quantized model as the package passes models around; its batch is free where it says so."""
    dims = [value.type.tensor_type.shape.dim for value in proto.graph.input]
    batched = all(d and not d[0].dim_value for d in dims)
    signature = tuple(proto.graph.input), tuple(proto.graph.output)
    return Model(proto, signature, batched, files=files)


def _samples(
    source: Path,
    model: Model,
    data: PathLike | Dataset | None,
    count: int,
    preprocess: Preprocess | None,
) -> Dataset:
    """Some samples: given, beside the model, or random."""
    if not isinstance(data, Dataset):
        found = _beside(source) if data is None else str(data)
        given = sources.calibration(found, model, Reading(preprocess)) if found else None
        data = _random(model, count) if given is None else given
    return data.whole(model.file_batch).head(whole(min(count, len(data)), model.file_batch))


def _beside(source: Path) -> str | None:
    """Data beside STEM.onnx or STEM.quant.onnx."""
    stems = dict.fromkeys((source.stem, source.stem.removesuffix(".quant")))
    names = [f"{stem}.{role}.npz" for stem in stems for role in ("eval", "calib")]
    return next((str(p) for n in names if (p := source.with_name(n)).exists()), None)


def _random(model: Model, count: int) -> Dataset:
    """Normal numbers, where the inputs are floats of known shape."""
    random, inputs = np.random.default_rng(0), {}
    for name in model.inputs:
        kind = onnx.helper.tensor_dtype_to_np_dtype(model.dtypes[name])
        shape = model.shapes.get(name)
        if kind.kind != "f" or not shape or None in shape[1:]:
            raise DataError(
                f"input {name!r}: no data is beside the model; pass it with -d (--data)"
            )
        batch = shape[0] or count
        rest = [size or 1 for size in shape[1:]]
        inputs[name] = random.normal(size=(batch, *rest)).astype(kind)
    return Dataset(inputs, None, "random numbers")


def _expected(
    source: Path, proto: onnx.ModelProto, model: Model, chosen: Dataset
) -> tuple[bytes, dict[str, Any]]:
    """The samples and what the model makes of them, as an .npz, and what the manifest says."""
    batch = model.file_batch or 1
    fast, plain = (Session(source, optimize=optimize) for optimize in (True, False))
    scales = output_scales(proto)
    runs = [(fast.run(feed), plain.run(feed)) for feed in chosen.batches(batch)]
    arrays: dict[str, Array] = {}
    inputs: list[dict[str, Any]] = []
    for i, (name, array) in enumerate(chosen.part(slice(None)).items()):
        arrays[f"input_{i}"] = array.astype(str) if array.dtype.kind == "O" else array
        inputs.append({"name": name, "array": f"input_{i}"})
    outputs: list[dict[str, Any]] = []
    for i, name in enumerate(fast.outputs):
        made, other = ([run[side][name] for run in runs] for side in (0, 1))
        item: dict[str, Any] = {"name": name, "array": f"output_{i}"}
        note = _incomparable(made, other)
        value = np.zeros(0, np.float32) if note else np.concatenate(made)
        if note:
            item |= {"step": None, "tolerance_steps": None, "note": note}
        else:
            step = _step(value, scales.get(name))
            apart = np.abs(value.astype(np.float64) - np.concatenate(other).astype(np.float64))
            most = float(np.nanmax(np.where(np.isfinite(apart), apart, 0), initial=0)) / step
            item |= {"step": step, "tolerance_steps": max(_LEAST_TOLERANCE, _MARGIN * most)}
        arrays[f"output_{i}"] = value
        outputs.append(item)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue(), {"inputs": inputs, "outputs": outputs}


def _incomparable(made: list[Array], other: list[Array]) -> str | None:
    """Why an output cannot be compared number by number on another machine."""
    if made[0].dtype.kind != "f":
        return "it does not hold floats"
    shapes = {part.shape[1:] for part in (*made, *other)}
    if made[0].ndim == 0 or len(shapes) > 1:
        return "its shape depends on the data"
    if any(a.shape != b.shape for a, b in zip(made, other, strict=True)):
        return "its shape depends on rounding"
    return None


def _step(value: Array, scale: Array | None) -> float:
    """The step of an output's quantizer, or of an 8-bit grid over its range."""
    if scale is not None:
        return float(np.max(scale.astype(np.float64)))
    known = value[np.isfinite(value)].astype(np.float64)
    reach = float(known.max() - known.min()) if known.size else 0.0
    return reach / _LEVELS or 1.0


def _script() -> bytes:
    return resources.files("onnxbrecq.runtime").joinpath(_SCRIPT).read_bytes()


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            yield part


def _facts(parts: "Iterator[bytes] | list[bytes]") -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for part in parts:
        digest.update(part)
        size += len(part)
    return {"sha256": digest.hexdigest(), "size_bytes": size}
