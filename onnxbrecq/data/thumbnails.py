"""Samples as small pictures, where they look like images: [3, H, W], [H, W, 3], or one channel."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxbrecq.data.dataset import Dataset

_SIDE = 96  # pixels
_SMALLEST = 8  # less is no image


def thumbnails(data: Dataset, count: int) -> tuple[str, ...]:
    """Some samples, evenly spread, as `data:` addresses of JPEGs; empty if they are no images.

    Each channel is stretched to its range over the samples shown, so that normalisation drops out.
    """
    spread = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(np.intp))
    for samples in data.inputs.values():
        channels_last = _as_images(samples.shape)
        if channels_last is None or samples.dtype.kind not in "fiu":
            continue
        images = samples[spread].astype(np.float32)
        images = images if channels_last else np.moveaxis(images, 1, -1)
        low = images.min(axis=(0, 1, 2), keepdims=True)
        high = images.max(axis=(0, 1, 2), keepdims=True)
        pixels = (images - low) / np.maximum(high - low, 1e-12) * 255
        return tuple(_encoded(image) for image in np.rint(pixels).astype(np.uint8))
    return ()


def _as_images(shape: tuple[int, ...]) -> bool | None:
    """Whether channels come last; None for what is no image."""
    if len(shape) != 4:
        return None
    for channels, sides, last in ((shape[1], shape[2:], False), (shape[3], shape[1:3], True)):
        if channels in (1, 3) and min(sides) >= _SMALLEST:
            return last
    return None


def _encoded(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    enlarged = min(image.size) * 2 <= _SIDE  # small pictures keep their pixels
    scale = _SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    buffer = io.BytesIO()
    image.resize((size[0], size[1]), resampling).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
