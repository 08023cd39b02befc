import re
import tomllib
from pathlib import Path

import pytest

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe import Budget, Latency, Preprocess, Recipe, Reconstruction


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


@pytest.mark.parametrize(
    ("text", "key", "amount", "relative"),
    [
        ("size=3MB", "size", 3e6, False),
        ("size=12%", "size", 0.12, True),
        ("size = 64KiB", "size", 65536, False),
        ("bitops=40G", "bitops", 4e10, False),
        ("bitops=4e10", "bitops", 4e10, False),
        ("latency=5ms", "latency", 5.0, False),
        ("latency=0.25", "latency", 0.25, False),
    ],
)
def test_budgets_as_they_are_written(text: str, key: str, amount: float, relative: bool) -> None:
    found = Budget.parse(text)
    assert (found.key, found.relative) == (key, relative)
    assert found.amount == pytest.approx(amount)


@pytest.mark.parametrize("text", ["size", "size=0", "size=0%", "bitops=1%", "latency=-1", "=3"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(RecipeError, match="budget"):
        Budget.parse(text)


def test_mixed_precision_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("""
        search = "genetic"
        budget = { size = "3MB", bitops = "40G" }
        offered = [2, 3, 8]
        offered_activations = [4, 8]
        first_last = "free"
        [pinned]
        "head*" = 8
        "*/odd" = "float"
        [latency]
        model = "systolic"
        rows = 16
    """)
    recipe = Recipe.from_toml(path)
    assert recipe.budget == (Budget("size", 3e6), Budget("bitops", 4e10))
    assert recipe.pinned == {"head*": 8, "*/odd": None}
    assert recipe.first_last is None
    assert recipe.latency == Latency("systolic", rows=16)
    assert recipe.mixed
    # The command line wins over what excludes it.
    assert not Recipe.from_toml(path, weights=4).budget
    assert Recipe.from_toml(path, budget=("size=1MB",)).budget == (Budget("size", 1e6),)


def test_a_gate_alone_asks_for_the_smallest_model() -> None:
    assert Recipe.from_table({}, max_drop=1.0).search == "exact"
    assert Recipe.from_table({"weights": 4}, max_drop=1.0).search is None
    assert Recipe.from_table({}, max_drop=1.0, budget=("size=1MB",)).search is None
    assert Recipe(max_drop=1.0).search is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weights": 4, "budget": ["size=1MB"]}, "weights and a budget"),
        ({"budget": "size=1MB"}, "want a table or a list"),
        ({"budget": ["size=1MB", "size=2MB"]}, "give each key once"),
        ({"pinned": {"a": 5}}, "pinned 'a' = 5"),
        ({"pinned": 8}, "want a table of patterns"),
        ({"offered": []}, "at least one number of bits"),
        ({"offered_activations": [8], "activations": "float"}, "there are none"),
        ({"search_samples": 1}, "search_samples = 1"),
        ({"latency": {"model": "table"}}, "latency.table"),
        ({"latency": {"rows": 0}}, "latency.rows = 0"),
        ({"latency": {"clock_mhz": 0}}, "latency.clock_mhz"),
        ({"latency": {"speed": 3}}, "unknown key latency.speed"),
    ],
    ids=str,
)
def test_what_mixed_precision_refuses(table: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_table(table)
