import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxbrecq.errors import OutputError
from onnxbrecq.output import claim, write_atomically, write_together


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_path_is_free_and_stays_so(tmp_path: Path) -> None:
    claim(tmp_path / "out.onnx", force=False, sources=[tmp_path / "in.onnx"])
    assert listing(tmp_path) == set()


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("old")
    with pytest.raises(OutputError, match=r"out\.onnx exists already; pass --force"):
        claim(out, force=False, sources=[tmp_path / "in.onnx"])
    claim(out, force=True, sources=[tmp_path / "in.onnx"])
    assert out.read_text() == "old"


@pytest.mark.parametrize("how", ["same", "relative", "symlink", "hardlink"])
def test_the_source_is_never_replaced(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.onnx"
    source.write_text("model")
    out = tmp_path / "other.onnx"
    if how == "same":
        out = source
    elif how == "relative":
        monkeypatch.chdir(tmp_path)
        out = Path("in.onnx")
    elif how == "symlink":
        out.symlink_to(source)
    else:
        out.hardlink_to(source)
    with pytest.raises(OutputError, match="is the input itself"):
        claim(out, force=True, sources=[source])


def test_places_that_cannot_hold_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for place, says in (
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "out", "is no directory"),
        (tmp_path / "file" / "out", "is no directory|Not a directory"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        with pytest.raises(OutputError, match=says):
            claim(place, force=True, sources=())
    assert listing(tmp_path) == {"file", "pipe"}


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_files() -> None:
    """Even root cannot make files in /proc."""
    with pytest.raises(OutputError, match=r"/proc/out\.onnx: cannot be written"):
        claim(Path("/proc/out.onnx"), force=False, sources=())


def test_what_is_written_is_whole_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("old")
    write_atomically(out, b"new")
    assert out.read_bytes() == b"new"
    assert listing(tmp_path) == {"out.onnx"}


def test_the_usual_permissions(tmp_path: Path) -> None:
    """A temporary file of tempfile would leave the result readable by its owner only."""
    write_atomically(tmp_path / "out", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_that_belong_together_are_all_there_or_none(tmp_path: Path) -> None:
    def cut_short() -> Iterator[bytes]:
        yield b"part"
        raise OSError(28, "No space left on device")

    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(OutputError, match="No space left"):
        write_together({tmp_path / "a": [b"whole"], tmp_path / "b": cut_short()})
    assert listing(tmp_path) == {"b"}
    assert (tmp_path / "b").read_bytes() == b"old"
    write_together({tmp_path / "a": [b"wh", b"ole"], tmp_path / "b": [b"new"]})
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"whole", b"new"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomically(out, b"new")
    if expected is OutputError:
        assert str(caught.value) == f"{out}: cannot be written: No space left on device"
    assert out.read_text() == "old"
    assert listing(tmp_path) == {"out.onnx"}
