"""Importing the package changes nothing but the list of modules."""

import subprocess
import sys
from pathlib import Path

_CODE = """
import importlib, json, logging, os, pkgutil, random, signal, sys, warnings
import click, jinja2, numpy, onnx, onnxruntime, PIL.Image, plotly.offline
import pycocotools.cocoeval, rich.progress, safetensors.numpy, scipy.optimize, torch

def world():
    return json.dumps({
        "environment": dict(os.environ), "folder": os.getcwd(), "files": os.listdir("."),
        "path": sys.path, "hooks": [str(sys.excepthook), str(sys.displayhook)],
        "signals": [str(signal.getsignal(s)) for s in signal.valid_signals()],
        "handlers": [str(logging.getLogger(name).handlers) for name in ("", "onnxbrecq")],
        "levels": [logging.root.level, logging.getLogger("onnxbrecq").level],
        "warnings": [str(f) for f in warnings.filters], "threads": torch.get_num_threads(),
        "torch": [torch.initial_seed(), torch.are_deterministic_algorithms_enabled(),
                  torch.is_grad_enabled(), str(torch.get_default_dtype())],
        "numpy": [str(numpy.random.get_state()), numpy.geterr()], "random": str(random.getstate()),
    }, default=str)

before = world()
import onnxbrecq, onnxbrecq_cli
for package in (onnxbrecq, onnxbrecq_cli):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
assert "onnxbrecq.recon.bridge" in sys.modules and "onnxbrecq_cli.guard" in sys.modules
for name, value in json.loads(world()).items():
    assert value == json.loads(before)[name], name
"""


def test_no_import_has_side_effects(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CODE],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
