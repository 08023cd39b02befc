"""What this machine and its onnxruntime can do, found out by trying rather than by version tables.

Each capability is a model of a few nodes that is opened here, and looked at: whether packed weights
are decoded when the model is loaded shows in the kernels that are left, whether 8-bit products
saturate shows in a sum that is known. Nothing heavy is imported: versions come from the packages'
metadata.
"""

import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxbrecq.errors import ModelError
from onnxbrecq.runtime.kernels import executed, integer_kernels
from onnxbrecq.runtime.session import PROVIDER, Session

PACKAGES = (
    "onnx",
    "onnxruntime",
    "onnx2torch",
    "torch",
    "torchvision",
    "numpy",
    "ml-dtypes",
    "safetensors",
    "pillow",
    "click",
    "rich",
    "jinja2",
    "plotly",
    "pycocotools",
)
# The features that decide which 8-bit kernels onnxruntime picks on x86, as /proc/cpuinfo has them.
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")

# Needed only by some releases of onnx2torch; for mean average precision.
_OPTIONAL = frozenset({"torchvision", "pycocotools"})
_OLDEST_OPSET = 21
_IR_VERSIONS = {21: 10, 22: 10, 23: 11, 24: 11, 25: 12}


@dataclass(frozen=True)
class Problem:
    """Something that limits what can be done here, and the remedy."""

    what: str
    do: str


def doctor() -> dict[str, object]:
    """Everything found out about this machine, as plain JSON values.

    Keys: `python`, `platform`, `processor` {name, cores, features}, `packages` {name: version or
    None}, `onnxruntime` {version, providers, max_opset}, `capabilities` {name: bool} and
    `problems` [{what, do}], empty when all is well.
    """
    packages = {name: _version(name) for name in PACKAGES}
    features = processor_features()
    max_opset = newest_opset()
    capabilities = {
        "saturation_free_8bit": saturation_free(),
        "int4_decoded_at_load": decodes_at_load(4),
        "int2_decoded_at_load": decodes_at_load(2),
    }
    problems = [*_package_problems(packages), *_capability_problems(capabilities, max_opset)]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": {
            "name": processor_name(),
            "cores": os.cpu_count(),
            "features": list(features),
        },
        "packages": packages,
        "onnxruntime": {
            "version": ort.__version__,
            "providers": list(ort.get_available_providers()),
            "max_opset": max_opset,
        },
        "capabilities": capabilities,
        "problems": [asdict(problem) for problem in problems],
    }


def environment() -> dict[str, str]:
    """What a result depends on besides its inputs: processor, provider and versions."""
    versions = {name: _version(name) for name in ("onnx", "onnxruntime", "numpy", "torch")}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "processor_features": " ".join(processor_features()),
        "provider": PROVIDER,
        **{name: version for name, version in versions.items() if version is not None},
    }


def processor_name() -> str:
    """The processor as the system calls it."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def processor_features() -> tuple[str, ...]:
    """Those of `FEATURES` the processor has; empty where the system does not tell."""
    found = re.search(r"^flags\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return tuple(feature for feature in FEATURES if feature in flags)


def newest_opset() -> int:
    """The newest version of the default operator set that onnxruntime loads."""
    version = _OLDEST_OPSET
    while _loads(_identity(version + 1)):
        version += 1
    return version


def saturation_free() -> bool:
    """Whether sums of unsigned times signed 8-bit products are exact.

    AVX2 and AVX512 kernels without VNNI add two products in 16 bits: 2 * 255 * 127 does not fit.
    """
    size = 64
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])],
        [onnx.numpy_helper.from_array(np.full((size, size), 127, np.int8), "w")],
    )
    sums = Session(_model(graph, _OLDEST_OPSET), threads=1).run(
        {"x": np.full((size, size), 255, np.uint8)}
    )["y"]
    return bool(np.all(sums == size * 255 * 127))


def decodes_at_load(bits: int) -> bool:
    """Whether packed weights of 4 or 2 bits, cast to INT8, end in an integer convolution."""
    packed = {4: TensorProto.INT4, 2: TensorProto.INT2}[bits]
    opset = {4: 21, 2: 25}[bits]
    codes = np.resize(np.array([-2, -1, 0, 1], np.float32), (4, 4, 1, 1))
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["xd"]),
            helper.make_node("Cast", ["packed"], ["codes"], to=TensorProto.INT8),
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0),
            helper.make_node("Conv", ["xd", "w"], ["yf"], name="conv"),
            helper.make_node("QuantizeLinear", ["yf", "one", "zero"], ["y"]),
        ],
        "decoding",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 4, 2, 2])],
        [
            helper.make_tensor("packed", packed, codes.shape, codes.ravel()),
            onnx.numpy_helper.from_array(np.ones(4, np.float32), "scale"),
            onnx.numpy_helper.from_array(np.array(1, np.float32), "one"),
            onnx.numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        ],
    )
    try:
        nodes = executed(_model(graph, opset), threads=1)
    except ModelError:
        return False
    return integer_kernels(["conv"], nodes)["conv"] is not None


def _package_problems(packages: dict[str, str | None]) -> list[Problem]:
    problems = [
        Problem(f"{name} is not installed", f"pip install {name}")
        for name, version in packages.items()
        if version is None and name not in _OPTIONAL
    ]
    torch, vision = packages["torch"], packages["torchvision"]
    # A torchvision built for another torch fails on import: torchvision::nms does not exist.
    if torch and vision and _build(torch) != _build(vision):
        problems.append(
            Problem(
                f"torch {torch} and torchvision {vision} are of different builds",
                "install both in one command from the same index",
            )
        )
    return problems


def _capability_problems(capabilities: dict[str, bool], max_opset: int) -> list[Problem]:
    problems = []
    if not capabilities["saturation_free_8bit"]:
        problems.append(
            Problem(
                "8-bit weights times 8-bit activations saturate on this processor (no VNNI)",
                "quantize with --target ort-cpu-avx2 (the default here): weights that do not",
            )
        )
    for bits, opset in ((4, 21), (2, 25)):
        if not capabilities[f"int{bits}_decoded_at_load"]:
            problems.append(
                Problem(
                    f"onnxruntime {ort.__version__} (opset {max_opset}) does not decode {bits}-bit "
                    "weights into an integer kernel",
                    f"install an onnxruntime that reads opset {opset}",
                )
            )
    return problems


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _build(version: str) -> str:
    """The local part of a version: "cpu" of 2.13.0+cpu."""
    return version.partition("+")[2]


def _cpuinfo() -> str:
    """Linux's description of the processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _identity(opset: int) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    return _model(graph, opset)


def _model(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSIONS.get(opset, 10),
    )


def _loads(model: onnx.ModelProto) -> bool:
    try:
        Session(model, threads=1)
    except ModelError:
        return False
    return True
