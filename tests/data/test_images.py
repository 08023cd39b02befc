"""Pillow and numpy are the oracles: what a lossless image holds is known exactly."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxbrecq.data.images import decode_all
from onnxbrecq.errors import DataError
from onnxbrecq.recipe import Preprocess

FLOAT = np.dtype(np.float32)
UINT8 = np.dtype(np.uint8)
PLAIN = Preprocess(scale=1)


def picture(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def decoded(path: Path, preprocess: Preprocess, dtype: np.dtype = FLOAT) -> np.ndarray:
    return decode_all([path], preprocess, dtype, "here")[:][0]


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_values_are_scaled_then_normalised(tmp_path: Path, channels: str, layout: str) -> None:
    path = tmp_path / "a.png"
    pixels = picture(path, 5, 7)
    preprocess = Preprocess(
        mean=(0.1, 0.2, 0.3), std=(0.5, 2.0, 4.0), channels=channels, layout=layout  # type: ignore[arg-type]
    )  # fmt: skip
    ordered = pixels if channels == "RGB" else pixels[:, :, ::-1]
    wanted = (ordered / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 2.0, 4.0]
    if layout == "NCHW":
        wanted = wanted.transpose(2, 0, 1)
    found = decoded(path, preprocess)
    assert found.dtype == np.float32
    # float32: two roundings of values below 2 and a division, so a few units of 2**-23.
    np.testing.assert_allclose(found, wanted, atol=2**-20, rtol=0)


def test_a_uint8_input_gets_the_pixels_themselves(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 7)
    preprocess = Preprocess(scale=1, layout="NHWC")
    assert np.array_equal(decoded(tmp_path / "a.png", preprocess, UINT8), pixels)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((100, 50), (40, 20)), ((50, 100), (20, 40)), ((33, 50), (20, 30)), ((20, 30), (20, 30))],
    ids=str,
)
def test_the_short_side_is_resized(
    tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    picture(tmp_path / "a.png", *size)
    found = decoded(tmp_path / "a.png", Preprocess(resize_short=20, layout="NHWC"))
    assert found.shape == (*wanted, 3)


def test_resize_is_height_by_width_and_bilinear(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 30, 20)
    wanted = Image.fromarray(pixels).resize((11, 9), Image.Resampling.BILINEAR)
    found = decoded(tmp_path / "a.png", Preprocess(resize=(9, 11), scale=1, layout="NHWC"), UINT8)
    assert np.array_equal(found, np.asarray(wanted))


def test_the_crop_is_from_the_middle(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 10, 12)
    preprocess = Preprocess(center_crop=(4, 6), scale=1, layout="NHWC")
    assert np.array_equal(decoded(tmp_path / "a.png", preprocess, UINT8), pixels[3:7, 3:9])


@pytest.mark.parametrize(
    ("size", "inside"),
    [((10, 20), (slice(5, 15), slice(0, 20))), ((40, 20), (slice(0, 20), slice(5, 15)))],
    ids=["wide", "high"],
)
def test_a_letterbox_keeps_proportions(
    tmp_path: Path, size: tuple[int, int], inside: tuple[slice, slice]
) -> None:
    picture(tmp_path / "a.png", *size)
    box = Preprocess(letterbox=(20, 20), fill=114, scale=1, layout="NHWC")
    found = decoded(tmp_path / "a.png", box, UINT8)
    high, wide = (part.stop - part.start for part in inside)
    with Image.open(tmp_path / "a.png") as file:
        wanted = file.resize((wide, high), Image.Resampling.BILINEAR)
    assert np.array_equal(found[inside], np.asarray(wanted))
    found[inside] = 114
    assert (found == 114).all()


def test_a_nameless_file_holds_the_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 4, 4)
    (tmp_path / "files").mkdir()
    found = decode_all([tmp_path / "a.png"], PLAIN, FLOAT, "here", folder=tmp_path / "files")
    assert found.shape == (1, 3, 4, 4)
    assert list((tmp_path / "files").iterdir()) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    picture(tmp_path / "a.png", 4, 4)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match=r"samples cannot be written \(No space left"):
        decode_all([tmp_path / "a.png"], PLAIN, FLOAT, "here")


IMAGENET = Preprocess.preset("imagenet")


@pytest.mark.parametrize(
    ("preprocess", "wanted", "says"),
    [
        (IMAGENET, (1, 3, 299, 299),
         r"set resize_short = 342 and center_crop = \[299, 299\] in \[data.preprocess\]"),
        (IMAGENET, (None, 224, 224, 3), 'set layout = "NHWC" in'),
        (Preprocess.preset("tf"), (None, 3, 192, 192),
         r'set layout = "NCHW" and resize_short = 219 and center_crop = \[192, 192\]'),
        (Preprocess.preset("letterbox"), (1, 3, 416, None), r"set letterbox = \[416, 640\]"),
        (Preprocess(), (None, 3, 32, 32), r"set resize = \[32, 32\]"),
        (IMAGENET, (None, 1, 28, 28), "three channels: give an .npz"),
        (IMAGENET, (None, 150528), "three dimensions: give an .npz"),
    ],
    ids=["size", "layout", "both", "box", "no-size", "grey", "flat"],
)  # fmt: skip
def test_what_would_make_images_fit_is_said(
    tmp_path: Path, preprocess: Preprocess, wanted: tuple[int | None, ...], says: str
) -> None:
    picture(tmp_path / "a.png", 300, 400)
    with pytest.raises(DataError, match=f"^here: a.png becomes .*{says}"):
        decode_all([tmp_path / "a.png"], preprocess, FLOAT, "here", wanted=wanted)


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    pixels = [picture(path, 4, 4, seed) for seed, path in enumerate(paths)]
    found = decode_all(paths, Preprocess(scale=1, layout="NHWC"), UINT8, "here")
    assert np.array_equal(found[:], np.stack(pixels))
    assert np.array_equal(found[np.array([7, 2])], np.stack([pixels[7], pixels[2]]))
    assert np.array_equal(found[3:5], np.stack(pixels[3:5]))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture(tmp_path / "rgb.png", 4, 4)
    Image.open(tmp_path / "rgb.png").convert(mode).save(path)
    assert decoded(path, PLAIN).shape == (3, 4, 4)


def deep(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)


def text(path: Path) -> None:
    path.write_text("no image")


def truncated(path: Path) -> None:
    picture(path, 40, 40)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("damage", "says"),
    [(deep, "more than 8 bits"), (text, "cannot be decoded"), (truncated, "cannot be decoded")],
)
def test_a_file_that_is_no_usable_image(tmp_path: Path, damage: object, says: str) -> None:
    picture(tmp_path / "a.png", 4, 4)
    damage(tmp_path / "b.png")  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"b\.png: .*{says}"):
        decode_all([tmp_path / "a.png", tmp_path / "b.png"], PLAIN, FLOAT, "here")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", 40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"a\.png: is too large an image"):
        decoded(tmp_path / "a.png", PLAIN)


def test_images_of_two_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 4, 4)
    picture(tmp_path / "b.png", 4, 5)
    with pytest.raises(DataError, match=r"b\.png: comes out as 5x4, but a\.png as 4x4"):
        decode_all([tmp_path / "a.png", tmp_path / "b.png"], PLAIN, FLOAT, "here")


def test_a_crop_larger_than_the_image(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 4, 9)
    with pytest.raises(DataError, match=r"a\.png: is 9x4 after resizing, smaller than .* 8x8"):
        decoded(tmp_path / "a.png", Preprocess(center_crop=(8, 8)))


@pytest.mark.parametrize(
    ("dtype", "preprocess", "says"),
    [
        (UINT8, Preprocess(), "scale must be 1"),
        (np.dtype(np.int64), PLAIN, "int64, which images cannot be"),
    ],
    ids=["scaled-bytes", "integers"],
)
def test_inputs_that_images_cannot_be(
    tmp_path: Path, dtype: np.dtype, preprocess: Preprocess, says: str
) -> None:
    picture(tmp_path / "a.png", 4, 4)
    with pytest.raises(DataError, match=f"^here: .*{says}"):
        decoded(tmp_path / "a.png", preprocess, dtype)
