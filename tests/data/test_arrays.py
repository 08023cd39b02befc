"""Arrays nobody vouched for: nothing is unpickled, nothing is allocated on a header's word."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from onnxbrecq.data import arrays
from onnxbrecq.data.arrays import memory_limit, read_npy, read_npz, whole
from onnxbrecq.data.dataset import Samples
from onnxbrecq.data.rows import OwnRows, Rows
from onnxbrecq.errors import DataError


def header_only(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_round_trip(tmp_path: Path, version: tuple[int, int], order: str) -> None:
    wanted = np.asarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4), order=order)  # type: ignore[call-overload]
    with (tmp_path / "a.npy").open("wb") as file:
        npy.write_array(file, wanted, version)
    assert np.array_equal(whole(read_npy(tmp_path / "a.npy")), wanted)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_what_is_wanted_and_names_all(tmp_path: Path, save: object) -> None:
    path = tmp_path / "a.npz"
    save(path, x=np.ones((2, 3)), labels=np.arange(2), junk=np.zeros(5))  # type: ignore[operator]
    found, names = read_npz(path, ["x", "y"])
    assert set(found) == {"x"}
    assert np.array_equal(whole(found["x"]), np.ones((2, 3)))
    assert set(names) == {"x", "labels", "junk"}


def test_unwanted_arrays_are_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones(3), pickled=np.array([{}], dtype=object))
    assert set(read_npz(path, ["x"])[0]) == {"x"}


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_pickled_objects_are_refused(tmp_path: Path, kind: str) -> None:
    value = np.array([{"a": 1}], dtype=object)
    path = tmp_path / f"a.{kind}"
    np.save(path, value) if kind == "npy" else np.savez(path, x=value)
    with pytest.raises(DataError, match=r"a\.np.*pickled objects"):
        read_npy(path) if kind == "npy" else read_npz(path, ["x"])


@pytest.mark.parametrize("shape", [(2**40, 1000), (5,), (-1, 4)], ids=str)
def test_a_header_that_promises_more_than_the_file_holds(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    (tmp_path / "a.npy").write_bytes(header_only(shape))
    zipped(tmp_path / "a.npz", "x.npy", header_only(shape))
    with pytest.raises(DataError, match=r"a\.npy: .*(does not hold|cannot be read)"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"a\.npz: .*(does not hold|cannot be read)"):
        read_npz(tmp_path / "a.npz", ["x"])


def test_a_zip_bomb_is_refused_before_it_unfolds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 kB declared and really there, in under 2 kB of file, where 100 kB are allowed."""
    path = zipped(tmp_path / "a.npz", "x.npy", header_only((50_000,)) + bytes(200_000))
    assert path.stat().st_size < 2000
    assert read_npz(path, ["x"])[0]["x"].shape == (50_000,)
    monkeypatch.setattr(arrays, "_MOST_BYTES", 100_000)
    with pytest.raises(DataError, match=r"a\.npz: .*GiB allowed"):
        read_npz(path, ["x"])


def test_the_limit_is_for_all_arrays_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.ones(100), y=np.ones(100))
    monkeypatch.setattr(arrays, "_MOST_BYTES", 1000)
    assert set(read_npz(path, ["x"])[0]) == {"x"}
    with pytest.raises(DataError, match="give fewer samples"):
        read_npz(path, ["x", "y"])


def test_the_limit_is_below_the_memory_of_any_machine() -> None:
    assert 0 < memory_limit() <= 16 * 2**30


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(255 - b for b in content[middle : middle + 40]) + content[middle + 40 :]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    "damage",
    [truncated, flipped, lambda _: b"", lambda _: b"not an array at all"],
    ids=["truncated", "flipped", "empty", "text"],
)
def test_a_damaged_npz_is_one_line(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=1000))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"a\.npz.*cannot be read as an \.npz archive") as caught:
        read_npz(path, ["x"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [truncated, lambda _: b"", lambda _: b"no array"], ids=["truncated", "empty", "text"]
)
def test_a_damaged_npy_is_one_line(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.ones(1000))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npy: cannot be read: No such file"):
        read_npy(tmp_path / "nowhere.npy")


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_LARGE", 0)


SAVES = {
    "a.npz": lambda path, x: np.savez(path, other=np.arange(7), x=x),
    "packed.npz": lambda path, x: np.savez_compressed(path, other=np.arange(7), x=x),
    "a.npy": np.save,
}


def large(path: Path) -> Samples:
    return read_npy(path) if path.suffix == ".npy" else read_npz(path, ["x"], path.parent)[0]["x"]


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u1", "?"])
def test_large_arrays_stay_in_their_file(tmp_path: Path, name: str, dtype: str) -> None:
    wanted = np.random.default_rng(0).integers(0, 2, (9, 3, 2)).astype(dtype)
    SAVES[name](tmp_path / name, wanted)
    found = large(tmp_path / name)
    assert isinstance(found, Rows)
    assert (found.shape, found.dtype, len(found)) == (wanted.shape, wanted.dtype, 9)
    for index in (slice(2, 5), slice(None), slice(7, 20), slice(4, 4), slice(None, None, -2)):
        assert np.array_equal(found[index], wanted[index])
    assert np.array_equal(found[np.array([5, 0, 5])], wanted[[5, 0, 5]])
    assert [path.name for path in tmp_path.iterdir()] == [name]  # the unpacked has no name


@pytest.mark.usefixtures("all_large")
def test_arrays_in_another_order_are_read_whole(tmp_path: Path) -> None:
    wanted = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "a.npy", wanted)
    assert np.array_equal(whole(read_npy(tmp_path / "a.npy")), wanted)


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("change", ["shorter", "rewritten"])
def test_a_file_that_changes_under_the_run_is_told(tmp_path: Path, name: str, change: str) -> None:
    path = tmp_path / name
    SAVES[name](path, np.ones((4, 5)))
    found = large(path)
    found[0:1]
    if change == "shorter":
        os.truncate(path, 200)
    else:
        os.utime(path, (1, 1))
    with pytest.raises(DataError, match=rf"{name}: .*run the command again"):
        found[slice(None)]


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("name", ["a.npz", "packed.npz"])
def test_a_changed_byte_of_an_archive_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    SAVES[name](path, np.random.default_rng(0).normal(size=(500, 8)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz archive"):
        large(path)


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("more", [1, 20, 500])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_nothing_is_read_beyond_a_member(tmp_path: Path, more: int, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", header_only((100 + more,)) + bytes(400))
        archive.writestr("y.npy", header_only((1000,)) + b"secret!!" * 500)
    with pytest.raises(DataError, match=r"a\.npz: .*(does not hold|cannot be read)"):
        read_npz(tmp_path / "a.npz", ["x"])
    (tmp_path / "a.npy").write_bytes(header_only((100 + more,)) + bytes(400))
    with pytest.raises(DataError, match=r"a\.npy: .*does not hold"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.usefixtures("all_large")
def test_no_more_is_unpacked_than_is_declared(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", "x.npy", header_only((1000,)) + bytes(2**24))
    found = read_npz(path, ["x"])[0]["x"]
    assert isinstance(found, OwnRows)
    assert os.fstat(found._file.fileno()).st_size == 4000
