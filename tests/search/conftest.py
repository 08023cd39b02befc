"""A small residual network, calibrated for mixed precision."""

from collections.abc import Callable

import pytest

from onnxbrecq.calibrate import sampled
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.targets import ORT_CPU_AVX2
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.fork import fork
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.mixed import Menu, menu_of
from onnxbrecq.parts import Task
from onnxbrecq.recipe import Recipe

MenuOf = Callable[..., Menu]


@pytest.fixture
def menu(model: Model, data: Dataset) -> MenuOf:
    """What a recipe with these keys offers the network."""

    def made(network: Model = model, **keys: object) -> Menu:
        recipe = Recipe(search="exact", threads=1, search_samples=64, **keys)  # type: ignore[arg-type]
        forked = fork(network, min((8, *recipe.offered_activations)))
        points = find_points(forked)
        task = Task(forked, partition(forked), points, data, recipe, ORT_CPU_AVX2)
        return menu_of(task, sampled(forked, points, data, recipe), ORT_CPU_AVX2, "0" * 64)

    return made
