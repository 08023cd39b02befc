"""Samples out of nothing: what distillation starts from, and sequences of token ids.

Images are *dead leaves*: shapes of many sizes and one colour each, one over the other, under a veil
of noise whose energy falls with its frequency. Edges, occlusion and spectrum are those of
photographs, and networks trained on photographs answer to them (Baradad et al., Learning to See by
Looking at Noise, NeurIPS 2021).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]

_SHAPES = (20, 150)  # of an image: at least, at most
_RADII = (0.03, 0.7)  # of a shape, in shares of the longer side
_CORNERS = (3, 7)
_LIGHT, _TINT = 60.0, 30.0  # deviations of a shape's brightness, and of its channels from that
_NOISE = (3.0, 20.0)  # deviation of the veil
_FALL = (0.7, 1.3)  # its amplitude falls with this power of the frequency


def dead_leaves(count: int, height: int, width: int, channels: int, seed: int) -> Array:
    """Images [count, channels, height, width], each channel with mean 0 and deviation 1 over all.

    Channels beyond three are noise.
    """
    generator = np.random.default_rng(seed)
    images = np.empty((count, channels, height, width), np.float32)
    for image in images:
        colour = _leaves(height, width, generator).transpose(2, 0, 1)
        colour = colour.mean(axis=0, keepdims=True) if channels == 1 else colour
        image[:3] = colour[:channels] + _veil(height, width, generator)
        image[3:] = generator.normal(128, _LIGHT, image[3:].shape)
    np.clip(images, 0, 255, out=images)
    images -= images.mean(axis=(0, 2, 3), keepdims=True)
    images /= np.maximum(images.std(axis=(0, 2, 3), keepdims=True), 1)
    return images


def tokens(shape: tuple[int, ...], vocabulary: int, seed: int) -> NDArray[np.int64]:
    """Ids from 0 to `vocabulary` - 1, each as likely as any other."""
    return np.random.default_rng(seed).integers(0, vocabulary, shape)


def noise(shape: tuple[int, ...], seed: int) -> Array:
    """Unit Gaussians."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _leaves(height: int, width: int, generator: np.random.Generator) -> Array:
    """Shapes one over the other, [height, width, 3] in 0 ... 255."""
    image = Image.new("RGB", (width, height), _colour(generator))
    draw = ImageDraw.Draw(image)
    least, most = _RADII
    for _ in range(int(generator.integers(*_SHAPES))):
        # Radii fall off with the square: every scale covers as much of the image as any other.
        radius = max(height, width) / (1 / most + generator.random() * (1 / least - 1 / most))
        across, down = radius * generator.uniform(0.3, 1, 2)
        left, top = generator.random() * width, generator.random() * height
        if generator.integers(3) == 0:
            box = (left - across, top - down, left + across, top + down)
            draw.ellipse(box, fill=_colour(generator))
            continue
        turns = 2 * np.pi * np.sort(generator.random(int(generator.integers(*_CORNERS))))
        corners = zip(left + across * np.cos(turns), top + down * np.sin(turns), strict=True)
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=_colour(generator))
    return np.asarray(image, np.float32)


def _colour(generator: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = generator.normal(128, _LIGHT) + generator.normal(0, _TINT, 3)
    return _byte(red), _byte(green), _byte(blue)


def _byte(value: float) -> int:
    return int(min(max(value, 0), 255))


def _veil(height: int, width: int, generator: np.random.Generator) -> Array:
    """Noise [height, width] of a spectrum as photographs have."""
    spectrum = np.fft.rfft2(generator.normal(size=(height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency = np.maximum(frequency, 1 / max(height, width))
    veil = np.fft.irfft2(spectrum / frequency ** generator.uniform(*_FALL), s=(height, width))
    deviation = generator.uniform(*_NOISE) / max(float(veil.std()), 1e-6)
    return (veil * deviation).astype(np.float32)
