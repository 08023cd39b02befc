import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxbrecq.data import arrays
from onnxbrecq.data.sources import Reading, calibration, evaluation
from onnxbrecq.errors import DataError
from onnxbrecq.graph.model import Model
from onnxbrecq.recipe import Preprocess

PLAIN = Preprocess(scale=1)


def samples(count: int = 5, seed: int = 0) -> np.ndarray:
    """[count, 3, 4, 6], what `single` takes."""
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 6)).astype(np.float32)


# .npz and .npy


def test_npz_by_input_name(tmp_path: Path, pair: Model) -> None:
    x, ids = np.ones((4, 9, 2), np.float32), np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "d.npz", ids=ids, x=x)
    data = calibration(str(tmp_path / "d.npz"), pair, Reading())
    assert np.array_equal(data.inputs["x"], x)
    assert np.array_equal(data.inputs["ids"], ids)
    assert data.origin == str(tmp_path / "d.npz")


def test_labels_are_read_for_evaluation_only(tmp_path: Path, single: Model) -> None:
    source = str(tmp_path / "d.npz")
    np.savez(source, image=samples(), labels=np.arange(5))
    found = evaluation(source, single, Reading())
    assert found is not None
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert calibration(source, single, Reading()).labels is None


def test_an_array_under_another_name_is_not_taken(tmp_path: Path, single: Model) -> None:
    np.savez(tmp_path / "d.npz", data=samples(), labels=np.arange(5))
    says = r"no array 'image'; wanted: \['image'\], found: \['data', 'labels'\]"
    with pytest.raises(DataError, match=says):
        calibration(str(tmp_path / "d.npz"), single, Reading())


def test_boxes_of_detection_data(tmp_path: Path, single: Model) -> None:
    boxes = np.array([[0, 0, 4, 4], [1, 2, 3, 4], [0, 0, 1, 1]], np.float32)
    np.savez(tmp_path / "d.npz", image=samples(), boxes=boxes, classes=[5, 7, 7],
             image_index=[0, 2, 2])  # fmt: skip
    found = evaluation(str(tmp_path / "d.npz"), single, Reading())
    assert found is not None
    assert found.boxes is not None
    np.testing.assert_array_equal(found.boxes.boxes, boxes)
    assert found.boxes.head(1).classes.tolist() == [5]
    twice = found.boxes.at(np.array([2, 0, 2]))
    assert twice.classes.tolist() == [7, 7, 5, 7, 7]
    assert twice.image_index.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": None}, "no array 'classes'"),
        ({"boxes": np.ones((1, 5))}, "left, top, right, bottom for each box"),
        ({"boxes": np.array([[3.0, 0, 1, 1]])}, "box 0 is"),
        ({"boxes": np.array([[np.nan, 0, 1, 1]])}, "box 0 is"),
        ({"classes": np.array([0.5])}, "give an integer for each"),
        ({"image_index": np.array([99])}, "image_index runs from 99 to 99"),
    ],
    ids=["missing", "columns", "order", "nan", "classes", "index"],
)
def test_boxes_that_do_not_fit(
    tmp_path: Path, single: Model, change: dict[str, np.ndarray | None], says: str
) -> None:
    given = {"boxes": np.array([[0.0, 0, 1, 1]]), "classes": np.array([1]),
             "image_index": np.array([0]), **change}  # fmt: skip
    arrays = {name: array for name, array in given.items() if array is not None}
    np.savez(tmp_path / "d.npz", image=samples(), **arrays)
    with pytest.raises(DataError, match=says):
        evaluation(str(tmp_path / "d.npz"), single, Reading())


def test_npy(tmp_path: Path, single: Model) -> None:
    np.save(tmp_path / "d.npy", samples())
    data = calibration(str(tmp_path / "d.npy"), single, Reading())
    assert np.array_equal(data.inputs["image"], samples())


def test_an_array_without_a_name_fits_no_model_with_two_inputs(tmp_path: Path, pair: Model) -> None:
    np.save(tmp_path / "d.npy", samples())
    with pytest.raises(DataError, match=r"has the inputs \['x', 'ids'\]"):
        calibration(str(tmp_path / "d.npy"), pair, Reading())


