"""Every key of a recipe, with its default and its meaning: as a TOML file, and as a page of docs.

Both are made of the dataclasses of `onnxbrecq.recipe` and their docstrings, so that neither can be
out of date.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from onnxbrecq.recipe import PRESETS, Latency, Preprocess, Recipe, Reconstruction

_WIDTH = 96
_TABLES: Mapping[str, type] = {
    "": Recipe,
    "data.preprocess": Preprocess,
    "reconstruction": Reconstruction,
    "latency": Latency,
}
_NESTED = (
    "preprocess",
    "reconstruction",
    "latency",
)  # fields of Recipe that are tables of their own
_NOTES = {
    "": "",
    "data.preprocess": f"Of a folder of images; preset = NAME ({', '.join(PRESETS)}) sets several "
    "keys at once, those given beside it win.",
    "reconstruction": "In place of what effort says; these are the values of balanced.",
    "latency": "What a budget of latency means.",
}
_FLOAT = "float"  # what TOML has for the absent bits of activations


class Key(NamedTuple):
    """A key of a recipe: its table, name, default and meaning."""

    table: str
    name: str
    default: Any
    meaning: str


def keys() -> Iterator[Key]:
    """All keys in the order of the file."""
    for table, cls in _TABLES.items():
        meanings = _meanings(cls)
        for field in dataclasses.fields(cls):
            if table or field.name not in _NESTED:
                default = field.default
                if default is dataclasses.MISSING and callable(field.default_factory):
                    default = field.default_factory()
                yield Key(table, field.name, default, meanings[field.name])


def recipe_toml() -> str:
    """The default recipe as a TOML file with comments; what has no default is commented out."""
    lines = ["# A recipe of onnxbrecq: `onnxbrecq quantize MODEL --recipe FILE`."]
    table = ""
    for key in keys():
        if key.table != table:
            table = key.table
            lines += ["", *_comment(_NOTES[table]), f"# [{table}]"]
        lines += ["", *_comment(key.meaning)]
        lines.append(("# " if table or key.default is None else "") + _assigned(key))
    return "\n".join(lines) + "\n"


def recipe_markdown() -> str:
    """The page docs/recipe.md."""
    parts = [
        "# Recipe reference\n",
        "<!-- made by `onnxbrecq recipe --markdown`; do not edit -->\n",
        "A recipe is a TOML file for `--recipe`; options of the command line win over it. "
        "`onnxbrecq recipe` prints one with all defaults.\n",
        "A key that is unknown, or has a value of the wrong type, is refused before any work. The "
        "keys are those of frozen dataclasses (`onnxbrecq/recipe/`), which check themselves: a "
        "model of pydantic would say the same in as many lines, and take longer to import than "
        "`--help` may take.\n",
    ]
    for table in _TABLES:
        title = f"## [{table}]" if table else "## Top level"
        parts += [f"{title}\n", *([f"{_NOTES[table]}\n"] if _NOTES[table] else [])]
        parts += ["| key | default | meaning |\n| --- | --- | --- |"]
        for key in keys():
            if key.table == table:
                default = "" if key.default is None else f"`{_value(key)}`"
                meaning = key.meaning.replace("|", "\\|")
                parts.append(f"| `{key.name}` | {default} | {meaning} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _meanings(cls: type) -> dict[str, str]:
    """Attribute → what the docstring of the class says of it, in one line."""
    text = inspect.cleandoc(cls.__doc__ or "")
    body = textwrap.dedent(text.partition("Attributes:\n")[2])
    parts = re.split(r"^(\w+): ", body, flags=re.MULTILINE)[1:]
    return {
        name: meaning[:1].upper() + " ".join(meaning.split())[1:]
        for name, meaning in zip(parts[::2], parts[1::2], strict=True)
    }


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _assigned(key: Key) -> str:
    return f"{key.name} =" if key.default is None else f"{key.name} = {_value(key)}"


def _value(key: Key) -> str:
    """The default as TOML."""
    if key.name == "activations" and key.default is None:
        return f'"{_FLOAT}"'
    return _toml(key.default)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    return repr(value)
