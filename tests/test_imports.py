"""The dependency direction: which module may import which, and who owns a heavy dependency."""

import ast
import graphlib
import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, save

import onnxbrecq
from onnxbrecq.plan import QuantPlan

ROOT = Path(__file__).parents[1]
FILES = {
    (path.parent if path.name == "__init__.py" else path.with_suffix("")): path
    for folder in ("onnxbrecq", "cli")
    for path in (ROOT / folder).rglob("*.py")
}
MODULES = {
    ".".join(name.relative_to(ROOT).parts).replace("cli", "onnxbrecq_cli", 1)
    if name.relative_to(ROOT).parts[0] == "cli"
    else ".".join(name.relative_to(ROOT).parts): path
    for name, path in FILES.items()
}

LEAVES = ("errors", "plan", "affine", "recipe", "progress")
# A room or module of the package → the others it may import. What is not listed fails.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "progress": (),
    "plan": ("errors",),
    "recipe": ("errors", "recipe"),
    "affine": ("errors", "plan"),
    "output": ("errors",),
    "state": ("errors", "plan", "output", "data"),
    "graph": (*LEAVES, "graph"),
    "data": (*LEAVES, "graph", "data"),
    "emit": (*LEAVES, "graph", "emit"),
    "report": (*LEAVES, "graph", "emit", "report"),
    "runtime": (*LEAVES, "graph", "data", "emit", "runtime"),
    "recon": (*LEAVES, "graph", "data", "recon"),
    "validation": (*LEAVES, "graph", "data", "emit", "runtime", "report", "validation"),
    "emission": (*LEAVES, "output", "graph", "emit", "runtime", "report"),
    "comparison": (*LEAVES, "graph", "data", "runtime", "report", "validation"),
    "handover": (*LEAVES, "output", "graph", "data", "runtime", "validation"),
    "arising": ("errors", "graph", "data", "runtime"),
    "calibrate": (*LEAVES, "bits", "graph", "data", "emit", "runtime", "arising"),
    "forecast": (*LEAVES, "bits", "graph", "data", "runtime", "search", "calibrate"),
    "bits": ("errors", "recipe", "graph"),
    "smoothing": (*LEAVES, "bits", "graph", "data", "emit", "runtime"),
    "parts": (*LEAVES, "graph", "data", "emit", "runtime", "recon"),
    "curvature": (*LEAVES, "graph", "data", "runtime", "recon", "parts"),
    "datafree": (*LEAVES, "graph", "data", "runtime", "recon", "report"),
    "reference": ("recipe",),
    "preview": (*LEAVES, "graph", "data", "runtime"),
    "adoption": (*LEAVES, "graph", "data", "emit", "runtime", "calibrate"),
    "blockwise": (
        *LEAVES, "graph", "data", "emit", "runtime", "recon", "report", "state", "parts",
        "curvature", "arising",
    ),
    "search": (
        *LEAVES, "bits", "graph", "data", "emit", "runtime", "recon", "report", "state", "parts",
        "curvature", "calibrate", "emission", "search",
    ),
    "mixed": (*LEAVES, "bits", "graph", "emit", "state", "parts", "calibrate", "search"),
    "preparation": (
        *LEAVES, "bits", "output", "graph", "data", "emit", "runtime", "recon", "report",
        "calibrate", "smoothing", "datafree", "forecast", "parts", "state",
    ),
    "pipeline": (
        *LEAVES, "bits", "output", "graph", "data", "emit", "runtime", "recon", "report",
        "validation", "preparation", "mixed", "search", "blockwise", "state", "emission",
        "adoption", "forecast", "parts", "pipeline",
    ),
}  # fmt: skip
# A heavy dependency → the modules that may import it, by prefix.
OWNERS = {
    "onnxruntime": ("onnxbrecq.runtime",),
    "torch": ("onnxbrecq.recon",),
    "torchvision": ("onnxbrecq.recon.bridge",),
    "onnx2torch": ("onnxbrecq.recon.bridge", "onnxbrecq.recon.converters"),
    "safetensors": ("onnxbrecq.plan",),
    "scipy": ("onnxbrecq.search.allocate",),
    "plotly": ("onnxbrecq.report",),
    "PIL": ("onnxbrecq.data",),
    "pycocotools": ("onnxbrecq.validation.detection",),
    "jinja2": ("onnxbrecq.report",),
    "click": ("onnxbrecq_cli",),
    "rich": ("onnxbrecq_cli",),
}
CLI_MAY_IMPORT = ("onnxbrecq", "onnxbrecq.errors", "onnxbrecq.output")


def imported(name: str) -> set[str]:
    """Everything that the module `name` imports anywhere in its source, type checking aside."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return {
        found
        for node in _nodes(ast.parse(path.read_text(encoding="utf-8")))
        for found in _imports(node, package)
    }


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_only:
            yield node
            yield from _nodes(node)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            member = f"{base}.{alias.name}"
            # `preview` is a function of the public API, and a module behind it.
            exported = base == "onnxbrecq" and alias.name in onnxbrecq.__all__
            yield member if member in MODULES and not exported else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (a.value for a in node.args if isinstance(a, ast.Constant))  # type: ignore[misc]


def part_of(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


LIBRARY = sorted(name for name in MODULES if name.startswith("onnxbrecq."))
COMMAND = sorted(name for name in MODULES if part_of(name, "onnxbrecq_cli"))


def test_the_walk_sees_every_form_of_import() -> None:
    source = """
