from pathlib import Path

import onnx
import onnx.parser
import pytest

from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def saved(text: str, path: Path) -> Model:
    onnx.save(onnx.parser.parse_model(HEADER + text), path)
    return load(path)


@pytest.fixture
def single(tmp_path: Path) -> Model:
    """One float input `image` [N, 3, 4, 6]."""
    return saved("g (float[N, 3, 4, 6] image) => (float[N, 3, 4, 6] y) { y = Relu(image) }",
                 tmp_path / "single.onnx")  # fmt: skip


@pytest.fixture
def pair(tmp_path: Path) -> Model:
    """Two inputs: `x` float [N, length, 2] with a symbolic length, and `ids` int64 [N, 3]."""
    return saved(
        """g (float[N, length, 2] x, int64[N, 3] ids) => (float[N, length, 2] y, int64[N, 3] z)
        { y = Relu(x)  z = Identity(ids) }""",
        tmp_path / "pair.onnx",
    )


@pytest.fixture
def bytes_in(tmp_path: Path) -> Model:
    """One uint8 input `pixels` [N, 4, 6, 3]."""
    return saved(
        "g (uint8[N, 4, 6, 3] pixels) => (float[N, 4, 6, 3] y) { y = Cast <to = 1> (pixels) }",
        tmp_path / "bytes.onnx",
    )
