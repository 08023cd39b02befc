"""The whole way on a small network: the file, the figures, the same bytes again."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxbrecq
from onnxbrecq import blockwise
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.saturation import largest_sums
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.parts import Part, Task
from onnxbrecq.pipeline import proof
from onnxbrecq.preparation import state_key, target_of
from onnxbrecq.recipe import Budget, Recipe, Reconstruction
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
    convolution = helper.make_node("Conv", ["x", "w"], ["y"])
    sums = [
        largest_sums(convolution, numpy_helper.to_array(tensor)).max()
        for tensor in onnx.load(result.output.path).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert sums
    assert (max(sums) <= 128) is not exact
    assert any("ort-cpu-avx2" in note for note in result.notes) != exact


@pytest.mark.parametrize(
    ("target", "told"),
    [("ort-cpu", True), ("tensorrt", True), ("openvino", False), ("portable", False)],
)
def test_who_saturates_here_is_told_so(
    monkeypatch: pytest.MonkeyPatch, target: str, told: bool
) -> None:
    monkeypatch.setattr("onnxbrecq.preparation.saturation_free", lambda: False)
    *_, notes = target_of(Recipe(weights=8, activations=8, target=target))
    assert any("accuracy is better where VNNI exists" in note for note in notes) is told


def test_a_model_that_fails_its_validation_gets_no_name(
    path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(quantized: Path, *_: object, **__: object) -> None:
        assert onnx.load(quantized).graph.node
        assert not output.exists()
        raise ModelError(f"{quantized}: it is not what it should be")

    output, plan = path.with_name("residual.quant.onnx"), path.with_name("residual.plan")
    with monkeypatch.context() as patched:
        patched.setattr(proof, "validate", refuse)
        with pytest.raises(ModelError, match="it is not what it should be") as caught:
            onnxbrecq.quantize(path, data, _RECIPE, plan=plan)
    assert str(caught.value).startswith(f"{output}: ")
    assert not output.exists()
    assert not plan.exists()
    work = output.with_name(f"{output.name}.work")
    assert any(work.glob("block-*.plan"))  # nothing that was learned is lost
    assert not any(work.rglob("*.onnx"))
    onnxbrecq.quantize(path, data, _RECIPE, plan=plan)
    assert output.exists()
    assert plan.exists()
    assert not work.exists()


def _budget(text: str) -> tuple[Budget, ...]:
    return (Budget.parse(text),)


@pytest.fixture
def mixed() -> Recipe:
    """Mixed precision without gradients."""
    return Recipe(threads=1, effort="fast", search_samples=32)


@pytest.mark.parametrize(
    ("size", "search"), [("3800", None), ("3950", "genetic"), ("62%", "exact")]
)
def test_a_file_keeps_its_budget(
    path: Path, data: Dataset, mixed: Recipe, size: str, search: str | None
) -> None:
    recipe = dataclasses.replace(mixed, budget=_budget(f"size={size}"), search=search)
    result = onnxbrecq.quantize(path, data, recipe)
    assert result.search is not None
    (budget,) = result.search.budgets
    most = 0.62 * path.stat().st_size if size.endswith("%") else float(size)
    assert result.output.size_bytes <= most == budget.limit
    assert result.output.size_bytes <= budget.used <= most
    assert [layer.weight_bits for layer in (result.layers[0], result.layers[-1])] == [8, 8]
    assert json.loads(json.dumps(result.as_json()))["search"]["method"] == (search or "exact")
    told = onnxbrecq.inspect(result.output.path).as_json()["quantized"]["recipe"]
    assert told["weights"] is None


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_measured(
    path: Path, data: Dataset, mixed: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("onnxbrecq.mixed.measured", never)
    recipe = dataclasses.replace(mixed, budget=_budget("size=2kB"))
    with pytest.raises(onnxbrecq.RecipeError, match=r"size = 2000B: the least.* is 3\d\d\dB"):
        onnxbrecq.quantize(path, data, recipe)
    assert not path.with_name("residual.quant.onnx").exists()


def test_the_same_budget_gives_the_same_bytes(
    path: Path, data: Dataset, mixed: Recipe, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(mixed, budget=_budget("size=4kB"))
    outputs = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for output in outputs:
        onnxbrecq.quantize(path, data, recipe, output=output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_report_shows_what_else_could_have_been_chosen(
    path: Path, data: Dataset, mixed: Recipe, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(mixed, budget=_budget("size=4kB"))
    onnxbrecq.quantize(path, data, recipe, report=tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "What else could have been written" in page
    chosen = re.findall(r'"chosen": ?(true|false)', page)
    assert chosen.count("true") == 1
    assert len(chosen) > 1


def test_mixed_activations_are_emitted_from_the_plan(
    path: Path, data: Dataset, mixed: Recipe, tmp_path: Path
) -> None:
    """Nodes in front of the layers that read fewer bits are made again from the plan alone."""
    recipe = dataclasses.replace(
        mixed, budget=_budget("bitops=2700k"), offered=(4, 8), offered_activations=(4, 8)
    )
    plan = tmp_path / "m.plan"
    result = onnxbrecq.quantize(path, data, recipe, plan=plan)
    bits = {layer.activation_bits for layer in result.layers}
    assert bits == {4, 8}
    assert result.search is not None
    operations = sum(x.macs * x.weight_bits * x.activation_bits for x in result.layers)  # type: ignore[operator]
    assert operations == result.search.budgets[0].used <= 2.7e6
    again = onnxbrecq.emit_plan(path, plan, output=tmp_path / "again.onnx")
    assert Path(again.output.path).read_bytes() == Path(result.output.path).read_bytes()


def test_the_smallest_model_that_passes(
    path: Path, data: Dataset, mixed: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = []
    real = blockwise._improved

    def counted(task: Task, part: Part, *rest: object, **more: object) -> object:
        learned.append(part.block.name)
        return real(task, part, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(blockwise, "_improved", counted)
    recipe = dataclasses.replace(mixed, search="exact", max_drop=0.5)
    result = onnxbrecq.quantize(path, data, recipe, evaluation=_labelled(path, data))
    assert result.gate.met
    assert result.search is not None
    trials = result.search.trials
    passed = [trial.size_bytes for trial in trials if trial.passed]
    failed = [trial.size_bytes for trial in trials if not trial.passed]
    assert result.output.size_bytes <= min(passed)
    assert all(size < min(passed) for size in failed)
    # The first block has the same bits and inputs each time; the others have not.
    assert learned.count("Conv") == 1
    assert learned.count("Conv_1") == len(trials) > 1


def test_nothing_that_passes_ends_at_the_finest(path: Path, data: Dataset, mixed: Recipe) -> None:
    recipe = dataclasses.replace(
        mixed, search="exact", max_drop=0.0, offered=(2, 3), first_last=2, activations=2
    )
    result = onnxbrecq.quantize(path, data, recipe, evaluation=_labelled(path, data))
    assert result.gate.met is False
    assert [layer.weight_bits for layer in result.layers] == [2, 3, 3, 2]


def test_a_search_for_nothing_is_refused(path: Path, data: Dataset) -> None:
    with pytest.raises(onnxbrecq.RecipeError, match="for what"):
        onnxbrecq.quantize(path, data, Recipe(search="exact"))


def test_layers_are_pinned_and_left_in_float(path: Path, data: Dataset) -> None:
    recipe = dataclasses.replace(_RECIPE, pinned={"Conv_?": 2, "Conv_2": None})
    result = onnxbrecq.quantize(path, data, recipe)
    assert [layer.weight_bits for layer in result.layers] == [8, 2, None, 8]
    wrong = dataclasses.replace(_RECIPE, pinned={"Cnov": 8})
    with pytest.raises(onnxbrecq.RecipeError, match="no layer is called 'Cnov'"):
        onnxbrecq.quantize(path, data, wrong, force=True)


def test_first_and_last_are_free_if_wished(path: Path, data: Dataset) -> None:
    result = onnxbrecq.quantize(path, data, dataclasses.replace(_RECIPE, first_last=None))
    assert [layer.weight_bits for layer in result.layers] == [4] * 4


def test_a_front_rises_and_its_points_are_true(path: Path, data: Dataset, mixed: Recipe) -> None:
    found = onnxbrecq.pareto(path, data, mixed, points=9, verify=2)
    points = found.as_json()["points"]
    assert len(points) > 3
    assert all(a["cost"] < b["cost"] and a["loss"] > b["loss"]
               for a, b in itertools.pairwise(points))  # fmt: skip
    made = [point for point in points if point["verified"]]
    assert made == [points[0], points[-1]]
    assert all(p["verified"]["size_bytes"] <= p["cost"] for p in made)
    low, high = (p["verified"]["fidelity"]["sqnr_db"] for p in made)
    assert low < high
    assert "Plotly" in found.as_html()


def test_a_saved_table_is_used(
    path: Path, data: Dataset, mixed: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.json"
    table.write_text(json.dumps(onnxbrecq.sensitivities(path, data, mixed).as_json()))

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("onnxbrecq.mixed.measured", never)
    recipe = dataclasses.replace(mixed, budget=_budget("size=4kB"))
    result = onnxbrecq.quantize(path, data, recipe, sensitivity=table)
    assert result.output.size_bytes <= 4000
    table.write_text("{}")
    with pytest.raises(onnxbrecq.DataError, match="cannot be read as a table"):
        onnxbrecq.quantize(path, data, recipe, sensitivity=table, force=True)


@pytest.mark.parametrize("read", [False, True])
def test_what_is_computed_of_constants_and_is_an_output(tmp_path: Path, read: bool) -> None:
    """It is not folded, for the graph gives it: nothing to learn, and refused where it is read."""
    given = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(given.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (4, 4, 2, 2)), ("c", (1, 4, 4, 4)), ("v", (4, 4, 1, 1)))
    ]
    nodes = [
        helper.make_node("ConvTranspose", ["c", "w"], ["k"], "up", strides=[2, 2]),
        helper.make_node("Add", ["x", "k" if read else "x"], ["t"], "sum"),
        helper.make_node("Conv", ["t", "v"], ["y"], "conv"),
    ]
    x, y = (helper.make_tensor_value_info(n, 1, ["N", 4, 8, 8]) for n in "xy")
    k = helper.make_tensor_value_info("k", 1, [1, 4, 8, 8])
    graph = helper.make_graph(nodes, "g", [x], [y, k], constants)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "m.onnx")
    data = Dataset({"x": given.standard_normal((8, 4, 8, 8)).astype(np.float32)})
    recipe, output = Recipe(effort="fast", threads=1), tmp_path / "q.onnx"
    if read:
        with pytest.raises(ModelError, match=r"'up' computes 'k' of constants alone.*'conv' reads"):
            onnxbrecq.quantize(tmp_path / "m.onnx", data, recipe, output=output)
    else:
        assert onnxbrecq.quantize(tmp_path / "m.onnx", data, recipe, output=output).fidelity
    assert output.exists() != read
