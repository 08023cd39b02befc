"""What values of a recipe are held against."""

import math
import re

from onnxbrecq.errors import RecipeError


def one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises RecipeError unless the value is one of those."""
    if value not in allowed or isinstance(value, bool):
        raise RecipeError(f"{key} = {value!r}: choose one of {', '.join(map(str, allowed))}")


def numbers(
    values: object, count: int, kind: type[int] | type[float], least: float = -math.inf
) -> bool:
    """Whether `values` are `count` finite numbers of that kind, none below `least`."""
    kinds = int if kind is int else (int, float)
    return (
        isinstance(values, tuple | list)
        and len(values) == count
        and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
        and all(math.isfinite(v) and v >= least for v in values)
    )


def size_in_bytes(key: str, text: str) -> int:
    """A size with its unit: 1 GB are 10**9 bytes, 1 GiB 2**30."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmgt]?)(i?)b)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise RecipeError(f"{key} = {text!r}: want a size such as 4GiB or 500MB, or bytes")
    number, prefix, binary = found.groups()
    unit = (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower())
    return int(float(number) * unit)
