"""Bad input: one line on stderr, exit status 1 or 2, no traceback, and no file left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

Run = Callable[..., Any]  # the fixture of conftest.py


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def absent(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def text(path: Path) -> None:
    path.write_text("This is not a model.\n")


@pytest.mark.parametrize("damage", [absent, directory, empty, truncated, text])
@pytest.mark.parametrize("command", ["inspect", "quantize"])
def test_unreadable_model(
    model: Path, run: Run, command: str, damage: Callable[[Path], None]
) -> None:
    damage(model)
    before = files(model.parent)
    done = run(command, model)
    assert done.status == 1
    assert str(model) in done.error
    assert "internal error" not in done.error
    assert done.out == ""
    assert files(model.parent) == before


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


NAN = ones(8, 3, 8, 8)
NAN[5, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"picture": ones(8, 3, 8, 8)}, ["image", "picture"]),
        ({"image": ones(8, 3, 9, 8)}, ["image", "9"]),
        ({"image": ones(8, 3, 8)}, ["image"]),
        ({"image": np.array([["a"]] * 8)}, ["image"]),
        ({"image": np.ones((8, 3, 8, 8), np.complex64)}, ["image", "complex64"]),
        ({"image": NAN}, ["image"]),
        ({"image": ones(0, 3, 8, 8)}, []),
        ({"image": np.array([{"a": 1}] * 8, dtype=object)}, ["pickle"]),
    ],
    ids=["name", "shape", "rank", "text", "complex", "nan", "no-samples", "pickled"],
)
def test_calibration_data_that_does_not_fit(
    model: Path, run: Run, arrays: dict[str, np.ndarray], words: list[str]
) -> None:
    data = model.with_name("data.npz")
    np.savez(data, **arrays)
    before = files(model.parent)
    done = run("quantize", model, "-q", "-d", data)
    assert done.status == 1
    assert "data.npz" in done.error
    assert [word for word in words if word not in done.error] == []
    assert "internal error" not in done.error
    assert files(model.parent) == before


@pytest.mark.parametrize("source", ["nowhere.npz", "no_such_module:function", "net.onnx"])
def test_calibration_source_that_is_none(model: Path, run: Run, source: str) -> None:
    given = source if ":" in source else model.with_name(source)
    done = run("quantize", model, "-q", "-d", given)
    assert done.status == 1
    assert source in done.error
    assert "internal error" not in done.error


def test_labels_that_do_not_fit(model: Path, run: Run) -> None:
    np.savez(model.with_name("net.eval.npz"), image=ones(8, 3, 8, 8), labels=np.zeros(7, np.int64))
    done = run("quantize", model, "-q")
    assert done.status == 1
    assert "labels" in done.error
    assert not model.with_name("net.quant.onnx").exists()


# Root ignores permission bits: these are unwritable for everyone.
@pytest.mark.parametrize("option", ["-o", "--json"])
@pytest.mark.parametrize("place", ["net.onnx/out", "missing/out", "folder"])
def test_output_that_cannot_be_written(model: Path, run: Run, option: str, place: str) -> None:
    model.with_name("folder").mkdir()
    before = files(model.parent)
    done = run("quantize", model, "-q", option, model.parent / place)
    assert done.status == 1
    assert place in done.error
    assert "internal error" not in done.error
    assert files(model.parent) == before


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_existing_output_is_kept_without_force(model: Path, run: Run, option: str) -> None:
    there = model.with_name("there")
    there.write_text("precious")
    done = run("quantize", model, "-q", option, there)
    assert done.status == 1
    assert "--force" in done.error
    assert there.read_text() == "precious"
    assert not model.with_name("net.quant.onnx").exists()


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_the_model_is_never_overwritten(model: Path, run: Run, option: str) -> None:
    before = model.read_bytes()
    done = run("quantize", model, "-q", "--force", option, model)
    assert done.status in (1, 2)
    assert str(model) in done.error
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize"], "MODEL"),
        (["quantize", "m.onnx", "-w", "5"], "weights = 5"),
        (["quantize", "m.onnx", "-w", "many"], "many"),
        (["quantize", "m.onnx", "-a", "16"], "activations = 16"),
        (["quantize", "m.onnx", "-a", "double"], "double"),
        (["quantize", "m.onnx", "--first-last", "1"], "first_last = 1"),
        (["quantize", "m.onnx", "--effort", "heroic"], "heroic"),
        (["quantize", "m.onnx", "--target", "abacus"], "abacus"),
        (["quantize", "m.onnx", "--device", "abacus"], "abacus"),
        (["quantize", "m.onnx", "--threads", "0"], "threads = 0"),
        (["quantize", "m.onnx", "--seed", "-1"], "seed = -1"),
        (["quantize", "m.onnx", "--max-drop", "nan"], "max_drop = nan"),
        (["quantize", "m.onnx", "--json", "m.onnx"], "m.onnx"),
        (["quantize", "m.onnx", "--no-such-option"], "--no-such-option"),
        (["quantize", "m.onnx", "--recipe", "nowhere.toml"], "nowhere.toml"),
        (["validate", "m.onnx"], "--reference"),
        (["convert", "m.onnx"], "convert"),
        ([], "command"),
    ],
    ids=lambda value: "_".join(value).replace(".", "-") if isinstance(value, list) else "",
)
def test_wrong_usage(run: Run, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.status == 2
    assert words in done.error
    assert done.out == ""


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("weigths = 4", "weigths"),
        ("weights = 5", "weights = 5"),
        ('weights = "four"', "weights = 'four'"),
        ("[reconstruction]\nsteps = 3", "reconstruction.steps"),
        ("[data]\nfolder = 3", "data.folder"),
        ("weights = ", "TOML"),
    ],
    ids=["unknown", "bits", "type", "unknown-in-table", "unknown-in-data", "syntax"],
)
def test_wrong_recipe(model: Path, run: Run, recipe: str, words: str) -> None:
    file = model.with_name("recipe.toml")
    file.write_text(recipe)
    done = run("quantize", model, "--recipe", file)
    assert done.status == 2
    assert words in done.error
    assert not model.with_name("net.quant.onnx").exists()


@pytest.fixture
def foreign(model: Path) -> Path:
    """The model with an operator that no runtime here knows."""
    proto = onnx.load(model)
    position = next(i for i, n in enumerate(proto.graph.node) if n.name == "act")
    proto.graph.node[position].CopyFrom(
        helper.make_node("Wobble", ["c"], ["r"], name="act", domain="com.example")
    )
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(proto, model)
    return model


def test_inspect_says_why_an_unknown_operator_stays_float(foreign: Path, run: Run) -> None:
    done = run("inspect", foreign)
    assert done.status == 0
    assert done.err == ""
    line = next(line for line in done.out.splitlines() if "Wobble" in line)
    assert "com.example" in line


def test_quantize_names_an_operator_that_the_runtime_does_not_know(foreign: Path, run: Run) -> None:
    done = run("quantize", foreign, "-q")
    assert done.status == 1
    assert [word for word in ("act", "Wobble", "com.example") if word not in done.error] == []
    assert "internal error" not in done.error
    assert not foreign.with_name("net.quant.onnx").exists()


def test_a_path_of_any_length_is_told_shortly(run: Run) -> None:
    done = run("inspect", "m" * 5000)
    assert done.status == 1
    assert "too long" in done.err
    assert len(done.err) < 800
