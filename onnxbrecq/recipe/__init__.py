"""What the user asks for: the recipe, its parts, and how they are read from TOML.

The only place with defaults.
"""

from onnxbrecq.recipe.budget import Budget, Latency
from onnxbrecq.recipe.preprocess import PRESETS, Preprocess
from onnxbrecq.recipe.recipe import (
    ACTIVATION_BITS,
    BLOCK_SIZES,
    TARGETS,
    WEIGHT_BITS,
    Recipe,
)
from onnxbrecq.recipe.reconstruction import EFFORTS, Reconstruction

__all__ = [
    "ACTIVATION_BITS",
    "BLOCK_SIZES",
    "EFFORTS",
    "PRESETS",
    "TARGETS",
    "WEIGHT_BITS",
    "Budget",
    "Latency",
    "Preprocess",
    "Recipe",
    "Reconstruction",
]