# Beside the model


def test_data_beside_the_model_is_found(tmp_path: Path, single: Model) -> None:
    np.savez(tmp_path / "single.calib.npz", image=samples(4))
    np.savez(tmp_path / "single.eval.npz", image=samples(6), labels=np.zeros(6, np.int64))
    found = evaluation(None, single, Reading())
    assert found is not None
    assert (len(calibration(None, single, Reading())), len(found)) == (4, 6)


def test_no_data_beside_the_model(single: Model) -> None:
    assert calibration(None, single, Reading()) is None
    assert evaluation(None, single, Reading()) is None


@pytest.mark.parametrize("source", ["nowhere.npz", "nowhere", "a:b:c", ""])
def test_a_source_that_is_not_there(single: Model, source: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for read in (calibration, evaluation):
        with pytest.raises(DataError, match=r"no such file|neither images"):
            read(source, single, Reading())


def test_a_file_of_another_kind(tmp_path: Path, single: Model) -> None:
    (tmp_path / "d.csv").write_text("1,2,3")
    with pytest.raises(DataError, match=r"d\.csv: is no data that can be read; give an \.npz"):
        calibration(str(tmp_path / "d.csv"), single, Reading())


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def fill(folder: Path, names: list[str]) -> np.ndarray:
    """Images of 4 x 6 in `folder`; their pixels [len(names), 3, 4, 6]."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 4, 6, 3), np.uint8)
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    return pixels.transpose(0, 3, 1, 2)


def test_a_folder_of_images_in_the_order_of_names(folder: Path, single: Model) -> None:
    pixels = fill(folder, ["b.png", "a.PNG", "c.bmp"])
    (folder / ".hidden.png").write_text("no image")
    (folder / "notes.md").write_text("no image")
    data = calibration(str(folder), single, Reading(PLAIN))
    assert np.array_equal(data.inputs["image"][:], pixels[[1, 0, 2]].astype(np.float32))


def test_images_need_to_be_told_how(folder: Path, single: Model) -> None:
    fill(folder, ["a.png"])
    with pytest.raises(DataError, match=r"images need --preprocess .*imagenet.*preprocess\]"):
        calibration(str(folder), single, Reading())


def test_images_that_do_not_fit_the_input(folder: Path, single: Model) -> None:
    fill(folder, ["a.png"])
    says = r"a.png becomes \[3, 2, 2\], .* is \[3, 4, 6\]; set resize = \[4, 6\] in \[data"
    with pytest.raises(DataError, match=says):
        calibration(str(folder), single, Reading(Preprocess(resize=(2, 2))))


def test_a_folder_of_images_for_a_uint8_input(folder: Path, bytes_in: Model) -> None:
    pixels = fill(folder, ["a.png", "b.png"])
    data = calibration(str(folder), bytes_in, Reading(Preprocess(scale=1, layout="NHWC")))
    assert np.array_equal(data.inputs["pixels"][:], pixels.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("named", ["cat/a.png", "a.png"])
def test_images_in_folders_of_the_folder(folder: Path, single: Model, named: str) -> None:
    (folder / "cat").mkdir()
    (folder / "dog").mkdir()
    pixels = fill(folder, ["dog/b.png", "cat/a.png"])
    (folder / "labels.txt").write_text(f"dog/b.png 1\n{named} 0\n")
    data = evaluation(str(folder), single, Reading(PLAIN))
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    assert np.array_equal(data.inputs["image"][:], pixels[[1, 0]].astype(np.float32))


@pytest.mark.parametrize("place", ["pictures/labels.txt", "pictures_labels.txt"])
def test_labels_of_a_folder(folder: Path, single: Model, place: str) -> None:
    fill(folder, ["a b.png", "c.png"])
    (folder.parent / place).write_text("c.png 7\n\na b.png\t3\nnot_here.png 1\n")
    data = evaluation(str(folder), single, Reading(PLAIN))
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [3, 7]


def test_labels_beside_a_folder_given_relatively(
    folder: Path, single: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, ["a.png"])
    (folder.parent / "pictures_labels.txt").write_text("a.png 2\n")
    monkeypatch.chdir(folder)
    data = evaluation(".", single, Reading(PLAIN))
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [2]


def test_a_folder_without_labels_is_evaluated_without(folder: Path, single: Model) -> None:
    fill(folder, ["a.png"])
    data = evaluation(str(folder), single, Reading(PLAIN))
    assert data is not None
    assert data.labels is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.png 1\n", r"no line for 'b\.png' \(1 of 2 files"),
        ("a.png cat\n", "line 1: want `name label`"),
        ("a.png 1\nb.png\n", "line 2: want `name label`"),
        ("a.png 1\nb.png -1\n", "line 2: want `name label`"),
        ("a.png 1\nb.png 2\na.png 3\n", r"line 3: 'a\.png' has two different labels"),
    ],
    ids=["missing", "word", "no-label", "negative", "contradiction"],
)
def test_labels_that_cannot_be_used(folder: Path, single: Model, text: str, says: str) -> None:
    fill(folder, ["a.png", "b.png"])
    (folder / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labels\.txt: .*{says}"):
        evaluation(str(folder), single, Reading(PLAIN))


def test_a_folder_of_arrays_that_are_samples_or_batches(folder: Path, single: Model) -> None:
    wanted = samples(4)
    np.save(folder / "a.npy", wanted[0])
    np.save(folder / "b.npy", wanted[1:3])
    np.save(folder / "c.npy", wanted[3:])
    data = calibration(str(folder), single, Reading())
    assert np.array_equal(data.inputs["image"], wanted)


def test_arrays_of_a_folder_that_are_not_alike(folder: Path, single: Model) -> None:
    np.save(folder / "a.npy", samples()[0])
    np.save(folder / "b.npy", samples()[0, :, :2])
    with pytest.raises(DataError, match=r"b\.npy: samples are float32 \[3, 2, 6\], but those of a"):
        calibration(str(folder), single, Reading())


def test_a_folder_is_bounded(folder: Path, single: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        np.save(folder / f"{index}.npy", samples()[0])
    monkeypatch.setattr(arrays, "_MOST_BYTES", 3 * samples()[0].nbytes)
    with pytest.raises(DataError, match="pictures: its arrays would take"):
        calibration(str(folder), single, Reading())


@pytest.mark.parametrize(
    ("names", "says"),
    [([], "neither images nor"), (["a.png", "b.npy"], "both images and")],
    ids=["empty", "mixed"],
)
def test_a_folder_of_no_one_kind(folder: Path, single: Model, names: list[str], says: str) -> None:
    for name in names:
        (folder / name).touch()
    with pytest.raises(DataError, match=f"pictures: holds {says}"):
        calibration(str(folder), single, Reading(PLAIN))


# module:function


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the working folder with the function `feed`, whose body is the parameter."""
    name = re.sub(r"\W", "_", request.node.name)
    body = "\n".join(f"    {line}" for line in request.param.splitlines())
    (tmp_path / f"{name}.py").write_text(f"import numpy as np\ndef feed():\n{body}\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    return name


ARRAYS = "x = np.ones((3, 4, 6), np.float32)"


@pytest.mark.parametrize(
    "module",
    [
        f"{ARRAYS}\nreturn [x, x, x]",
        f"{ARRAYS}\nreturn [x[np.newaxis], np.stack([x, x])]",
        f"{ARRAYS}\nreturn np.stack([x, x, x])",
        f"{ARRAYS}\nfor _ in range(3):\n    yield {{'image': x}}",
        f"{ARRAYS}\nreturn {{'image': np.stack([x, x, x])}}",
    ],
    ids=["samples", "batches", "array", "generator-of-feeds", "one-feed"],
    indirect=True,
)
def test_a_function_gives_samples_or_batches(single: Model, module: str) -> None:
    data = calibration(f"{module}:feed", single, Reading())
    assert np.array_equal(data.inputs["image"], np.ones((3, 3, 4, 6), np.float32))
    assert data.origin == f"{module}:feed"


@pytest.mark.parametrize(
    "module",
    [
        f"{ARRAYS}\nfor n in (1, 2):\n"
        "    yield {'image': np.stack([x] * n), 'boxes': np.array([[0, 0, n, n]]),\n"
        "           'classes': np.array([n]), 'image_index': np.array([n - 1])}"
    ],
    indirect=True,
)
def test_a_function_gives_boxes_of_each_item(single: Model, module: str) -> None:
    """An item's image_index counts from its own first sample."""
    data = evaluation(f"{module}:feed", single, None)
    assert data is not None
    assert data.boxes is not None
    assert data.boxes.image_index.tolist() == [0, 2]
    assert data.boxes.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 2, 2]]


