"""Image files to model inputs, as `Preprocess` says.

    value = (pixel * scale - mean) / std        per channel, pixel in 0 ... 255

Files are decoded once, on all cores, and kept as bytes in a file (`onnxbrecq.data.rows`); values
are made of them whenever samples are read, so that never all of them are in memory. Sizes follow
torchvision: resizing the short side truncates the long one, a centre crop rounds its corner half to
even.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxbrecq.data.arrays import Array
from onnxbrecq.data.dataset import Index
from onnxbrecq.data.rows import OwnRows, Rows
from onnxbrecq.errors import DataError
from onnxbrecq.progress import Progress, silent
from onnxbrecq.recipe import Preprocess

Pixels = NDArray[np.uint8]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})

_DEEP_MODES = ("I", "F")  # more than 8 bits a channel: converting to RGB would clip them


@dataclass(frozen=True, eq=False)
class Images:
    """Samples of decoded images, made when they are read."""

    pixels: Rows
    convert: Callable[[Pixels], Array]
    sample: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W], or [N, H, W, C]."""
        return (len(self.pixels), *self.sample)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Index) -> Array:
        return self.convert(self.pixels[index])


def decode_all(
    paths: Sequence[Path],
    preprocess: Preprocess,
    dtype: np.dtype[np.generic],
    origin: str,
    *,
    wanted: Sequence[int | None] | None = None,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Images:
    """The images as samples of type `dtype`, in the order of `paths`.

    Args:
        paths: their files.
        preprocess: what becomes of them.
        dtype: of the model's input.
        origin: what the user called them.
        wanted: shape of the model's input, with the batch; None: not known.
        folder: where they lie decoded; None: that of temporary files.
        progress: told of them.

    Raises:
        DataError: an image cannot be decoded, or comes out in another size than the first, or than
            the model wants; the disk is full.
    """
    convert = _converter(preprocess, dtype, origin)
    first = _pixels(paths[0], preprocess)
    sample = convert(first[None]).shape[1:]
    if wanted is not None:
        _check_shape(sample, tuple(wanted[1:]), preprocess, f"{origin}: {paths[0].name}")
    pixels = OwnRows((len(paths), *first.shape), np.dtype(np.uint8), folder)

    def fill(index: int) -> None:
        image = _pixels(paths[index], preprocess)
        if image.shape != first.shape:
            height, width = image.shape[:2]
            raise DataError(
                f"{paths[index]}: comes out as {width}x{height}, but {paths[0].name} as "
                f"{first.shape[1]}x{first.shape[0]}; set resize or center_crop in [data.preprocess]"
            )
        pixels.write(index, image)

    with _pool() as pool:
        for done, _ in enumerate(pool.map(fill, range(len(paths))), start=1):
            progress("decode", done, len(paths))
    return Images(pixels, convert, sample, np.dtype(dtype))


def _check_shape(
    found: tuple[int, ...], wanted: tuple[int | None, ...], preprocess: Preprocess, origin: str
) -> None:
    """Refuses a sample that is not what the model takes, and says which keys would make it so."""
    if _fits(found, wanted):
        return
    told = f"{origin} becomes {list(found)}, but a sample of the model's input is " + (
        f"[{', '.join('any' if size is None else str(size) for size in wanted)}]"
    )
    if len(wanted) != 3:
        raise DataError(f"{told}; images make samples of three dimensions: give an .npz")
    other = "NHWC" if preprocess.layout == "NCHW" else "NCHW"
    axes = {"NCHW": (0, 1, 2), "NHWC": (2, 0, 1)}
    layouts = [
        layout for layout in (preprocess.layout, other)
        if wanted[axes[layout][0]] in (3, None)
    ]  # fmt: skip
    if not layouts:
        raise DataError(f"{told}; images are made of three channels: give an .npz")
    _, high, wide = (wanted[axis] for axis in axes[layouts[0]])
    keys = [f'layout = "{other}"'] if layouts[0] == other else []
    height, width = (found[axis] for axis in axes[preprocess.layout][1:])
    if not _fits((height, width), (high, wide)):
        keys += _size_keys(preprocess, (high or height, wide or width))
    raise DataError(f"{told}; set {' and '.join(keys)} in [data.preprocess]")


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(
        want in (None, have) for have, want in zip(found, wanted, strict=True)
    )


def _size_keys(preprocess: Preprocess, size: tuple[int, int]) -> list[str]:
    """The keys that make images of that height and width, in the manner of `preprocess`."""
    crop = preprocess.center_crop
    if crop is None:
        return [f"{'letterbox' if preprocess.letterbox else 'resize'} = {list(size)}"]
    keys = [f"center_crop = {list(size)}"]
    if preprocess.resize_short is not None:
        short = round(preprocess.resize_short * min(size) / min(crop))
        keys.insert(0, f"resize_short = {short}")
    return keys


@contextmanager
def _pool() -> Iterator[Executor]:
    """Threads for all cores; what has not begun when an error ends the block never begins."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(path: Path, preprocess: Preprocess) -> Pixels:
    """The resized and cropped image, RGB. [H, W, 3]"""
    try:
        with Image.open(path) as file:
            if file.mode.split(";")[0] in _DEEP_MODES:
                raise DataError(
                    f"{path}: has more than 8 bits a channel ({file.mode}); save it with 8"
                )
            image = file.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is too large an image ({error})") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be decoded as an image ({error})") from error
    framed = _letterboxed(_resized(image, preprocess), preprocess)
    return np.asarray(_cropped(framed, preprocess, path))


def _resized(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    short = preprocess.resize_short
    if short is not None and short != min(image.size):
        width, height = image.size
        if width <= height:
            size = (short, max(short * height // width, 1))
        else:
            size = (max(short * width // height, 1), short)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if preprocess.resize is not None:
        height, width = preprocess.resize
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image


def _letterboxed(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The image scaled into the box, in the middle; an odd pixel is left free on the far side."""
    if preprocess.letterbox is None:
        return image
    height, width = preprocess.letterbox
    factor = min(height / image.height, width / image.width)
    size = (max(round(image.width * factor), 1), max(round(image.height * factor), 1))
    canvas = Image.new("RGB", (width, height), (preprocess.fill,) * 3)
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR), corner)
    return canvas


