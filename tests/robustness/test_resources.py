"""What runs out ends in one line, and keeps what was finished."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from children import Children, Ended
from corpus import residual_data, residual_network
from trials import listing

_COMMAND = ("quantize", "m.onnx", "-q", "--effort", "fast", "--threads", "1")
_SMALL = 256 << 10  # bytes of a disk that holds the sources and not much more


def _with_sources(folder: Path) -> Path:
    onnx.save(residual_network(), folder / "m.onnx")
    np.savez(folder / "m.calib.npz", x=np.asarray(residual_data().inputs["x"])[:16])
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and its data."""
    folder = tmp_path / "place"
    folder.mkdir()
    return _with_sources(folder)


def _one_line(ended: Ended, *words: str) -> None:
    assert ended.status == 1, ended
    assert ended.err.count("\n") == 1, ended.err
    assert "internal error" not in ended.err
    assert [word for word in words if word not in ended.err] == [], ended.err


@contextlib.contextmanager
def _tiny_disk(folder: Path) -> Iterator[Path]:
    """A disk of `_SMALL` bytes, mounted at `folder`; skips where it cannot be."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", folder],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"mounting a small tmpfs needs root: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_a_full_disk_is_told_and_once_there_is_room_it_goes_on(
    tmp_path: Path, children: Children
) -> None:
    with _tiny_disk(tmp_path / "disk") as disk:
        _with_sources(disk)
        sources, ballast = listing(disk), disk / "ballast"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        for room in (0, 4096, 12288, 24576):  # for the lock, a key, a block, and not the model
            ballast.write_bytes(bytes(free - room))
            _one_line(children.run(*_COMMAND, folder=disk), "No space left on device")
            assert not (disk / "m.quant.onnx").exists()
            assert not [name for name in listing(disk) if name.endswith(".tmp")]
        ballast.unlink()
        assert children.run(*_COMMAND, folder=disk).status == 0
        assert listing(disk) == sources | {"m.quant.onnx"}


def test_a_file_size_limit_is_a_full_disk(place: Path, children: Children) -> None:
    """`ulimit -f`: writes end with EFBIG, and a signal that Python ignores."""
    ended = children.run(*_COMMAND, folder=place, limits={resource.RLIMIT_FSIZE: 2048})
    _one_line(ended, "File too large")
    assert not (place / "m.quant.onnx").exists()
    assert children.run(*_COMMAND, folder=place).status == 0


@pytest.mark.parametrize("mebibytes", [0, 8, 64])
def test_a_memory_limit_is_told(place: Path, children: Children, mebibytes: int) -> None:
    """`ulimit -v`: so many MiB beside what the program itself takes."""
    allowed = {resource.RLIMIT_AS: mebibytes << 20}
    ended = children.run(*_COMMAND, folder=place, limits=allowed)
    assert ended.status in (0, 1), ended
    if ended.status == 1:
        assert "internal error" not in ended.err, ended.err
        assert "memory" in ended.err.splitlines()[-1], ended.err
    for path in place.glob("m.quant.onnx"):  # where memory ran out behind it, in validation
        onnx.checker.check_model(path)
    assert children.run(*_COMMAND, "--force", folder=place).status == 0


@contextlib.contextmanager
def _control_group(limit: int) -> Iterator[Path]:
    """A control group of so many bytes of memory; skips where there can be none."""
    root = Path("/sys/fs/cgroup")
    version_1 = root / "memory" / "memory.limit_in_bytes"
    parent, bound = (
        (version_1.parent, version_1.name) if version_1.exists() else (root, "memory.max")
    )
    swap, most = (
        ("memory.memsw.limit_in_bytes", limit) if version_1.exists() else ("memory.swap.max", 0)
    )
    group = parent / f"onnxbrecq-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group cannot be made: {error}")
    try:
        try:
            (group / bound).write_text(str(limit))
            if len(Path("/proc/swaps").read_text(encoding="utf-8").splitlines()) > 1:
                (group / swap).write_text(str(most))
        except OSError as error:
            pytest.skip(f"its memory cannot be bounded: {error}")
        joined = subprocess.run(["sh", "-c", f"echo $$ > {group}/cgroup.procs"], check=False)
        if joined.returncode:
            pytest.skip("a control group cannot be joined")
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """What is killed leaves its group some moments later."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        for pid in (group / "cgroup.procs").read_text(encoding="utf-8").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
    group.rmdir()


def test_a_control_group_without_memory_is_told_and_nothing_is_lost(
    place: Path, children: Children
) -> None:
    """There allocation does not fail: the system kills, as it does to containers."""
    with _control_group(24 << 20) as group:
        _one_line(children.run(*_COMMAND, folder=place, cgroup=group), "want of memory")
    assert not (place / "m.quant.onnx").exists()
    assert children.run(*_COMMAND, folder=place).status == 0
    assert listing(place) == {"m.onnx", "m.calib.npz", "m.quant.onnx"}


def test_a_read_only_folder(place: Path, children: Children) -> None:
    """Root may write wherever permissions forbid it, but not on a read-only mount."""
    if os.geteuid():
        place.chmod(0o500)
        _one_line(children.run(*_COMMAND, folder=place), "m.quant.onnx", "cannot be written")
        place.chmod(0o700)
        return
    done = subprocess.run(["mount", "--bind", place, place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a read-only mount cannot be had: {done.stderr.decode().strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        _one_line(children.run(*_COMMAND, folder=place), "m.quant.onnx", "cannot be written")
    finally:
        subprocess.run(["umount", place], check=True)
    assert listing(place) == {"m.onnx", "m.calib.npz"}


@pytest.mark.parametrize("name", ["m.onnx", "m.calib.npz"])
def test_a_file_that_has_vanished(place: Path, children: Children, name: str) -> None:
    (place / name).unlink()
    _one_line(children.run(*_COMMAND, "-d", "m.calib.npz", folder=place), name)


def test_a_folder_of_samples_that_vanishes_while_it_is_read(
    place: Path, children: Children
) -> None:
    (place / "samples").mkdir()
    (place / "samples" / "0.npy").symlink_to(place / "gone.npy")
    np.save(place / "samples" / "1.npy", np.zeros((3, 8, 8), np.float32))
    _one_line(children.run(*_COMMAND, "-d", "samples", folder=place), "samples")
