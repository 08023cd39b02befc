"""Distilling brings statistics nearer to what the network says of its data."""

import numpy as np
import pytest
import torch

from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.model import Model, Norm
from onnxbrecq.recon.bridge import import_block
from onnxbrecq.recon.distill import Source, _distance, _indecision, _variation, distill

RNG = np.random.default_rng(0)
START = {"x": RNG.normal(size=(16, 3, 8, 8)).astype(np.float32)}


@pytest.fixture
def source(model: Model) -> Source:
    """The residual network of conftest.py, with statistics at the outputs of two layers."""
    norms = {name: Norm(np.full(8, mean, np.float32), np.full(8, std, np.float32))
             for name, mean, std in (("a", 1.0, 2.0), ("b", -1.0, 0.5))}  # fmt: skip
    blocks = [import_block(extract(model, block)) for block in partition(model)]
    return Source(blocks, norms, "logits")


def test_the_loss_falls(source: Source) -> None:
    found = distill(source, START, steps=30, batch=8)
    assert found.loss_after < 0.7 * found.loss_before
    assert found.samples["x"].shape == (16, 3, 8, 8)
    assert found.samples["x"].dtype == np.float32


def test_it_is_reproducible(source: Source) -> None:
    one, other = (distill(source, START, steps=3, batch=8).samples["x"] for _ in range(2))
    assert np.array_equal(one, other)


def test_no_steps_leave_the_start(source: Source) -> None:
    found = distill(source, START, steps=0, batch=8)
    # value / unit * unit: two roundings.
    np.testing.assert_allclose(found.samples["x"], START["x"], rtol=1e-6)


def test_behind_an_island_nothing_is_told(source: Source) -> None:
    last = Source([*source.blocks[:-1], None], source.norms, "logits")
    assert np.isfinite(distill(last, START, steps=2, batch=8).loss_after)
    blind = distill(Source([None], {}, "logits"), START, steps=1, batch=8)
    assert blind.loss_before > 0  # variation alone


def test_the_distance_is_that_of_the_statistics() -> None:
    values = torch.tensor([[[0.0, 4.0]], [[0.0, 4.0]]])  # one channel: mean 2, deviation 2
    norm = Norm(np.array([1.0], np.float32), np.array([4.0], np.float32))
    assert float(_distance(values, norm)) == pytest.approx((1 / 4) ** 2 + (2 / 4 - 1) ** 2)


def test_indecision_is_least_for_sure_and_various_answers() -> None:
    sure = 20 * torch.eye(4)
    assert float(_indecision(sure)) == pytest.approx(-np.log(4), abs=1e-4)
    assert float(_indecision(sure.softmax(-1))) == pytest.approx(-np.log(4), abs=1e-4)
    assert float(_indecision(sure[:1].repeat(4, 1))) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 4, 4, 3)], ids=["NCHW", "NHWC"])
def test_variation_is_over_places(shape: tuple[int, ...]) -> None:
    channels = torch.arange(3.0).reshape([3 if size == 3 else 1 for size in shape])
    assert float(_variation(channels.expand(shape))) == 0
    assert float(_variation(torch.arange(48.0).reshape(shape))) > 0
