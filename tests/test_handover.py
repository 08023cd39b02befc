"""The hand-over, and its verify.py where nothing but onnxruntime and numpy can be imported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emission import emitted
from onnxbrecq.emit.targets import target_by_name
from onnxbrecq.errors import DataError, OutputError
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.handover import bundle
from onnxbrecq.recipe import Recipe
from onnxbrecq.runtime.verify import Check, verify

LAYERS = 4


def quantized(model: Model, data: Dataset, recipe: Recipe, path: Path) -> Path:
    """`model` rounded to nearest."""
    plan = calibrate(model, find_points(model), data, recipe)
    onnx.save(emitted(model, plan, target_by_name("ort-cpu")), path)
    return path


@pytest.fixture
def source(model: Model, data: Dataset, tmp_path: Path) -> Path:
    """A quantized file, with data beside it."""
    np.savez(tmp_path / "net.calib.npz", x=data.inputs["x"][:])
    return quantized(model, data, Recipe(), tmp_path / "net.quant.onnx")


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    bundle(source, tmp_path / "bundle", samples=3)
    return tmp_path / "bundle"


def missed(checks: list[Check]) -> dict[str, str]:
    return {check.what: check.told for check in checks if not check.met}


def sealed(folder: Path) -> None:
    """Gives every changed file its new hash: what is left to tell is what the model does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        content = (folder / name).read_bytes()
        facts.update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")


def test_a_bundle_holds_where_it_was_made(made: Path) -> None:
    checks = verify(made)
    assert missed(checks) == {}
    assert [check.what for check in checks] == [
        "manifest.json", "net.quant.onnx", "samples.npz", "verify.py", "provider", "session",
        "output logits", "integer kernels",
    ]  # fmt: skip


def test_the_manifest_says_what_was_promised(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["target"] == "ort-cpu"
    assert manifest["provider"] == "CPUExecutionProvider"
    assert len(manifest["integer"]["layers"]) == LAYERS
    assert manifest["integer"]["macs_fraction"] == 1.0
    assert manifest["samples"]["count"] == 3
    assert manifest["samples"]["origin"].endswith("net.calib.npz")
    (output,) = manifest["samples"]["outputs"]
    assert output["tolerance_steps"] >= 4
    assert 0 < output["step"] < 1
    assert {"onnxruntime", "numpy", "processor"} <= set(manifest["environment"])


def test_the_checksums_are_those_of_sha256sum(made: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=made, check=True)


def flipped(folder: Path) -> None:
    path = folder / "net.quant.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swapped(folder: Path) -> None:
    shutil.copy(folder / "samples.npz", folder / "net.quant.onnx")


def removed(folder: Path) -> None:
    (folder / "samples.npz").unlink()


def edited(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"count": 3', '"count": 2'))


def outside(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"samples.npz": {', '"../samples.npz": {'))
    text = path.read_bytes()
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")


def unreadable(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff{")


@pytest.mark.parametrize(
    ("damage", "what", "says"),
    [
        (flipped, "net.quant.onnx", "was changed: sha256"),
        (swapped, "net.quant.onnx", "is another file"),
        (removed, "samples.npz", "is missing"),
        (edited, "manifest.json", "was changed"),
        (outside, "../samples.npz", "lies outside of the bundle"),
        (unreadable, "manifest.json", "cannot be read"),
    ],
)
def test_damage_is_named(made: Path, damage: Callable[[Path], None], what: str, says: str) -> None:
    damage(made)
    found = missed(verify(made))
    assert list(found) == [what]
    assert says in found[what]


def test_a_missing_provider_is_named(made: Path) -> None:
    found = missed(verify(made, "QNNExecutionProvider"))
    assert "QNNExecutionProvider is missing here" in found["provider"]


def test_the_provider_of_the_deployment_machine_is_asked_for(source: Path, tmp_path: Path) -> None:
    bundle(source, tmp_path / "bundle", provider="QNNExecutionProvider")
    assert list(missed(verify(tmp_path / "bundle"))) == ["provider"]
    assert missed(verify(tmp_path / "bundle", "CPUExecutionProvider")) == {}


def test_another_model_under_the_same_name_gives_other_outputs(
    made: Path, model: Model, data: Dataset
) -> None:
    quantized(model, data, Recipe(weights=2, first_last=2), made / "net.quant.onnx")
    sealed(made)
    found = missed(verify(made))
    assert list(found) == ["output logits"]
    assert "are allowed" in found["output logits"]
    assert "bundled was" in found["output logits"]


def test_layers_that_run_in_float_are_named(made: Path, model: Model, data: Dataset) -> None:
    recipe = Recipe(weights=8, activations=None)
    quantized(model, data, recipe, made / "net.quant.onnx")
    sealed(made)
    found = missed(verify(made))["integer kernels"]
    assert "0.0000 of the multiply-accumulates, promised are 1.0000" in found
    assert model.nodes[0].name in found


def test_the_script_knows_the_kernels_that_the_package_knows() -> None:
    """It imports nothing of the package, so it says again what an integer kernel is."""
    script, package = (import_module(f"onnxbrecq.runtime.{n}") for n in ("verify", "kernels"))
    assert script._INTEGER == package.INTEGER_KERNELS
    assert script._APPENDED == package._APPENDED


def bare(folder: Path) -> dict[str, str]:
    """An environment whose Python, without its site-packages, has onnxruntime and numpy only."""
    folder.mkdir()
    for name in ("onnxruntime", "numpy"):
        spec = find_spec(name)
        assert spec is not None
        home = Path(str(spec.origin)).parent
        (folder / name).symlink_to(home)
        libraries = home.with_name(f"{name}.libs")
        if libraries.exists():
            (folder / libraries.name).symlink_to(libraries)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_it_needs_onnxruntime_and_numpy_only(made: Path, tmp_path: Path) -> None:
    environment = bare(tmp_path / "bare")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", *map(str, arguments)],
            env=environment, cwd=made, capture_output=True, text=True, check=False,
        )  # fmt: skip

    for absent in ("onnx", "torch", "onnxbrecq"):
        assert run("-c", f"import {absent}").returncode == 1
    good = run(made / "verify.py")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-1] == "the bundle holds"
    assert run(made / "verify.py", "--provider", "NoProvider").returncode == 3
    flipped(made)
    bad = run(made / "verify.py", made)
    assert bad.returncode == 3
    assert "FAIL net.quant.onnx: was changed" in bad.stdout


def test_external_data_comes_along(source: Path, tmp_path: Path) -> None:
    proto = onnx.load(source)
    onnx.save(proto, source, save_as_external_data=True, location="net.data", size_threshold=64)
    bundle(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "net.data").stat().st_size > 0
    assert missed(verify(tmp_path / "bundle")) == {}


def test_without_data_the_numbers_are_random_and_it_says_so(source: Path, tmp_path: Path) -> None:
    source.with_name("net.calib.npz").unlink()
    made = bundle(source, tmp_path / "bundle")
    assert made.manifest["samples"]["origin"] == "random numbers"
    assert missed(verify(tmp_path / "bundle")) == {}


def test_only_a_bundle_is_ever_replaced(source: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already; pass --force"):
        bundle(source, made)
    bundle(source, made, samples=1, force=True)
    assert missed(verify(made)) == {}
    (tmp_path / "precious").mkdir()
    with pytest.raises(OutputError, match="has no manifest"):
        bundle(source, tmp_path / "precious", force=True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_data_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3, 5, 5), np.float64))
    with pytest.raises(DataError, match="float64"):
        bundle(source, tmp_path / "bundle", tmp_path / "d.npz")
    assert not (tmp_path / "bundle").exists()
