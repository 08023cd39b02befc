"""The whole way on a small network: the file, the figures, the same bytes again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import from_proto
from onnxbrecq.parts import Task
from onnxbrecq.preparation import state_key
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.runtime.session import Session

_RECIPE = Recipe(
    weights=4, activations=8, threads=1, reconstruction=Reconstruction(iterations=40, batch_size=8)
)


@pytest.fixture
def path(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    file = tmp_path / "residual.onnx"
    onnx.save(proto, file)
    return file


def _labelled(path: Path, data: Dataset) -> Dataset:
    logits = Session(path).run(data.inputs)["logits"]
    return dataclasses.replace(data, labels=logits.argmax(axis=1).astype(np.int64))


def test_the_same_inputs_give_the_same_bytes(path: Path, data: Dataset, tmp_path: Path) -> None:
    outputs = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for output in outputs:
        onnxbrecq.quantize(path, data, _RECIPE, output=output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_the_same_bytes_whatever_the_memory(path: Path, data: Dataset, tmp_path: Path) -> None:
    outputs = {tmp_path / "small.onnx": 1, tmp_path / "large.onnx": 1 << 40}
    for output, most in outputs.items():
        recipe = dataclasses.replace(_RECIPE, activations=4, max_memory=most)
        onnxbrecq.quantize(path, data, recipe, output=output)
    small, large = (output.read_bytes() for output in outputs)
    assert small == large


def test_a_resumed_run_may_have_other_memory(path: Path, data: Dataset) -> None:
    task = Task(from_proto(onnx.load(path)), (), None, data, _RECIPE, None)  # type: ignore[arg-type]
    more = dataclasses.replace(task, recipe=dataclasses.replace(_RECIPE, max_memory=1 << 30))
    assert state_key(task, "sha") == state_key(more, "sha")


@pytest.mark.parametrize(
    ("target", "activations"), [("tensorrt", 8), ("qnn", 16), ("qnn", 8), ("portable", 8)]
)
def test_a_target_is_kept_from_calibration_to_the_file(
    target: str, activations: int, path: Path, data: Dataset
) -> None:
    recipe = dataclasses.replace(_RECIPE, target=target, activations=activations)
    result = onnxbrecq.quantize(path, data, recipe)
    assert result.fidelity is not None
    # On a grid that learning mistakes, the output would be noise: 0 dB.
    assert result.fidelity.sqnr_db > 15
    assert [layer.activation_bits for layer in result.layers] == [activations] * 4
    assert all(block.loss_after <= block.loss_before for block in result.blocks)  # type: ignore[operator]
    assert any("measured with onnxruntime's CPU provider" in note for note in result.notes)


def test_the_result_tells_what_the_file_is(path: Path, data: Dataset) -> None:
    labelled = _labelled(path, data)
    result = onnxbrecq.quantize(path, data, _RECIPE, evaluation=labelled)
    output = path.with_name("residual.quant.onnx")
    assert result.output.size_bytes == output.stat().st_size
    assert [layer.weight_bits for layer in result.layers] == [8, 4, 4, 8]
    assert result.accuracy is not None
    assert result.accuracy.float == 100
    logits = Session(output).run(labelled.inputs)["logits"]
    measured = 100 * float((logits.argmax(axis=1) == labelled.labels).mean())
    assert result.accuracy.quantized == pytest.approx(measured)
    assert result.execution[0].integer_macs_fraction == 1
    assert json.loads(json.dumps(result.as_json()))["schema_version"] == 1
    again = onnxbrecq.validate(output, path, evaluation=labelled, recipe=_RECIPE)
    assert again.accuracy == result.accuracy
    assert again.layers == result.layers


def test_an_existing_output_is_kept_without_force(path: Path, data: Dataset) -> None:
    output = path.with_name("residual.quant.onnx")
    output.write_bytes(b"mine")
    with pytest.raises(onnxbrecq.OutputError, match="exists"):
        onnxbrecq.quantize(path, data, _RECIPE)
    assert output.read_bytes() == b"mine"


def test_a_model_beyond_protobuf_has_its_constants_beside_it(
    proto: onnx.ModelProto, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("plain", "large")}
    source, output = tmp_path / "residual.onnx", "q.onnx"
    onnx.save(proto, source, save_as_external_data=True, location="w.bin", size_threshold=0)
    for name, folder in folders.items():
        folder.mkdir()
        if name == "large":
            monkeypatch.setattr("onnxbrecq.graph.write.LIMIT", 500)
            monkeypatch.setattr("onnxbrecq.graph.write._ALIGNED", 256)
        result = onnxbrecq.quantize(source, data, _RECIPE, output=folder / output)
        size = sum(file.stat().st_size for file in folder.iterdir())
        assert result.output.size_bytes == size
    large = folders["large"] / output
    assert {file.name for file in large.parent.iterdir()} == {output, f"{output}.data"}
    made = {name: Session(folder / output).run(data.inputs) for name, folder in folders.items()}
    np.testing.assert_array_equal(made["large"]["logits"], made["plain"]["logits"])
    before = [file.read_bytes() for file in sorted(large.parent.iterdir())]
    with pytest.raises(onnxbrecq.OutputError, match="exists"):
        onnxbrecq.quantize(source, data, _RECIPE, output=large)
    onnxbrecq.quantize(source, data, _RECIPE, output=large, force=True)
    assert [file.read_bytes() for file in sorted(large.parent.iterdir())] == before


def test_the_external_data_of_the_source_is_never_replaced(
    proto: onnx.ModelProto, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxbrecq.graph.write.LIMIT", 500)
    source = tmp_path / "residual.onnx"
    onnx.save(proto, source, save_as_external_data=True, location="q.onnx.data", size_threshold=0)
    for output in ("q.onnx", "q.onnx.data"):
        with pytest.raises(onnxbrecq.OutputError, match="is the input itself"):
            onnxbrecq.quantize(source, data, _RECIPE, output=tmp_path / output, force=True)


def test_values_that_are_no_numbers_are_found_where_they_arise(path: Path, data: Dataset) -> None:
    broken = np.array(data.inputs["x"])
    broken[3] = 3e38  # finite itself; the first convolution overflows
    with pytest.raises(onnxbrecq.DataError, match="is NaN"):
        onnxbrecq.quantize(path, Dataset({"x": broken}), _RECIPE)
    assert not path.with_name("residual.quant.onnx").exists()


@pytest.mark.parametrize("exact", [True, False])
def test_the_default_target_follows_the_processor(
    path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr("onnxbrecq.preparation.saturation_free", lambda: exact)
    result = onnxbrecq.quantize(path, data, _RECIPE)
    constants = onnx.load(result.output.path).graph.initializer
    kinds = {
        tensor.data_type for tensor in constants if len(tensor.dims) == 4 and tensor.dims[2] > 1
    }
    assert kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} == {
        onnx.TensorProto.INT8 if exact else onnx.TensorProto.UINT8
    }
    assert any("ort-cpu-avx2" in note for note in result.notes) != exact
