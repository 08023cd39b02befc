"""Where a quantized file comes from, in its own metadata (`metadata_props`, keys onnxbrecq.*)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import onnx

from onnxbrecq.errors import ModelError

_PREFIX = "onnxbrecq."


@dataclass(frozen=True)
class Provenance:
    """What a quantized file says of itself.

    Attributes:
        version: of the tool.
        target: the runtime it was written for.
        source_sha256: of the float model's file.
        data_sha256: of the calibration samples.
        recipe: what was asked for, as plain JSON values.
        bits: layer → bits of its weight and of the data it reads; None: float. Of tables too.
        blocks: layer → inputs that share a scale of its weight, where not all do.
    """

    version: str
    target: str
    source_sha256: str
    data_sha256: str
    recipe: Mapping[str, Any]
    bits: Mapping[str, tuple[int | None, int | None]]
    blocks: Mapping[str, int]


def edit_provenance(proto: onnx.ModelProto, told: Provenance) -> None:
    """Edits the model: its metadata tells where it comes from."""
    for key, value in asdict(told).items():
        text = value
        if not isinstance(value, str):  # the recipe sorted, as a saved plan has it
            text = json.dumps(value, separators=(",", ":"), sort_keys=key == "recipe")
        proto.metadata_props.add(key=_PREFIX + key, value=text)


def provenance(proto: onnx.ModelProto, where: str) -> Provenance | None:
    """What the model says of itself; None: it was not written by this tool.

    Raises:
        ModelError: the metadata are there in part, or are damaged.
    """
    # What is not UTF-8 protobuf hands out as bytes.
    found = {p.key.removeprefix(_PREFIX): p.value for p in proto.metadata_props
             if isinstance(p.key, str) and p.key.startswith(_PREFIX)}  # fmt: skip
    if not found:
        return None
    try:
        if any(isinstance(value, bytes) for value in found.values()):
            raise ValueError("not UTF-8")
        values: dict[str, Any] = {field.name: found[field.name] for field in fields(Provenance)}
        read = {key: dict(json.loads(values[key])) for key in ("recipe", "bits", "blocks")}
        read["bits"] = {name: (weight, data) for name, (weight, data) in read["bits"].items()}
        return Provenance(**{**values, **read})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{where}: its metadata ({_PREFIX}*) are damaged ({error}); quantize the model again"
        ) from error