@pytest.mark.parametrize(
    "module", [f"{ARRAYS}\nreturn [{{'image': x, 'labels': i}} for i in (4, 2)]"], indirect=True
)
def test_a_function_gives_labels(single: Model, module: str) -> None:
    data = evaluation(f"{module}:feed", single, Reading())
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [4, 2]


LOADER = """import torch
x = torch.arange(5 * 72, dtype=torch.float32).reshape(5, 3, 4, 6).requires_grad_()
pairs = torch.utils.data.TensorDataset(x, torch.arange(5))
return torch.utils.data.DataLoader(pairs, batch_size=2)"""


@pytest.mark.parametrize("module", [LOADER], ids=["loader"], indirect=True)
@pytest.mark.parametrize("name", ["feed", "loader"])
def test_a_loader_of_torch(single: Model, module: str, name: str) -> None:
    """What a function returns, or the loader itself; tensors, labels behind them."""
    with Path(f"{module}.py").open("a") as file:
        file.write("loader = feed()\n")
    data = evaluation(f"{module}:{name}", single, Reading())
    assert data is not None
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    wanted = np.arange(5 * 72, dtype=np.float32).reshape(5, 3, 4, 6)
    assert np.array_equal(data.inputs["image"][:], wanted)


@pytest.mark.parametrize(
    "module", ["return [(np.ones((4, 9, 2), np.float32), np.zeros((4, 3), np.int64))]"],
    indirect=True,
)  # fmt: skip
def test_tuples_are_in_the_order_of_the_inputs(pair: Model, module: str) -> None:
    data = calibration(f"{module}:feed", pair, Reading())
    assert data is not None
    assert {name: array.shape for name, array in data.inputs.items()} == {
        "x": (4, 9, 2), "ids": (4, 3)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("return [(np.ones(2), np.ones(2), np.ones(2))]", r"yields 3 tensors, .* \['image'\]"),
        ("raise KeyError('lost')", "raised KeyError: 'lost'"),
        ("return 3", "returned int"),
        ("return []", "returned no samples"),
        ("return ['text']", "shape|<U4"),
        (f"{ARRAYS}\nreturn [{{'picture': x}}]", r"wanted: \['image'\], found: \['picture'\]"),
        (f"{ARRAYS}\nreturn [x, x[:1]]", "yields 'image' as .* and .*alike"),
        (f"{ARRAYS}\nreturn [x.astype(float)]", "is float64, but the model's input is float32"),
    ],
    ids=["tuple", "raises", "no-iterable", "nothing", "text", "name", "unlike", "type"],
    indirect=["module"],
)
def test_a_function_that_does_not_fit(single: Model, module: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"{module}:feed: .*({says})"):
        calibration(f"{module}:feed", single, Reading())


@pytest.mark.parametrize("module", ["return []"], indirect=True)
def test_a_function_that_is_not_there(single: Model, module: str) -> None:
    with pytest.raises(DataError, match="has no function 'food'"):
        calibration(f"{module}:food", single, Reading())
    with pytest.raises(DataError, match="has no function 'number'"):
        calibration(f"{module}:number", single, Reading())


def test_a_module_that_cannot_be_imported(single: Model) -> None:
    with pytest.raises(DataError, match=r"'no_such_module' cannot be imported \(ModuleNotFound"):
        calibration("no_such_module:feed", single, Reading())


@pytest.mark.parametrize(
    "module", [f"{ARRAYS}\nwhile True:\n    yield x"], ids=["endless"], indirect=True
)
def test_an_endless_generator_is_bounded(
    single: Model, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_MOST_BYTES", 100_000)
    with pytest.raises(DataError, match="give fewer samples"):
        calibration(f"{module}:feed", single, Reading())
