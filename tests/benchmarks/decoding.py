"""Calibration on many JPEG: decoding against a loop of Pillow, and memory against the model's.

    python tests/benchmarks/decoding.py [--images 5000] [--loop 500] [--folder DIR]

JPEG of 500 x 375 pixels, made of noise of many frequencies as photographs are, are decoded to
224 x 224 by a loop of one process and by the package, in turn over the same files; then
`quantize --effort fast` reads all of them, and its largest memory is held against that of a run
on 32 of them. Whatever else the machine does at the time slows both ways down.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from onnxbrecq.data.images import decode_all
from onnxbrecq.recipe import Preprocess

log = logging.getLogger("decoding")
SIZE = (375, 500)
IMAGENET = Preprocess.preset("imagenet")
ROUNDS = 3
_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 224, 224] x) => (float[N, 10] y) {
    a = Conv <strides = [4, 4], kernel_shape = [7, 7], pads = [3, 3, 3, 3]> (x, w0)
    b = Relu (a)
    c = Conv <strides = [4, 4], kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (b, w1)
    d = Relu (c)
    e = GlobalAveragePool (d)
    f = Flatten (e)
    y = Gemm <transB = 1> (f, w2)
}
"""


def photograph(path: Path, generator: np.random.Generator) -> None:
    """Writes noise whose energy falls with its frequency."""
    values = np.zeros((*SIZE, 3))
    for step in (1, 4, 16, 64):
        coarse = generator.normal(size=(-(-SIZE[0] // step), -(-SIZE[1] // step), 3))
        values += np.sqrt(step) * np.kron(coarse, np.ones((step, step, 1)))[: SIZE[0], : SIZE[1]]
    pixels = np.clip(128 + 12 * values, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def loop(paths: list[Path]) -> float:
    """Images a second of what anybody would write, in one process."""
    started = time.perf_counter()
    mean, std = (np.asarray(v, np.float32) for v in (IMAGENET.mean, IMAGENET.std))
    for path in paths:
        with Image.open(path) as file:
            image = file.convert("RGB").resize((341, 256), Image.Resampling.BILINEAR)
        pixels = np.asarray(image.crop((58, 16, 282, 240)), np.float32)
        np.ascontiguousarray(((pixels / 255 - mean) / std).transpose(2, 0, 1))
    return len(paths) / (time.perf_counter() - started)


def ours(paths: list[Path]) -> float:
    """Images a second of the package, values made of each once as well."""
    started = time.perf_counter()
    found = decode_all(paths, IMAGENET, np.dtype(np.float32), "here")
    for start in range(0, len(found), 8):
        found[start : start + 8]
    return len(paths) / (time.perf_counter() - started)


def peak(model: Path, images: Path) -> int:
    """The largest memory of a quantization that reads the folder, in bytes."""
    command = [
        sys.executable, "-m", "onnxbrecq_cli.main", "quantize", str(model), "-d", str(images),
        "--preprocess", "imagenet", "--effort", "fast", "--max-memory", "2GiB", "--force",
        "--json", "-", "-q",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["memory"]["peak_bytes"])


def network(path: Path) -> None:
    """Writes a small network for these images."""
    proto, generator = onnx.parser.parse_model(_TEXT), np.random.default_rng(0)
    for name, shape in {"w0": (16, 3, 7, 7), "w1": (32, 16, 5, 5), "w2": (10, 32)}.items():
        weight = generator.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(proto, path)


def main() -> None:
    """Reads the command line, measures, and tells."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Measures decoding and its memory.")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--loop", type=int, default=500, help="of them for the loop")
    parser.add_argument("--folder", type=Path, help="where the images are kept; default: nowhere")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)) / "images"
        few = folder.with_name("few")
        generator = np.random.default_rng(0)
        for place, count in ((folder, arguments.images), (few, 32)):
            place.mkdir(parents=True, exist_ok=True)
            for index in range(len(list(place.iterdir())), count):
                photograph(place / f"{index:05d}.jpg", generator)
        paths = sorted(folder.iterdir())[: arguments.loop]
        for _ in range(ROUNDS):
            alone, together = loop(paths), ours(paths)
            log.info("loop %.0f, ours %.0f images/s: %.2fx", alone, together, together / alone)
        model = folder.with_name("network.onnx")
        network(model)
        least, most = peak(model, few), peak(model, folder)
        log.info(
            "quantize: %.2f GiB with 32 images, %.2f GiB with %d",
            least / 2**30, most / 2**30, arguments.images,
        )  # fmt: skip


if __name__ == "__main__":
    main()
