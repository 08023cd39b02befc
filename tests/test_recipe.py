import re
import tomllib
from pathlib import Path

import pytest

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe import Preprocess, Recipe, Reconstruction


def test_a_file_with_every_kind_of_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        weights = 2
        activations = "float"
        max_drop = 1
        [data.preprocess]
        resize_short = 256
        center_crop = [224, 192]
        mean = [0.5, 0, 0.25]
        channels = "BGR"
        [reconstruction]
        iterations = 0
        step_search = false
        """
    )
    assert Recipe.from_toml(path) == Recipe(
        weights=2,
        activations=None,
        max_drop=1,
        preprocess=Preprocess(
            resize_short=256, center_crop=(224, 192), mean=(0.5, 0, 0.25), channels="BGR"
        ),
        reconstruction=Reconstruction(iterations=0, step_search=False),
    )


def test_blocks_of_inputs_are_for_weights_alone() -> None:
    assert Recipe(activations=None, block_size=32).block_size == 32
    with pytest.raises(RecipeError, match=r"block_size = 32: integer kernels .*weight-only"):
        Recipe(block_size=32)
    with pytest.raises(RecipeError, match="block_size = 24: choose one of 16, 32"):
        Recipe(activations=None, block_size=24)


def test_an_empty_table_is_the_default_recipe() -> None:
    assert Recipe.from_table({}) == Recipe()


def test_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("weights = 2\nactivations = 4\n")
    assert Recipe.from_toml(path, activations=None) == Recipe(weights=2, activations=None)


@pytest.mark.parametrize(
    "line",
    [
        "resize_short = 0",
        "resize = 5",
        "resize = [224]",
        "resize = [224, 0]",
        "resize = [224.0, 224]",
        'center_crop = ["a", 2]',
        "center_crop = [true, 2]",
        "scale = inf",
        "scale = true",
        "mean = 0.5",
        "mean = [0.5, 0.5]",
        "mean = [0.5, 0.5, nan]",
        'std = ["a", "b", "c"]',
        "std = [1, 1, 0]",
        'channels = "RBG"',
        'channels = ["RGB"]',
        'layout = "CHW"',
    ],
)
def test_preprocessing_that_makes_no_sense(line: str) -> None:
    table = tomllib.loads(f"[data.preprocess]\n{line}")
    key = re.escape(f"data.preprocess.{line.partition(' = ')[0]}")
    with pytest.raises(RecipeError, match=key):
        Recipe.from_table(table)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("4GiB", 4 << 30),
        ("1.5 GiB", 3 << 29),
        ("500MB", 500_000_000),
        ("64 kib", 65536),
        ("2tb", 2 * 10**12),
        ("512B", 512),
        ("1073741824", 1 << 30),
        (1 << 30, 1 << 30),
    ],
    ids=str,
)
def test_sizes_of_memory(size: str | int, wanted: int) -> None:
    assert Recipe.from_table({"max_memory": size}).max_memory == wanted
    assert Recipe.from_table({}, max_memory=size).max_memory == wanted


@pytest.mark.parametrize(
    "size", ["", "much", "4G", "4 GiB RAM", "-1GB", "0GiB", 0, 1.5, True, "1e9"], ids=repr
)
def test_sizes_that_make_no_sense(size: object) -> None:
    with pytest.raises(RecipeError, match="max_memory = "):
        Recipe.from_table({"max_memory": size})
