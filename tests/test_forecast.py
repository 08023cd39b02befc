"""What is said before the walk starts."""

import dataclasses

import numpy as np
import pytest

from onnxbrecq import forecast as module
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.forecast import Forecast, forecast
from onnxbrecq.graph.blocks import Block, partition
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.recipe import Recipe, Reconstruction

GiB = 1 << 30


def _block(inputs: tuple[str, ...], *outputs: str) -> Block:
    return Block("b", (), inputs, outputs, ())


def test_the_largest_moment_counts_what_later_blocks_read() -> None:
    sizes = {"a": 10, "b": 1, "c": 2}
    blocks = [_block(("x",), "a"), _block(("a",), "b"), _block(("a", "b"), "c")]
    assert module._held(blocks, sizes) == 2 * max(0 + 10, 10 + 1, 11 + 2)


def test_what_is_held_grows_with_the_samples(model: Model, data: Dataset) -> None:
    points, blocks = find_points(model), partition(model)
    recipe = Recipe(max_memory=4 * GiB, threads=1)
    whole, half = (forecast(model, blocks, points, part, recipe) for part in (data, data.head(32)))
    first = blocks[0].outputs
    assert whole.held >= len(data) * len(first) * 8 * 8 * 8 * 4
    assert whole.held == 2 * half.held
    assert 0 < whole.room < 4 * GiB


def test_larger_batches_leave_less_room(model: Model, data: Dataset) -> None:
    points, blocks = find_points(model), partition(model)
    small, large = (
        Recipe(max_memory=64 * GiB, reconstruction=Reconstruction(batch_size=size), threads=1)
        for size in (16, 16 << 16)
    )
    rooms = [forecast(model, blocks, points, data, recipe).room for recipe in (small, large)]
    values = 8 * 8 * 8 * 4  # bytes of a feature map, of which the middle block has three
    assert rooms[0] - rooms[1] > (16 << 16) * values


def test_what_learning_takes_is_that_of_the_schedule(model: Model, data: Dataset) -> None:
    """Samples of second-order rounding and of steps; a quarter of the steps at 8 bits."""
    points, middle = find_points(model), partition(model)[1]
    seen = {name: np.zeros((2, 1, 64, 128), np.float32) for name in middle.outputs}
    rounding = module._ROUNDING * len(data)
    recipe = Recipe(effort="fast")
    assert module._learned(middle, points, seen, recipe, samples=len(data), macs=0) == rounding
    recipe = Recipe(weights=4, reconstruction=Reconstruction(iterations=40, trials=2))
    steps = 40 * 2 * 4  # four samples a step have the 2**14 places and more
    expected = rounding + module._STEP * steps
    assert module._learned(middle, points, seen, recipe, samples=len(data), macs=0) == expected
    recipe = dataclasses.replace(recipe, weights=8)
    expected = rounding + module._STEP * steps / 4
    assert module._learned(middle, points, seen, recipe, samples=len(data), macs=0) == expected


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Forecast(GiB, 2 * GiB, 130), "samples and activations take up to 1.0 GiB; about 2 min"),
        (
            Forecast(3 * GiB, GiB, 31),
            "samples and activations take up to 3.0 GiB, 2.0 GiB of it on disk; about 40 s",
        ),
        (
            Forecast(1 << 20, -GiB, 7200),
            "samples and activations take up to 1 MiB, 1 MiB of it on disk; the work itself "
            "takes 1.0 GiB more memory than allowed; about 2.0 h",
        ),
    ],
    ids=["memory", "disk", "too-little"],
)
def test_what_is_said(found: Forecast, said: str) -> None:
    assert found.told() == said


def test_choosing_bits_takes_longer_than_having_them(model: Model, data: Dataset) -> None:
    points, blocks = find_points(model), partition(model)
    plain, few, many = (
        forecast(
            model, blocks, points, data, dataclasses.replace(Recipe(threads=1), **keys)
        ).seconds  # type: ignore[arg-type]
        for keys in ({}, {"search": "exact"}, {"search": "exact", "search_samples": 10**6})
    )
    assert many > 100 * few
    assert many > 100 * plain
