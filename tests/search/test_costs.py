"""What bits cost, against the files themselves and against arithmetic by hand."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxbrecq.bits import Bits
from onnxbrecq.emission import emitted
from onnxbrecq.emit.targets import PORTABLE
from onnxbrecq.errors import RecipeError
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.mixed import Menu, menu_of
from onnxbrecq.recipe import Latency
from onnxbrecq.search import latency
from onnxbrecq.search.costs import bitops

MenuOf = Callable[..., Menu]  # the fixture of conftest.py
WIDTHS = (2, 3, 4, 8)


def allocations(menu: Menu) -> list[dict[str, Bits]]:
    return [
        dict(zip(menu.choices, bits, strict=True))
        for bits in itertools.product(*menu.choices.values())
    ]


def test_the_size_that_is_said_is_that_of_the_file(menu: MenuOf) -> None:
    """But for offsets that all channels of a layer happen to share, it is the same."""
    found = menu(offered=WIDTHS)
    for chosen in allocations(found):
        bits = found.all_bits(chosen)
        said = found.sizes.of(bits)
        plan = dataclasses.replace(
            found.sizes.calibration.plan(bits), data_sha256=found.sizes.data_sha256
        )
        proto = emitted(found.task.model, plan, found.target)
        shared = sum(
            q.levels is not None and q.qtype.grid != "signed" and len(set(q.zero_point.flat)) == 1
            for q in plan.tensors.values()
        )
        if shared:
            assert proto.ByteSize() < said
        else:
            assert proto.ByteSize() == said


def test_layers_add_up_to_a_little_more_than_the_file(menu: MenuOf) -> None:
    found = menu(offered=WIDTHS, offered_activations=(4, 8))
    for chosen in allocations(found)[::7]:
        places = {name: found.choices[name].index(bits) for name, bits in chosen.items()}
        summed, file = found.size.total(places), found.sizes.of(found.all_bits(chosen))
        assert 0 <= summed - file < 200  # digits of names; constants that one layer has alone


def test_three_bits_fill_four(menu: MenuOf) -> None:
    found = menu(offered=(3, 4))
    assert all(abs(three - four) <= 5 for three, four in found.size.layers.values())


def test_bit_operations(menu: MenuOf) -> None:
    found = menu(offered=(2, 8), offered_activations=(4, 8))
    of = bitops(found.task.model, found.choices, found.fixed)
    macs = {layer.name: layer.macs for layer in weight_layers(found.task.model)}
    for name, costs in of.layers.items():
        wanted = [macs[name] * b.weight * b.data for b in found.choices[name]]  # type: ignore[operator]
        assert list(costs) == wanted
    assert of.base == sum(64 * macs[name] for name in found.fixed)


def test_layers_left_in_float_count_32_bits(menu: MenuOf) -> None:
    found = menu(pinned={"Conv_1": None})
    of = bitops(found.task.model, found.choices, found.fixed)
    macs = {layer.name: layer.macs for layer in weight_layers(found.task.model)}
    assert of.base == 64 * (macs["Conv"] + macs["Gemm"]) + 1024 * macs["Conv_1"]


def test_what_bits_do_not_change_is_no_budget(menu: MenuOf) -> None:
    found = menu()
    portable = menu_of(found.task, found.sizes.calibration, PORTABLE, found.sizes.data_sha256)
    with pytest.raises(RecipeError, match="bits change nothing of it for target portable"):
        portable.cost("size")


def test_latency_on_this_processor_is_refused_with_what_changes_it(menu: MenuOf) -> None:
    with pytest.raises(RecipeError, match=r"as fast at 2, 4 and 8 bits.*integers instead of float"):
        menu().cost("latency")


def _table(tmp_path: Path, text: str) -> Latency:
    path = tmp_path / "ms.csv"
    path.write_text(text)
    return Latency("table", str(path))


def test_a_table_of_latencies_by_name(menu: MenuOf, tmp_path: Path) -> None:
    rows = ["layer,weight_bits,activation_bits,ms", "Conv_1,2,8,1.5", "Conv_2,2,8,2.5"]
    rows += [f"*,{bits},8,{bits}" for bits in (4, 8)]
    found = menu(latency=_table(tmp_path, "\n".join(rows))).cost("latency")
    assert found.layers == {"Conv_1": (1.5, 4.0, 8.0), "Conv_2": (2.5, 4.0, 8.0)}
    assert found.base == 16.0


def test_a_table_of_latencies_by_shape(menu: MenuOf, tmp_path: Path) -> None:
    rows = ["op,input,weight,output,weight_bits,activation_bits,ms"]
    for bits in (2, 4, 8):
        rows += [f"Conv,{i}x8x8,8x{i}x3x3,8x8x8,{bits},8,{i * bits}" for i in (3, 8)]
        rows.append(f"Gemm,8,5x8,5,{bits},8,{bits / 10}")
    found = menu(latency=_table(tmp_path, "\n".join(rows))).cost("latency")
    assert found.layers["Conv_1"] == (16.0, 32.0, 64.0)
    assert found.base == pytest.approx(24 + 0.8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,weight_bits,activation_bits,ms\nConv_1,2,8,1", "no latency of layer 'Conv"),
        ("layer,bits,ms\n", "want the columns weight_bits"),
        ("layer,weight_bits,activation_bits,ms\n*,2,8,fast", "row 1: ms = 'fast'"),
        ("layer,weight_bits,activation_bits,ms\n*,2,8,nan", "row 1: ms = 'nan'"),
    ],
    ids=["missing", "columns", "words", "nan"],
)
def test_a_table_that_does_not_do_is_refused(
    menu: MenuOf, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        menu(latency=_table(tmp_path, text)).cost("latency")


def test_a_table_that_is_not_there(menu: MenuOf, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        menu(latency=Latency("table", str(tmp_path / "none.csv"))).cost("latency")


def test_a_systolic_array_by_hand(menu: MenuOf) -> None:
    """8 channels of 3x3x8 values at 64 places, on 16 x 4 multipliers, 1 MHz, no lack of memory."""
    array = Latency("systolic", rows=16, columns=4, clock_mhz=1.0, bandwidth_gbs=1e6)
    found = menu(latency=array).cost("latency")
    fill = 2 * 16 + 4 + 64 - 2
    tiles = {2: 2, 4: 3, 8: 5}  # ceil(72 / (16 * 64 / (w * 8)))
    wanted = [2 * tiles[w] * fill / 1e3 for w in (2, 4, 8)]
    np.testing.assert_allclose(found.layers["Conv_1"], wanted)


def test_a_systolic_array_that_waits_for_memory(menu: MenuOf) -> None:
    array = Latency("systolic", rows=512, columns=512, clock_mhz=1e6, bandwidth_gbs=1.0)
    found = menu(latency=array).cost("latency")
    moved = [576 * w / 8 + 512 + 512 for w in (2, 4, 8)]
    np.testing.assert_allclose(found.layers["Conv_1"], np.array(moved) / 1e6)


def test_layers_are_measured_one_by_one(menu: MenuOf) -> None:
    found = menu()
    plan = found.sizes.calibration.plan({**found.fixed, **dict.fromkeys(found.choices, Bits(8, 8))})
    times = latency.measured(found.task.model, plan, found.task.target, 1)
    assert times.keys() == {"Conv", "Conv_1", "Conv_2", "Gemm"}
    assert all(integer > 0 and floating > 0 for integer, floating in times.values())