def _cropped(image: Image.Image, preprocess: Preprocess, path: Path) -> Image.Image:
    if preprocess.center_crop is None:
        return image
    height, width = preprocess.center_crop
    if image.width < width or image.height < height:
        raise DataError(
            f"{path}: is {image.width}x{image.height} after resizing, smaller than the "
            f"center_crop of {width}x{height}; set resize_short in [data.preprocess]"
        )
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _converter(
    preprocess: Preprocess, dtype: np.dtype[np.generic], origin: str
) -> Callable[[Pixels], Array]:
    """Pixels [N, H, W, 3] to samples of the model's type and layout."""
    plain = (preprocess.scale, preprocess.mean, preprocess.std) == (1, (0, 0, 0), (1, 1, 1))
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(
            f"{origin}: the model's input is {dtype}, which images cannot be; give an .npz"
        )
    if dtype == np.uint8 and not plain:
        raise DataError(
            f"{origin}: the model's input is uint8, so that scale must be 1, mean 0 and std 1 "
            "in [data.preprocess]"
        )
    first = preprocess.layout == "NCHW"
    shape = (3, 1, 1) if first else (3,)
    mean, std = (
        np.asarray(v, np.float32).reshape(shape) for v in (preprocess.mean, preprocess.std)
    )

    def convert(pixels: Pixels) -> Array:
        ordered = pixels[..., ::-1] if preprocess.channels == "BGR" else pixels
        ordered = ordered.transpose(0, 3, 1, 2) if first else ordered
        if dtype == np.uint8:
            return np.ascontiguousarray(ordered)
        values = ordered.astype(np.float32, order="C")
        values *= np.float32(preprocess.scale)
        values -= mean
        values /= std
        return values.astype(dtype, copy=False)

    return convert
