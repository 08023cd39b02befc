"""Post-training quantization of ONNX models by block reconstruction.

    import onnxbrecq
    result = onnxbrecq.quantize("model.onnx", "calibration.npz")

Names are imported when they are first used, so that `import onnxbrecq` loads neither torch nor
onnxruntime.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxbrecq.comparison import compare
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
    from onnxbrecq.handover import Bundle, bundle
    from onnxbrecq.pipeline.explore import pareto, sensitivities
    from onnxbrecq.pipeline.quantize import quantize
    from onnxbrecq.pipeline.repair import repair
    from onnxbrecq.pipeline.validate import validate
    from onnxbrecq.plan import QuantPlan
    from onnxbrecq.preview import Preview, preview
    from onnxbrecq.recipe import (
        BLOCK_SIZES,
        PRESETS,
        TARGETS,
        Budget,
        Latency,
        Preprocess,
        Recipe,
        Reconstruction,
    )
    from onnxbrecq.reference import recipe_markdown, recipe_toml
    from onnxbrecq.report.comparison import Comparison
    from onnxbrecq.report.junit import as_junit
    from onnxbrecq.report.markdown import as_markdown
    from onnxbrecq.report.result import Emission, Result
    from onnxbrecq.runtime.doctor import doctor
    from onnxbrecq.runtime.verify import verify
    from onnxbrecq.search.findings import Exploration, Front

    __version__: str

__all__ = [
    "BLOCK_SIZES",
    "PRESETS",
    "TARGETS",
    "Budget",
    "Bundle",
    "Comparison",
    "DataError",
    "Dataset",
    "Emission",
    "EmissionError",
    "Exploration",
    "Front",
    "Latency",
    "ModelError",
    "OnnxbrecqError",
    "OutputError",
    "PlanError",
    "Preprocess",
    "Preview",
    "QuantPlan",
    "Recipe",
    "RecipeError",
    "Reconstruction",
    "Result",
    "__version__",
    "as_junit",
    "as_markdown",
    "bundle",
    "compare",
    "doctor",
    "emit_plan",
    "inspect",
    "pareto",
    "preview",
    "quantize",
    "recipe_markdown",
    "recipe_toml",
    "repair",
    "sensitivities",
    "validate",
    "verify",
]

_HOMES = {
    "BLOCK_SIZES": "onnxbrecq.recipe",
    "Budget": "onnxbrecq.recipe",
    "Bundle": "onnxbrecq.handover",
    "Comparison": "onnxbrecq.report.comparison",
    "DataError": "onnxbrecq.errors",
    "Dataset": "onnxbrecq.data.dataset",
    "Emission": "onnxbrecq.report.result",
    "EmissionError": "onnxbrecq.errors",
    "Exploration": "onnxbrecq.search.findings",
    "Front": "onnxbrecq.search.findings",
    "Latency": "onnxbrecq.recipe",
    "ModelError": "onnxbrecq.errors",
    "OnnxbrecqError": "onnxbrecq.errors",
    "OutputError": "onnxbrecq.errors",
    "PlanError": "onnxbrecq.errors",
    "PRESETS": "onnxbrecq.recipe",
    "Preprocess": "onnxbrecq.recipe",
    "Preview": "onnxbrecq.preview",
    "QuantPlan": "onnxbrecq.plan",
    "Recipe": "onnxbrecq.recipe",
    "RecipeError": "onnxbrecq.errors",
    "Reconstruction": "onnxbrecq.recipe",
    "Result": "onnxbrecq.report.result",
    "TARGETS": "onnxbrecq.recipe",
    "as_junit": "onnxbrecq.report.junit",
    "as_markdown": "onnxbrecq.report.markdown",
    "bundle": "onnxbrecq.handover",
    "compare": "onnxbrecq.comparison",
    "doctor": "onnxbrecq.runtime.doctor",
    "emit_plan": "onnxbrecq.emission",
    "inspect": "onnxbrecq.graph.inspection",
    "pareto": "onnxbrecq.pipeline.explore",
    "preview": "onnxbrecq.preview",
    "quantize": "onnxbrecq.pipeline.quantize",
    "recipe_markdown": "onnxbrecq.reference",
    "recipe_toml": "onnxbrecq.reference",
    "repair": "onnxbrecq.pipeline.repair",
    "sensitivities": "onnxbrecq.pipeline.explore",
    "validate": "onnxbrecq.pipeline.validate",
    "verify": "onnxbrecq.runtime.verify",
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
