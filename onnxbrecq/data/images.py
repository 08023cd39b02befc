"""Image files to model inputs, as `Preprocess` says.

    value = (pixel * scale - mean) / std        per channel, pixel in 0 ... 255

Sizes follow torchvision: resizing the short side truncates the long one, a centre crop rounds
its corner half to even.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxbrecq.data.arrays import Array, check_memory
from onnxbrecq.errors import DataError
from onnxbrecq.recipe import Preprocess

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})

_DEEP_MODES = ("I", "F")  # more than 8 bits a channel: converting to RGB would clip them


def decode_all(
    paths: Sequence[Path], preprocess: Preprocess, dtype: np.dtype[np.generic], origin: str
) -> Array:
    """All images as one array [len(paths), ...] of type `dtype`, in the order of `paths`.

    Raises:
        DataError: an image cannot be decoded, or comes out in another size than the first.
    """
    convert = _converter(preprocess, dtype, origin)
    with _pool() as pool:
        first = convert(_pixels(paths[0], preprocess))
        check_memory(first.nbytes * len(paths), origin)
        images = np.empty((len(paths), *first.shape), first.dtype)

        def fill(index: int) -> None:
            image = convert(_pixels(paths[index], preprocess))
            if image.shape != first.shape:
                raise DataError(
                    f"{paths[index]}: comes out as {list(image.shape)}, but {paths[0].name} as "
                    f"{list(first.shape)}; set resize or center_crop in [data.preprocess]"
                )
            images[index] = image

        for _ in pool.map(fill, range(len(paths))):
            pass
    return images


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


def _pixels(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
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
    return np.asarray(_cropped(_resized(image, preprocess), preprocess, path))


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
) -> Callable[[NDArray[np.uint8]], Array]:
    """Pixels [H, W, 3] to one sample of the model's type and layout."""
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
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)

    def convert(pixels: NDArray[np.uint8]) -> Array:
        ordered = pixels[:, :, ::-1] if preprocess.channels == "BGR" else pixels
        values: Array = ordered
        if dtype != np.uint8:
            values = (ordered * np.float32(preprocess.scale) - mean) / std
        if preprocess.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, dtype)

    return convert
