"""Docs that are made of the code are those of the code."""

import re
import tomllib
from pathlib import Path

import pytest

from onnxbrecq import errors
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.reference import keys, recipe_markdown, recipe_toml

DOCS = Path(__file__).parents[1] / "docs"


def test_the_printed_recipe_is_the_default_one() -> None:
    assert Recipe.from_table(tomllib.loads(recipe_toml())) == Recipe()


def test_the_printed_recipe_may_be_uncommented() -> None:
    """Keys with a default, tables among them, are ready to be taken in."""
    lines = [re.sub(r"^# (\[|\w+ = (?!$))", r"\1", line) for line in recipe_toml().splitlines()]
    lines = [line for line in lines if not re.fullmatch(r"# \w+ =", line)]
    found = Recipe.from_table(tomllib.loads("\n".join(lines)))
    assert found.reconstruction == Reconstruction()


def test_every_key_is_explained() -> None:
    assert all(key.meaning for key in keys())
    assert {key.table for key in keys()} == {"", "data.preprocess", "reconstruction", "latency"}


def test_the_page_is_current() -> None:
    """Made by `onnxbrecq recipe --markdown > docs/recipe.md`."""
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_markdown()


def test_errors_link_to_headings_that_exist() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    topics = {kind.topic for kind in kinds if issubclass(kind, errors.OnnxbrecqError)} - {None}
    assert topics
    assert topics <= headings


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / link).exists() for link in links)
