import math
import re
import tomllib
from pathlib import Path

import pytest

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe import PRESETS, Budget, Latency, Preprocess, Recipe, Reconstruction


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


def test_a_preset_and_what_wins_over_it() -> None:
    table = tomllib.loads('[data.preprocess]\npreset = "tf"\nlayout = "NCHW"')
    found = Recipe.from_table(table).preprocess
    assert found is not None
    assert (found.center_crop, found.layout, found.mean) == ((224, 224), "NCHW", (1.0, 1.0, 1.0))
    found = Recipe.from_table(table, preset="imagenet-bgr-caffe").preprocess
    assert found is not None
    assert (found.channels, found.layout) == ("BGR", "NCHW")
    assert Recipe.from_table({}, preset="imagenet").preprocess == Preprocess.preset("imagenet")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_sense(name: str) -> None:
    assert Preprocess.preset(name) != Preprocess()


def test_an_unknown_preset() -> None:
    says = "data.preprocess.preset = 'imagnet': choose one of imagenet, imagenet-bgr-caffe, tf"
    for table, options in (({"data": {"preprocess": {"preset": "imagnet"}}}, {}),
                           ({}, {"preset": "imagnet"})):  # fmt: skip
        with pytest.raises(RecipeError, match=says):
            Recipe.from_table(table, **options)


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
        "letterbox = 640",
        "fill = 256",
        "fill = -1",
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
    ("given", "wanted"),
    [(None, float("inf")), (500, 500), ("1.5kB", 1500), ("12%", 120), ("12.5 %", 125)],
)
def test_the_largest_size(given: int | str | None, wanted: float) -> None:
    assert Recipe(max_size=given).size_limit(1000) == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_size", "small"), ("max_size", "0%"), ("max_size", -1), ("min_speedup", 0.0)],
)
def test_limits_that_make_no_sense(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=key):
        Recipe(**{key: value})  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("places", "macs", "samples"),
    [
        (64, 1e6, 16),
        (1 << 12, 1e6, 4),
        (1 << 11, 1e6, 8),
        (197, 5e8, 2),
        (197, 1e10, 1),
        (64, 0, 16),
    ],
)
def test_a_step_takes_fewer_samples_of_large_maps_and_of_much_work(
    places: int, macs: float, samples: int
) -> None:
    assert Reconstruction().samples_a_step(places, int(macs)) == samples
    assert Reconstruction(batch_places=0, batch_macs=math.inf).samples_a_step(places, 1) == 16
    assert Reconstruction(batch_places=0, batch_macs=0).samples_a_step(places, int(macs)) == 16
