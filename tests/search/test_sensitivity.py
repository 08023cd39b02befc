"""What is measured, against what onnxruntime makes of whole networks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxbrecq import parts, state
from onnxbrecq.bits import Bits
from onnxbrecq.curvature import Directions
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.errors import DataError
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.mixed import Menu, explored
from onnxbrecq.progress import silent
from onnxbrecq.runtime.session import Session
from onnxbrecq.search import sensitivity
from onnxbrecq.search.divergence import kl_divergence

MenuOf = Callable[..., Menu]  # the fixture of conftest.py


def _noise(menu: Menu, chosen: dict[str, Bits], data: Dataset) -> float:
    """Of the whole network at nearest levels, relative to the output's energy."""
    plan = menu.sizes.calibration.plan(menu.all_bits(chosen))
    made, wanted = (
        Session(proto).run(data.inputs)["logits"].astype(np.float64)
        for proto in (emit(menu.task.model, plan, menu.target), menu.task.model.proto)
    )
    return float(np.square(made - wanted).sum() / np.square(wanted).sum())


def test_fewer_bits_lose_more(menu: MenuOf) -> None:
    found = menu()
    table = explored(found, silent).table
    assert table.measure == "fisher"
    assert table.choices.keys() == {"Conv_1", "Conv_2"}
    assert table.fixed == {"Conv": Bits(8, 8), "Gemm": Bits(8, 8)}
    (block,) = table.blocks
    assert len(block.losses) == 9
    for name in table.choices:
        low, middle, high = (block.single(name, choice) for choice in range(3))
        assert low > 3 * middle > 3 * high


def test_at_the_output_errors_count_as_they_are(
    menu: MenuOf, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along random directions, 2 for each of 32 samples, it is the same to 3 * sqrt(2 / 64)."""
    found = menu(first_last=None, pinned={"Conv*": 8}, offered=(2, 8))
    (block,) = explored(found, silent).table.blocks
    judged = data.inputs["x"][1::2]
    logits = Session(found.task.model.proto).run({"x": judged})["logits"]
    energy = float(np.square(logits, dtype=np.float64).sum(axis=1).mean())
    axes = [{"logits": np.tile(5**0.5 * axis, (32, 1))} for axis in np.eye(5, dtype=np.float32)]
    monkeypatch.setattr(sensitivity, "_directions", lambda *_: (Directions(axes, energy), ()))
    (wanted,) = explored(found, silent).table.blocks
    np.testing.assert_allclose(
        list(block.losses.values()), list(wanted.losses.values()), rtol=3 * 0.18
    )


def test_a_gradient_carries_errors_to_the_output(menu: MenuOf, data: Dataset) -> None:
    """Two layers before the output: predicted within a factor of two of what comes out."""
    found = menu(offered=(3, 8))
    table = explored(found, silent).table
    coarse = dict.fromkeys(table.choices, Bits(3, 8))
    noise = _noise(found, coarse, data)
    assert 0.3 * noise < table.loss(coarse) < 2 * noise


def test_activations_are_a_choice_where_they_are_offered(menu: MenuOf) -> None:
    found = menu(offered=(4, 8), offered_activations=(4, 8), target="ort-cpu")
    assert found.choices["Conv_1"] == (Bits(4, 4), Bits(8, 4), Bits(4, 8), Bits(8, 8))
    table = explored(found, silent).table
    block = table.blocks[0]
    assert block.single("Conv_1", 1) > 3 * block.base  # 8-bit weights on 4-bit data


def test_blocks_of_many_layers_are_measured_in_pairs(
    menu: MenuOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxbrecq.search.table.JOINT", 1)
    table = explored(menu(), silent).table
    assert len(table.blocks[0].losses) == 9  # two layers: all their combinations are pairs
    assert len(list(table.blocks[0].factors())) == 4


def test_a_measured_block_is_not_measured_again(
    menu: MenuOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = menu()
    with state.opened(tmp_path / "w", {}, resume=True) as first:
        table = explored(found, silent, state=first).table

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(sensitivity, "_table", never)
    with state.opened(tmp_path / "w", {}, resume=True) as second:
        again = explored(found, silent, state=second).table
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(table, seconds=0)


def test_where_no_gradient_arrives_losses_are_relative(
    menu: MenuOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parts.import_block

    def refuse_the_last(part: Model) -> object:
        if "logits" in part.outputs:
            raise parts.BridgeError("no converter")
        return real(part)

    monkeypatch.setattr(parts, "import_block", refuse_the_last)
    assert explored(menu(), silent).table.measure == "fisher"  # up to the island

    def refuse(part: Model) -> object:
        if {"logits", "h"} & set(part.outputs):
            raise parts.BridgeError("no converter")
        return real(part)

    monkeypatch.setattr(parts, "import_block", refuse)
    table = explored(menu(), silent).table
    assert table.measure == "relative"
    assert any("no gradient" in note for note in table.notes)
    block = table.blocks[0]
    assert block.single("Conv_1", 0) > block.base


def test_the_output_is_looked_at_if_wished(menu: MenuOf) -> None:
    table = explored(menu(), silent, check_output=True).table
    assert table.output_measure == "kl"
    assert table.output_base is not None
    for values in table.blocks[0].outputs.values():
        assert values[0] > values[1] > 0
        assert values[2] == pytest.approx(table.output_base)


def test_kl_divergence() -> None:
    scores = np.array([[0.0, 0.0], [0.0, np.log(3.0)]])
    other = np.array([[0.0, np.log(3.0)], [0.0, np.log(3.0)]])
    by_hand = 0.5 * (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert kl_divergence(scores, other) == pytest.approx(by_hand)
    assert kl_divergence(scores, scores) == 0


def test_a_table_of_another_model_is_refused(menu: MenuOf, proto: onnx.ModelProto) -> None:
    table = explored(menu(), silent).table
    for other, message in (
        (dataclasses.replace(table, model_sha256="1" * 64), "another model"),
        (dataclasses.replace(table, data_sha256="1" * 64), "another data"),
    ):
        with pytest.raises(DataError, match=message):
            explored(menu(), silent, table=other)
    with pytest.raises(DataError, match="other bits of layer 'Conv_1'"):
        explored(menu(offered=(4, 8)), silent, table=table)
    assert explored(menu(), silent, table=table).table is table


def test_nothing_to_choose(menu: MenuOf) -> None:
    found = menu(pinned={"*": 4})
    table = explored(found, silent).table
    assert table.blocks == ()
    assert table.fixed.keys() == {"Conv", "Conv_1", "Conv_2", "Gemm"}


def test_a_fixed_batch_is_measured_batch_by_batch(menu: MenuOf, proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    table = explored(menu(from_proto(proto)), silent).table
    assert table.samples == 64
    assert table.blocks[0].single("Conv_1", 0) > table.blocks[0].base
