"""What a user's own code is called by: `module:function`. Only what was asked for is imported."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from onnxbrecq.errors import DataError

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def named(source: str) -> object:
    """What `module:function` names, found on sys.path or in the working folder; None: nothing.

    Raises:
        DataError: there is no such module.
    """
    module_name, _, name = source.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # a module may raise anything while it is imported
        raise DataError(
            f"{source}: module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}); it is looked for in the working folder first"
        ) from error
    finally:
        sys.path.remove(here)


def function(source: str) -> Callable[..., object]:
    """The function that `module:function` names.

    Raises:
        DataError: there is none.
    """
    found = named(source)
    if not callable(found):
        module_name, _, name = source.partition(":")
        raise DataError(f"{source}: module {module_name!r} has no function {name!r}")
    return found
