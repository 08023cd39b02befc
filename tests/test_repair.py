"""Files of onnxruntime's own quantizer, taken apart, repaired and written back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime import quantization as ort

import onnxbrecq
from onnxbrecq.adoption import check_origin, repaired, taken_apart
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.adopt import adopt, constants, rewritten
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import load
from onnxbrecq.pipeline import proof
from onnxbrecq.progress import Progress
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.runtime.session import Session

RECIPE = Recipe(effort="fast", threads=1)
RANDOM = Recipe(threads=1, reconstruction=Reconstruction(iterations=20))
U8, S8, S4 = ort.QuantType.QUInt8, ort.QuantType.QInt8, ort.QuantType.QInt4
SETTINGS: dict[str, dict[str, Any]] = {
    "u8-s8": {"activation_type": U8, "weight_type": S8, "per_channel": True},
    "one-scale": {"activation_type": U8, "weight_type": S8, "per_channel": False},
    "s8-s8": {"activation_type": S8, "weight_type": S8, "per_channel": True},
    "u8-s4": {"activation_type": U8, "weight_type": S4, "per_channel": True},
    "one-scale-s4": {"activation_type": U8, "weight_type": S4, "per_channel": False},
}


class Reader(ort.CalibrationDataReader):
    """Samples as quantize_static wants them."""

    def __init__(self, data: Dataset) -> None:
        self._feeds: Iterator[Any] = iter(data.batches(8))

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.fixture
def source(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    """The residual network of conftest.py, at an opset that knows 4 bits."""
    path = tmp_path / "float.onnx"
    onnx.save(onnx.version_converter.convert_version(proto, 21), path)
    return path


def quantized(source: Path, data: Dataset, setting: str) -> Path:
    path = source.with_name(f"{setting}.onnx")
    ort.quantize_static(
        source, path, Reader(data), quant_format=ort.QuantFormat.QDQ, **SETTINGS[setting]
    )
    return path


def skeleton(proto: onnx.ModelProto) -> bytes:
    """All of the model but the values of constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        for part in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(part)
    return copy.SerializeToString(deterministic=True)


def noise(path: Path, wanted: Path, data: Dataset) -> float:
    made, aim = (Session(p, threads=1).run(data.part(slice(64)))["logits"] for p in (path, wanted))
    return float(np.square(made - aim).sum() / np.square(aim).sum())


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_file_is_read_as_what_it_computes(source: Path, data: Dataset, setting: str) -> None:
    path = quantized(source, data, setting)
    found = taken_apart(onnx.load(path), load(source), str(path))
    assert len(found.points.layers) == 4
    assert not found.notes
    check_origin(found, load(source), data, str(path), RECIPE)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_was_read_written_back_is_the_file(source: Path, data: Dataset, setting: str) -> None:
    path = quantized(source, data, setting)
    file = onnx.load(path)
    found = taken_apart(file, load(source), str(path))
    made = repaired(found, found.plan)
    assert skeleton(made) == skeleton(file)
    before, after = constants(file), constants(made)
    for name, tensor in before.items():
        old, new = numpy_helper.to_array(tensor), numpy_helper.to_array(after[name])
        # A bias's scale is the product of two float32: another order rounds otherwise.
        assert np.allclose(old.astype(np.float64), new.astype(np.float64), rtol=1e-6), name


@pytest.mark.parametrize(
    ("setting", "share"), [("one-scale", 0.9), ("u8-s4", 0.5), ("one-scale-s4", 0.7)]
)
def test_repair_lowers_the_error_and_keeps_the_graph(
    source: Path, data: Dataset, setting: str, share: float
) -> None:
    path = quantized(source, data, setting)
    result = onnxbrecq.repair(path, source, data, RECIPE)
    output = path.with_name(f"{setting}.repaired.onnx")
    assert result.output.path == str(output)
    assert skeleton(onnx.load(output)) == skeleton(onnx.load(path))
    assert noise(output, source, data) < share * noise(path, source, data)


class StoppedError(Exception):
    """What ends a run in its midst."""


def until(block: int) -> Progress:
    """Watches a run until it comes to this block, where it ends."""

    def told(stage: str, done: int, _total: int, _detail: str = "") -> None:
        if (stage, done) == ("reconstruct", block):
            raise StoppedError

    return told


def stopped(path: Path, source: Path, data: Dataset, output: Path) -> list[dict[str, Any]]:
    """The facts of two blocks, behind which a repair was stopped."""
    with pytest.raises(StoppedError):
        onnxbrecq.repair(path, source, data, RANDOM, output=output, progress=until(2))
    assert not output.exists()
    kept = sorted(output.with_name(f"{output.name}.work").glob("block-*.json"))
    return [json.loads(file.read_bytes())["facts"] for file in kept]


