"""What `import onnxbrecq` offers, in processes of their own: it depends on what came before."""

import subprocess
import sys
from importlib import metadata

import pytest

import onnxbrecq


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_no_part_of_the_package() -> None:
    loaded = python(
        "import sys, onnxbrecq; "
        "print([m for m in sys.modules if m.startswith(('onnxbrecq.', 'numpy', 'onnx.'))])"
    )
    assert loaded == "[]"


def test_version_is_that_of_the_installed_package() -> None:
    assert onnxbrecq.__version__ == metadata.version("onnxbrecq")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'onnxbrecq' has no attribute 'quantise'"):
        _ = onnxbrecq.quantise  # type: ignore[attr-defined]


def test_dir_lists_what_is_not_loaded_yet() -> None:
    assert set(onnxbrecq.__all__) <= set(dir(onnxbrecq))
