"""What a quantized file says of itself survives, and damage is one line."""

import onnx
import pytest

from onnxbrecq.errors import ModelError
from onnxbrecq.graph.provenance import Provenance, edit_provenance, provenance

_TOLD = Provenance(
    version="0.1.0",
    target="ort-cpu",
    source_sha256="ab" * 32,
    data_sha256="cd" * 32,
    recipe={"weights": 4, "activations": None},
    bits={"conv": (4, 8), "head": (8, None)},
    blocks={"head": 32},
)


def test_what_is_told_is_read_back() -> None:
    proto = onnx.ModelProto()
    proto.metadata_props.add(key="author", value="somebody")
    edit_provenance(proto, _TOLD)
    assert provenance(proto, "m.onnx") == _TOLD


def test_other_files_say_nothing() -> None:
    proto = onnx.ModelProto()
    proto.metadata_props.add(key="author", value="somebody")
    assert provenance(proto, "m.onnx") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", "{"),
        ("recipe", "4"),
        ("bits", '{"conv": 4}'),
        ("bits", "[1]"),
        ("blocks", "[1]"),
        ("target", None),
    ],
)
def test_damage_is_one_line(key: str, value: str | None) -> None:
    proto = onnx.ModelProto()
    edit_provenance(proto, _TOLD)
    entry = next(p for p in proto.metadata_props if p.key == f"onnxbrecq.{key}")
    if value is None:
        proto.metadata_props.remove(entry)
    else:
        entry.value = value
    with pytest.raises(ModelError, match=r"^m\.onnx: its metadata .* are damaged"):
        provenance(proto, "m.onnx")


@pytest.mark.parametrize(("text", "damaged"), [(b"own.key", False), (b"ort-cpu", True)])
def test_what_is_not_utf_8(text: bytes, damaged: bool) -> None:
    """Of others it is nothing to us; of ours it is damage."""
    proto = onnx.ModelProto()
    edit_provenance(proto, _TOLD)
    proto.metadata_props.add(key="own.key", value="theirs")
    spoilt = onnx.ModelProto.FromString(
        proto.SerializeToString().replace(text, b"\xff" * len(text))
    )
    if damaged:
        with pytest.raises(ModelError, match=r"its metadata .* are damaged \(not UTF-8\)"):
            provenance(spoilt, "m.onnx")
    else:
        assert provenance(spoilt, "m.onnx") == _TOLD