def test_a_stopped_repair_goes_on_and_ends_with_the_same_bytes(source: Path, data: Dataset) -> None:
    path = quantized(source, data, "u8-s4")
    whole, output = path.with_name("whole.onnx"), path.with_name("r.onnx")
    onnxbrecq.repair(path, source, data, RANDOM, output=whole)
    kept = stopped(path, source, data, output)
    result = onnxbrecq.repair(path, source, data, RANDOM, output=output)
    assert len(result.blocks) > len(kept) == 2
    assert [block.seconds for block in result.blocks[:2]] == [facts["seconds"] for facts in kept]
    assert output.read_bytes() == whole.read_bytes()
    assert not output.with_name("r.onnx.work").exists()


def test_a_repair_that_fails_its_validation_replaces_nothing(
    source: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("it is not what it should be")

    path, output = quantized(source, data, "u8-s8"), source.with_name("r.onnx")
    output.write_bytes(b"the former one")
    with monkeypatch.context() as patched:
        patched.setattr(proof, "validate", refuse)
        with pytest.raises(ModelError, match="it is not what it should be"):
            onnxbrecq.repair(path, source, data, RECIPE, output=output, force=True)
    assert output.read_bytes() == b"the former one"
    onnxbrecq.repair(path, source, data, RECIPE, output=output, force=True)
    assert onnx.load(output).graph.node
    assert not output.with_name("r.onnx.work").exists()


@pytest.mark.parametrize("other", ["quantized", "reference", "afresh"])
def test_the_work_of_another_repair_is_not_taken(source: Path, data: Dataset, other: str) -> None:
    path, output = quantized(source, data, "u8-s8"), source.with_name("r.onnx")
    kept = stopped(path, source, data, output)
    if other == "quantized":  # likewise, with other steps
        path = quantized(source, Dataset({"x": data.inputs["x"][:8] * np.float32(0.7)}), "u8-s8")
    elif other == "reference":
        proto = onnx.load(source)
        edit_first_weight(proto, np.float32(1.01))
        onnx.save(proto, source)
    again = {"resume": other != "afresh"}
    result = onnxbrecq.repair(path, source, data, RANDOM, output=output, **again)
    assert result.blocks[0].seconds != kept[0]["seconds"]
    fresh = onnxbrecq.repair(path, source, data, RANDOM, output=source.with_name("fresh.onnx"))
    assert output.read_bytes() == Path(fresh.output.path).read_bytes()


def edit_first_weight(proto: onnx.ModelProto, factor: np.float32) -> None:
    """Multiplies the weight of the first layer."""
    tensor = next(t for t in proto.graph.initializer if t.name == "w0")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, "w0"))


def test_a_file_of_another_model_is_refused(
    source: Path, data: Dataset, proto: onnx.ModelProto
) -> None:
    path = quantized(source, data, "u8-s8")
    generator = np.random.default_rng(5)
    for tensor in proto.graph.initializer:
        if tensor.name == "w1":
            other = generator.normal(size=(8, 8, 3, 3)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(other, "w1"))
    onnx.save(proto, source.with_name("other.onnx"))
    with pytest.raises(ModelError, match=r"u8-s8.onnx: the weight of node .* not that of"):
        taken_apart(onnx.load(path), load(source.with_name("other.onnx")), str(path))


def test_a_float_file_is_refused(source: Path) -> None:
    with pytest.raises(ModelError, match="holds no QuantizeLinear and DequantizeLinear pairs"):
        adopt(onnx.load(source), "here")


def test_a_tensor_read_in_float_as_well_is_refused(source: Path, data: Dataset) -> None:
    file = onnx.load(quantized(source, data, "u8-s8"))
    node = next(n for n in file.graph.node if n.op_type == "QuantizeLinear" and n.input[0] != "x")
    file.graph.node.append(onnx.helper.make_node("Neg", [node.input[0]], ["more"]))
    with pytest.raises(ModelError, match="is quantized for some of its readers only"):
        adopt(file, "here")


def test_a_quantizer_that_is_not_understood_is_named(source: Path, data: Dataset) -> None:
    """A pair whose two halves have constants of their own stays, and the file can be repaired."""
    path = quantized(source, data, "u8-s8")
    file = onnx.load(path)
    node = next(n for n in file.graph.node if n.op_type == "DequantizeLinear"
                and n.input[0].endswith("_QuantizeLinear_Output"))  # fmt: skip
    copy = onnx.TensorProto()
    copy.CopyFrom(constants(file)[node.input[1]])
    copy.name = node.input[1] = "own"
    file.graph.initializer.append(copy)
    found = taken_apart(file, load(source), str(path))
    assert found.notes == (
        f"quantizers kept as the file has them, and not learned: {node.output[0]!r}",
    )


def test_a_bias_beyond_int32_is_refused(source: Path, data: Dataset) -> None:
    file = onnx.load(quantized(source, data, "u8-s8"))
    adopted = adopt(file, "here")
    name, place = next(iter(adopted.biases.items()))
    tiny = np.full(place.value.shape, 1e-30, np.float32)
    with pytest.raises(ModelError, match="does not fit int32"):
        rewritten(file, adopted, {}, {name: (place.value + 1, tiny)})
