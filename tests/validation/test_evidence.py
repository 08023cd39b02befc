import numpy as np
import pytest

from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.data.thumbnails import thumbnails
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import target_by_name
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe
from onnxbrecq.report.evidence import Evidence
from onnxbrecq.validation.evidence import gather


@pytest.fixture
def network() -> Model:
    """Two convolutions and a classifier."""
    import onnx  # noqa: PLC0415

    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] logits) {
            [one] a = Conv <pads = [1, 1, 1, 1]> (x, w0)
            [act] r = Relu (a)
            [two] b = Conv <pads = [1, 1, 1, 1]> (r, w1)
            [act2] c = Relu (b)
            [pool] g = GlobalAveragePool (c)
            [flat] h = Flatten (g)
            [head] logits = Gemm <transB = 1> (h, w2)
        }
        """
    )
    random = np.random.default_rng(0)
    for name, shape in {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (5, 8)}.items():
        weight = random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return from_proto(proto)


@pytest.fixture
def images() -> Dataset:
    x = np.random.default_rng(1).normal(size=(12, 3, 8, 8)).astype(np.float32)
    return Dataset({"x": x}, None, "images.npz")


def gathered(network: Model, images: Dataset, recipe: Recipe) -> Evidence:
    """The evidence of the network rounded to nearest, beside itself at two bits."""
    points, target = find_points(network), target_by_name("ort-cpu")
    plan = calibrate(network, points, images, recipe)
    worse = calibrate(network, points, images, Recipe(weights=2))
    return gather(
        network, partition(network), emit(network, plan, target), emit(network, worse, target),
        images, threads=1,
    )  # fmt: skip


def test_errors_grow_block_by_block(network: Model, images: Dataset) -> None:
    found = gathered(network, images, Recipe(weights=8))
    assert [block.name for block in found.growth] == [b.name for b in partition(network)]
    for block in found.growth:
        assert block.after is not None
        assert block.before is not None
        assert 0 < block.after < block.before
    assert (found.samples, found.origin) == (12, "images.npz")


def test_noise_is_that_of_the_grids(network: Model, images: Dataset) -> None:
    """A step d adds d^2 / 12 at each value: 8 bits are some 40 dB below, 4 bits some 18."""
    found = gathered(network, images, Recipe(weights=4))
    noise = {layer.name: layer for layer in found.noise}
    assert list(noise) == [layer.name for layer in weight_layers(network)]
    four, eight = noise["two"].weight, noise["one"].weight
    assert four is not None
    assert eight is not None
    assert 1e-3 < four < 3e-2
    assert 1e-6 < eight < 2e-4
    assert noise["two"].data is not None
    assert found.worst[0].layer == "two"


def test_distributions_and_their_grids(network: Model, images: Dataset) -> None:
    found = gathered(network, images, Recipe(weights=4))
    layer = found.worst[0]
    assert layer.weights is not None
    assert layer.data is not None
    assert sum(layer.weights.shares) == pytest.approx(1)
    assert len(layer.data.edges) == len(layer.data.shares) + 1
    assert sum(share for _, share in layer.levels) == pytest.approx(1)
    # Each channel has 16 levels two integers apart, around its own zero point.
    integers = [integer for integer, _ in layer.levels]
    assert min(integers) < 0 < max(integers)
    assert layer.weights.edges[0] >= min(integers) - 1.5
    assert layer.low == 0  # behind a Relu
    assert layer.step is not None
    assert layer.high == pytest.approx(255 * layer.step)
    assert layer.clipped is not None
    assert 0 <= layer.clipped < 0.01


def test_weights_in_float_have_no_grid(network: Model, images: Dataset) -> None:
    found = gathered(network, images, Recipe(weights=8, activations=None))
    assert {layer.data for layer in found.noise} == {None}
    assert {layer.low for layer in found.worst} == {None}


@pytest.mark.parametrize(
    ("shape", "count"),
    [((9, 3, 16, 12), 4), ((9, 16, 12, 3), 4), ((9, 1, 16, 16), 4), ((9, 16), 0), ((9, 5, 8, 8), 0),
     ((9, 3, 2, 2), 0)],
    ids=["NCHW", "NHWC", "grey", "vectors", "five channels", "tiny"],
)  # fmt: skip
def test_thumbnails_of_what_looks_like_images(shape: tuple[int, ...], count: int) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = thumbnails(Dataset({"x": x}), 4)
    assert len(found) == count
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in found)
