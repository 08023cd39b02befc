"""Recipes as TOML has them: tables of keys and values, some of them in words."""

import dataclasses
from typing import Any

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe.budget import Budget, Latency
from onnxbrecq.recipe.checks import one_of, size_in_bytes
from onnxbrecq.recipe.preprocess import Preprocess
from onnxbrecq.recipe.reconstruction import (
    DEFAULT_EFFORT,
    EFFORTS,
    SETTINGS,
    Effort,
    Reconstruction,
)


def values_of(cls: type, table: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """What the recipe `cls` is made with: what the table says, and the overrides, which win."""
    table, overrides = dict(table), dict(overrides)
    data = table.pop("data", {})
    _check_keys("data", data, {"preprocess"})
    values = _fields(cls, "", table)
    preset = overrides.pop("preset", None)
    if "preprocess" in data or preset is not None:
        values["preprocess"] = _preprocess(data.get("preprocess", {}), preset)
    if "reconstruction" in table:
        effort: Effort = overrides.get("effort", values.get("effort", DEFAULT_EFFORT))
        one_of("effort", effort, EFFORTS)
        given = _fields(Reconstruction, "reconstruction.", table["reconstruction"])
        values["reconstruction"] = dataclasses.replace(SETTINGS[effort], **given)
    if "latency" in table:
        values["latency"] = Latency(**_fields(Latency, "latency.", table["latency"]))
    for wins, other in (("budget", "weights"), ("weights", "budget")):
        if wins in overrides:  # the command line wins over what excludes it
            values.pop(other, None)
    values.update(overrides)
    _worded(values)
    if isinstance(values.get("max_memory"), str):
        values["max_memory"] = size_in_bytes("max_memory", values["max_memory"])
    return values


def _worded(values: dict[str, Any]) -> None:
    """Edits the values: what is written in words becomes what it means."""
    if values.get("activations") == "float":
        values["activations"] = None
    if values.get("first_last") == "free":
        values["first_last"] = None
    if "pinned" in values:
        pins = values["pinned"]
        if not isinstance(pins, dict):
            raise RecipeError(f"recipe: pinned = {pins!r}: want a table of patterns and bits")
        values["pinned"] = {k: None if bits == "float" else bits for k, bits in pins.items()}
    if "budget" in values:
        given = values["budget"]
        texts = [f"{k}={v}" for k, v in given.items()] if isinstance(given, dict) else given
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise RecipeError(f"recipe: budget = {given!r}: want a table or a list of KEY=VALUE")
        values["budget"] = tuple(Budget.parse(text) for text in texts)
    if isinstance(values.get("latency"), str):
        given = values["latency"]
        values["latency"] = (
            Latency(model="systolic") if given == "systolic" else Latency("table", given)
        )
    if "weights" in values and values.get("budget"):
        raise RecipeError(
            "weights and a budget: a budget chooses the bits of each layer; give one of the two "
            "(`offered` says which bits there are to choose from)"
        )
    if values.get("max_drop") is not None and not {"weights", "budget", "search"} & set(values):
        values["search"] = "exact"


def _preprocess(table: object, preset: str | None) -> Preprocess:
    """The preprocessing of a TOML table; its own keys win over those of its preset."""
    given = dict(table) if isinstance(table, dict) else table
    named = given.pop("preset", None) if isinstance(given, dict) else None
    base = Preprocess() if preset is named is None else Preprocess.preset(preset or named)
    return dataclasses.replace(base, **_fields(Preprocess, "data.preprocess.", given))


def _check_keys(where: str, table: object, allowed: set[str]) -> None:
    if not isinstance(table, dict):
        raise RecipeError(f"recipe: {where} must be a table")
    for key in table:
        if key not in allowed:
            raise RecipeError(f"recipe: unknown key {where}.{key}; known: {sorted(allowed)}")


_NUMBERS = {"float": (int, float), "int": (int,), "str": (str,), "Effort": (str,), "bool": (bool,)}


def _fields(cls: type, prefix: str, table: object) -> dict[str, Any]:
    """The keyword arguments that `table` gives for the dataclass `cls`, types checked."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    _check_keys(prefix.rstrip(".") or "top level", table, set(kinds) - {"preprocess"})
    assert isinstance(table, dict)
    values = {}
    for key, value in table.items():
        name = kinds[key].split(".")[-1].split(" |")[0].rstrip("'>").removeprefix("<class '")
        wanted = _NUMBERS.get(name)
        worded = (
            (key == "activations" and value == "float")
            or (key == "first_last" and value == "free")
            or (key in ("max_memory", "max_size") and isinstance(value, str))
        )
        if (
            wanted
            and not worded
            and (not isinstance(value, wanted) or (isinstance(value, bool) and name != "bool"))
        ):
            raise RecipeError(f"recipe: {prefix}{key} = {value!r}: want {name}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return values