if TYPE_CHECKING:
    from onnxbrecq.pipeline.quantize import quantize
import numpy as np, torch.nn
from onnxbrecq import affine
def late():
    from . import render
    importlib.import_module("onnx2torch")
"""
    found = {f for node in _nodes(ast.parse(source)) for f in _imports(node, "onnxbrecq_cli")}
    assert found == {"numpy", "torch.nn", "onnxbrecq.affine", "onnxbrecq_cli.render", "onnx2torch"}


@pytest.mark.parametrize("name", LIBRARY)
def test_direction_within_the_package(name: str) -> None:
    allowed = MAY_IMPORT[name.split(".")[1]]
    wrong = [
        other
        for other in imported(name)
        if part_of(other, "onnxbrecq") and other.partition(".")[2].split(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("name", sorted(n for n in LIBRARY if part_of(n, "onnxbrecq.pipeline")))
def test_no_command_calls_another(name: str) -> None:
    shared = {f"onnxbrecq.pipeline.{name}" for name in ("decisions", "proof", "results")}
    assert {o for o in imported(name) if part_of(o, "onnxbrecq.pipeline")} <= shared


@pytest.mark.parametrize("name", sorted(MODULES))
def test_owners_of_heavy_dependencies(name: str) -> None:
    wrong = [
        other
        for other in imported(name)
        for package, owners in OWNERS.items()
        if part_of(other, package) and not any(part_of(name, owner) for owner in owners)
    ]
    assert not wrong


@pytest.mark.parametrize("name", COMMAND)
def test_the_command_line_uses_the_public_api_only(name: str) -> None:
    allowed = (*sys.stdlib_module_names, "click", "rich", "onnxbrecq_cli")
    wrong = [
        other
        for other in imported(name)
        if other not in CLI_MAY_IMPORT and other.split(".")[0] not in allowed
    ]
    assert not wrong


def test_the_public_api_imports_nothing_of_the_package_eagerly() -> None:
    assert not [name for name in imported("onnxbrecq") if part_of(name, "onnxbrecq")]


def test_no_cycles() -> None:
    edges = {name: {o for o in imported(name) if o in MODULES} for name in MODULES}
    order = list(graphlib.TopologicalSorter(edges).static_order())
    assert set(order) == set(MODULES)


def heavy_after(*arguments: str) -> set[str]:
    """Which of torch and onnxruntime a process has loaded after running the command line."""
    code = (
        "import sys; from onnxbrecq_cli.main import main; status = main(sys.argv[1:]); "
        "print('LOADED', *({'torch', 'onnxruntime'} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_loads_neither_torch_nor_onnxruntime() -> None:
    assert heavy_after("--help") == set()


def matmul() -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [1.0] * 6)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_inspect_loads_neither_torch_nor_onnxruntime(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(matmul(), path)
    assert heavy_after("inspect", str(path)) == set()


def test_emit_loads_neither_torch_nor_data(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "q.onnx"
    save(matmul(), path)
    plan = QuantPlan({}, {}, hashlib.sha256(path.read_bytes()).hexdigest())
    plan.save(tmp_path / "m.plan")
    code = (
        "import sys; from onnxbrecq_cli.main import main; status = main(sys.argv[1:]); "
        "print('LOADED', *(m for m in sys.modules if m in ('torch', 'onnxruntime') "
        "or m.startswith(('onnxbrecq.data', 'onnxbrecq.calibrate')))); sys.exit(status)"
    )
    arguments = ["emit", str(path), str(tmp_path / "m.plan"), "-o", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert output.exists()
    assert done.stdout.splitlines()[-1] == "LOADED onnxruntime"


def test_a_hand_over_loads_no_torch(tmp_path: Path) -> None:
    path, folder = tmp_path / "m.onnx", tmp_path / "bundle"
    save(matmul(), path)
    assert heavy_after("bundle", str(path), "-o", str(folder)) == {"onnxruntime"}
    assert heavy_after("verify", str(folder)) == {"onnxruntime"}
    np.savez(tmp_path / "d.npz", x=np.ones((4, 3), np.float32))
    data = ("--reference", str(path), "-d", str(tmp_path / "d.npz"))
    assert heavy_after("compare", str(path), str(path), *data) == {"onnxruntime"}


def test_doctor_loads_onnxruntime() -> None:
    """The probe itself: it must see what is loaded."""
    assert heavy_after("doctor") == {"onnxruntime"}


def test_every_export_is_there() -> None:
    code = (
        "import sys, onnxbrecq; assert not {'torch', 'onnxruntime'} & set(sys.modules); "
        "assert not [n for n in onnxbrecq.__all__ if not hasattr(onnxbrecq, n)]; "
        "assert callable(onnxbrecq.validate) and callable(onnxbrecq.inspect)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
