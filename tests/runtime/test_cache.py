"""Activations in memory and in files are the same activations; memory is bounded."""

import errno
from pathlib import Path

import numpy as np
import pytest

from onnxbrecq.data.dataset import Dataset, Picked
from onnxbrecq.errors import OutputError
from onnxbrecq.runtime import cache
from onnxbrecq.runtime.cache import ActivationCache, Storage, Stored

FLOAT = np.dtype(np.float32)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def kept(storage: Storage, array: np.ndarray, rows: int | None = None) -> Stored:
    """`array`, appended in batches of 3."""
    samples = storage.new(len(array) if rows is None else rows, array.shape[1:], array.dtype)
    for start in range(0, len(array), 3):
        storage.append(samples, array[start : start + 3])
    return samples


@pytest.mark.parametrize("limit", [None, 0], ids=["memory", "file"])
@pytest.mark.parametrize("shape", [(7, 4, 5, 6), (7, 4, 5), (7,)], ids=str)
@pytest.mark.parametrize(
    "index", [slice(None), slice(2, 5), np.array([6, 0, 6])], ids=["all", "slice", "places"]
)
def test_what_was_stored_is_read(
    tmp_path: Path, limit: int | None, shape: tuple[int, ...], index: slice | np.ndarray
) -> None:
    array = values(*shape)
    samples = kept(Storage(limit, tmp_path), array)
    assert (samples.shape, samples.dtype, len(samples)) == (shape, array.dtype, 7)
    np.testing.assert_array_equal(samples[index], array[index])
    assert samples[index].strides == kept(Storage(), array)[index].strides


def test_feature_maps_lie_channels_last() -> None:
    samples = kept(Storage(), values(7, 4, 5, 6))
    assert samples[:].transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("limit", [None, 0], ids=["memory", "file"])
def test_more_samples_than_announced(tmp_path: Path, limit: int | None) -> None:
    array = values(20, 4)
    np.testing.assert_array_equal(kept(Storage(limit, tmp_path), array, rows=2)[:], array)


def test_what_does_not_fit_goes_to_a_file_until_others_are_let_go(tmp_path: Path) -> None:
    storage = Storage(100, tmp_path)
    first = storage.new(2, (10,), FLOAT)
    assert [storage.new(2, (10,), FLOAT).held for _ in range(2)] == [0, 0]
    assert first.held == 80
    del first
    assert storage.new(2, (10,), FLOAT).held == 80


def test_the_cache_lets_go_of_what_nobody_needs() -> None:
    storage = Storage(80)
    floats = ActivationCache({"x": values(2, 3)})
    floats.advance({"y": kept(storage, values(2, 10))}, needed=["y"])
    with pytest.raises(KeyError):
        floats.select(["x"])
    floats.advance({}, needed=[])
    assert storage.new(2, (10,), FLOAT).held == 80


@pytest.mark.parametrize("limit", [None, 0], ids=["memory", "file"])
def test_a_data_set_is_kept_whole(tmp_path: Path, limit: int | None) -> None:
    data = Dataset({"x": values(40, 3, 4, 5), "y": values(40, 2)}, np.arange(40), "here")
    found = Storage(limit, tmp_path).kept(data)
    assert (found.origin, len(found)) == ("here", 40)
    for name, array in data.inputs.items():
        np.testing.assert_array_equal(found.inputs[name][:], array)
        assert np.shares_memory(found.inputs[name][:], array) == (limit is None)


def test_what_lies_elsewhere_stays_there(tmp_path: Path) -> None:
    samples = Picked(values(4, 2), np.array([3, 1]))
    assert Storage(0, tmp_path).kept(Dataset({"x": samples})).inputs["x"] is samples


def test_files_have_no_name(tmp_path: Path) -> None:
    samples = kept(Storage(0, tmp_path), values(5, 4))
    assert list(tmp_path.iterdir()) == []
    assert len(samples) == 5


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = Storage(0, tmp_path)
    monkeypatch.setattr(cache, "_write", full)
    with pytest.raises(OutputError, match=r"No space left on device.*--work-dir"):
        kept(storage, values(5, 4))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        kept(Storage(0, tmp_path / "nowhere"), values(5, 4))


@pytest.mark.parametrize(
    "part",
    [values(2, 5), values(2, 4).astype(np.float64), np.float32(1)],
    ids=["shape", "type", "no-axis"],
)
def test_other_samples_are_refused(part: np.ndarray) -> None:
    storage = Storage()
    samples = kept(storage, values(2, 4))
    with pytest.raises(ValueError, match="no samples of float32"):
        storage.append(samples, np.asarray(part))
