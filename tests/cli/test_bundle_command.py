import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]  # the fixture of conftest.py


def test_a_model_is_bundled_and_verified(model: Path, run: Run) -> None:
    """A float model may be handed over as well: nothing of it runs in integers."""
    folder = model.with_name("bundle")
    done = run("bundle", model, "-o", folder, "--samples", "2")
    assert done.status == 0, done.err
    assert "samples   2 of" in done.out
    good = run("verify", folder, "-q", "--json", "-")
    assert good.status == 0, good.err
    assert json.loads(good.out)["met"] is True

    (folder / "net.onnx").write_bytes(b"another")
    bad = run("verify", folder, "-q", "--json", "-")
    assert bad.status == 3
    assert "the bundle does not hold: net.onnx: is another file" in bad.error
    assert [c["what"] for c in json.loads(bad.out)["checks"] if not c["met"]] == ["net.onnx"]


def test_what_is_no_bundle(model: Path, run: Run) -> None:
    done = run("verify", model.parent, "-q")
    assert done.status == 3
    assert "manifest.json: cannot be read" in done.err


def test_a_model_that_is_none(model: Path, run: Run) -> None:
    model.write_bytes(b"nothing")
    done = run("bundle", model, "-o", model.with_name("bundle"))
    assert done.status == 1
    assert str(model) in done.error
    assert not model.with_name("bundle").exists()
