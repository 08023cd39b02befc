"""What the benchmarks measure on: models by name or path, and their samples.

A name is one of `SUBJECTS` (real models with real images, in the folder of data that
`real_models.py` describes) or of `FIXTURES`. A path is that of any ONNX file: its samples are
STEM.calib.npz and STEM.eval.npz beside it, or noise where there are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from coverage_row import random_samples
from numpy.typing import NDArray
from PIL import Image

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import load
from onnxbrecq.recipe import Preprocess

Array = NDArray[np.float32]
T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGENET = Preprocess(
    resize_short=256,
    center_crop=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@dataclass(frozen=True)
class Subject:
    """A model file, the data it takes and how its inputs are made."""

    file: str
    data: str
    preprocess: Preprocess


SUBJECTS = {
    "resnet20": Subject(
        "cifar10_resnet20.onnx", "cifar10", Preprocess(mean=IMAGENET.mean, std=IMAGENET.std)
    ),
    "resnet18": Subject(
        "cifar10_resnet18_w16.onnx", "cifar10", Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    ),
    "vit": Subject(
        "cifar10_vit_d128_l6.onnx",
        "cifar10",
        Preprocess(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    ),
    "mobilenet_v2": Subject(
        "mobilenet_v2_1.0_ptqdeq.onnx",
        "imagenet",
        replace(IMAGENET, scale=1.0, mean=(127.5,) * 3, std=(127.5,) * 3),
    ),
    "squeezenet": Subject(
        "squeezenet1.1_ncnn.onnx",
        "imagenet",
        replace(IMAGENET, scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0,) * 3, channels="BGR"),
    ),
    "menet": Subject("menet108_8x1_g3.onnx", "imagenet", IMAGENET),
    "fdmobilenet": Subject("fdmobilenet_x0.25.onnx", "imagenet", IMAGENET),
    "nanodet": Subject(
        "nanodet_m_416.onnx",
        "coco",
        Preprocess(
            resize=(416, 416),
            scale=1.0,
            mean=(103.53, 116.28, 123.675),
            std=(57.375, 57.12, 58.395),
            channels="BGR",
        ),
    ),
}


FIXTURES = {
    name: Path(__file__).parents[2] / "fixtures" / f"{name}.onnx"
    for name in ("residual", "inverted", "language")
}


def source(name: str, root: Path) -> Path:
    """The file of the model."""
    if name in SUBJECTS:
        return root / "models" / SUBJECTS[name].file
    return FIXTURES.get(name, Path(name))


def absent(name: str, root: Path) -> str | None:
    """What of the model or its data is not there, or None."""
    needed = [source(name, root)]
    if name in SUBJECTS:
        needed.append(root / SUBJECTS[name].data)
    return next((f"{path} is missing" for path in needed if not path.exists()), None)


def samples(
    name: str, root: Path, *, calibration: int, evaluation: int
) -> tuple[Dataset, Dataset | None]:
    """Calibration samples without labels, and evaluation samples (with labels if there are)."""
    path = source(name, root)
    if name in SUBJECTS:
        seen, judged, labels = _of_images(SUBJECTS[name], root, calibration, evaluation)
        reads, origin = load(path).inputs[0], SUBJECTS[name].data
        return Dataset({reads: seen}, None, origin), Dataset({reads: judged}, labels, origin)
    beside = [path.with_name(f"{path.stem}.{kind}.npz") for kind in ("calib", "eval")]
    if not all(file.exists() for file in beside):
        return random_samples(load(path), calibration), None
    inputs, labelled = (dict(np.load(file)) for file in beside)
    classes = labelled.pop("labels", None)
    return (
        Dataset(inputs, None, beside[0].name).head(calibration),
        Dataset(labelled, classes, beside[1].name).head(evaluation),
    )


def _of_images(
    subject: Subject, root: Path, calibration: int, evaluation: int
) -> tuple[Array, Array, NDArray[np.int64] | None]:
    """Calibration and evaluation inputs, and labels of the latter."""
    folder, pre = root / subject.data, subject.preprocess
    if subject.data == "cifar10":
        parts = [np.load(folder / f"{kind}.npz") for kind in ("calibration", "evaluation")]
        seen, judged = (
            normalised(part["images"][:count], pre)
            for part, count in zip(parts, (calibration, evaluation), strict=True)
        )
        return seen, judged, parts[1]["labels"][:evaluation].astype(np.int64)
    if subject.data == "imagenet":
        lines = (folder / "evaluation_labels.txt").read_text(encoding="utf-8").split("\n")
        pairs = spread([line.split() for line in lines if line.strip()], evaluation)
        seen = images(spread(files(folder / "calibration"), calibration), pre)
        judged = images([folder / "evaluation" / Path(file).name for file, _ in pairs], pre)
        return seen, judged, np.array([int(index) for _, index in pairs], np.int64)
    paths = files(folder / "images")
    half = len(paths) // 2
    seen = images(paths[: min(half, calibration)], pre)
    return seen, images(paths[half:][:evaluation], pre), None


def files(folder: Path) -> list[Path]:
    """The images of `folder` by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def spread(items: list[T], count: int) -> list[T]:
    """`count` of `items`, evenly spaced: files in order of their names may be sorted by class."""
    if count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


def images(paths: Sequence[Path], pre: Preprocess) -> Array:
    """The images as model inputs, [N, 3, H, W]."""
    return np.concatenate([normalised(np.asarray(framed(p, pre))[None], pre) for p in paths])


def framed(path: Path, pre: Preprocess) -> Image.Image:
    """The image, resized and cropped; letterboxed where an exact size is wanted."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    if pre.resize is not None:
        height, width = pre.resize
        factor = min(height / image.height, width / image.width)
        size = (round(image.width * factor), round(image.height * factor))
        canvas = Image.new("RGB", (width, height))
        corner = ((width - size[0]) // 2, (height - size[1]) // 2)
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR), corner)
        return canvas
    if pre.resize_short is not None:
        factor = pre.resize_short / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.BILINEAR)
    if pre.center_crop is not None:
        height, width = pre.center_crop
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image


def normalised(pixels: NDArray[np.uint8], pre: Preprocess) -> Array:
    """[N, H, W, 3] RGB bytes as model inputs, [N, 3, H, W]."""
    if pre.channels == "BGR":
        pixels = pixels[..., ::-1]
    values = pixels.astype(np.float32) * np.float32(pre.scale)
    values = (values - np.array(pre.mean, np.float32)) / np.array(pre.std, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
