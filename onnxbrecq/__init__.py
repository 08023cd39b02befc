"""Post-training quantization of ONNX models by block reconstruction.

    import onnxbrecq
    result = onnxbrecq.quantize("model.onnx", "calibration.npz")

Names are imported when they are first used, so that `import onnxbrecq` loads neither torch nor
onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxbrecq.data.dataset import Dataset
    from onnxbrecq.emission import emit_plan
    from onnxbrecq.errors import (
        DataError,
        EmissionError,
        ModelError,
        OnnxbrecqError,
        OutputError,
        PlanError,
        RecipeError,
    )
    from onnxbrecq.graph.inspection import inspect
    from onnxbrecq.pipeline import quantize, validate
    from onnxbrecq.plan import QuantPlan
    from onnxbrecq.recipe import BLOCK_SIZES, TARGETS, Preprocess, Recipe, Reconstruction
    from onnxbrecq.report.result import Emission, Result
    from onnxbrecq.runtime.doctor import doctor

    __version__: str

__all__ = [
    "BLOCK_SIZES",
    "TARGETS",
    "DataError",
    "Dataset",
    "Emission",
    "EmissionError",
    "ModelError",
    "OnnxbrecqError",
    "OutputError",
    "PlanError",
    "Preprocess",
    "QuantPlan",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Result",
    "__version__",
    "doctor",
    "emit_plan",
    "inspect",
    "quantize",
    "validate",
]

_HOMES = {
    "BLOCK_SIZES": "onnxbrecq.recipe",
    "DataError": "onnxbrecq.errors",
    "Dataset": "onnxbrecq.data.dataset",
    "Emission": "onnxbrecq.report.result",
    "EmissionError": "onnxbrecq.errors",
    "ModelError": "onnxbrecq.errors",
    "OnnxbrecqError": "onnxbrecq.errors",
    "OutputError": "onnxbrecq.errors",
    "PlanError": "onnxbrecq.errors",
    "Preprocess": "onnxbrecq.recipe",
    "QuantPlan": "onnxbrecq.plan",
    "Recipe": "onnxbrecq.recipe",
    "RecipeError": "onnxbrecq.errors",
    "Reconstruction": "onnxbrecq.recipe",
    "Result": "onnxbrecq.report.result",
    "TARGETS": "onnxbrecq.recipe",
    "doctor": "onnxbrecq.runtime.doctor",
    "emit_plan": "onnxbrecq.emission",
    "inspect": "onnxbrecq.graph.inspection",
    "quantize": "onnxbrecq.pipeline",
    "validate": "onnxbrecq.pipeline",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("onnxbrecq")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
