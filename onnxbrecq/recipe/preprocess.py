"""How image files become inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from onnxbrecq.errors import RecipeError
from onnxbrecq.recipe.checks import numbers, one_of


@dataclass(frozen=True)
class Preprocess:
    """How an image file becomes a model input.

    Attributes:
        resize_short: scale the shorter side to this many pixels (bilinear), or None.
        resize: exact (height, width), or None; after `resize_short`.
        letterbox: (height, width) of a box that the image is scaled into, its proportions kept, or
            None; after `resize`.
        fill: the pixel value, 0…255, of what the letterbox leaves free, half on each side.
        center_crop: (height, width) cut from the middle, or None.
        scale: factor on the 0…255 values, before mean and std.
        mean: per channel, in the order of `channels`, after `scale`.
        std: per channel, likewise.
        channels: the order the model wants.
        layout: the order of the axes of one sample, batch aside.
    """

    resize_short: int | None = None
    resize: tuple[int, int] | None = None
    letterbox: tuple[int, int] | None = None
    fill: int = 0
    center_crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        one_of("data.preprocess.channels", self.channels, ("RGB", "BGR"))
        one_of("data.preprocess.layout", self.layout, ("NCHW", "NHWC"))
        if self.resize_short is not None and not numbers([self.resize_short], 1, int, least=1):
            raise RecipeError(f"data.preprocess.resize_short = {self.resize_short}: want pixels")
        if not numbers([self.fill], 1, int, least=0) or self.fill > 255:
            raise RecipeError(f"data.preprocess.fill = {self.fill}: want a pixel value, 0 to 255")
        for key in ("resize", "letterbox", "center_crop"):
            size = getattr(self, key)
            if size is not None and not numbers(size, 2, int, least=1):
                raise RecipeError(f"data.preprocess.{key} = {size}: want [height, width]")
        if not numbers([self.scale], 1, float):
            raise RecipeError(f"data.preprocess.scale = {self.scale}: want a number")
        for key in ("mean", "std"):
            if not numbers(getattr(self, key), 3, float):
                raise RecipeError(
                    f"data.preprocess.{key} = {getattr(self, key)}: want three numbers"
                )
        if 0 in self.std:
            raise RecipeError("data.preprocess.std: must not be 0")

    @classmethod
    def preset(cls, name: object) -> Self:
        """The preprocessing that goes by that name (`PRESETS`).

        Raises:
            RecipeError: none does.
        """
        one_of("data.preprocess.preset", name, tuple(PRESETS))
        return cls(**PRESETS[str(name)])


# What models of these origins take: torchvision's classifiers; those that came from Caffe (and
# Keras' mode "caffe"); TensorFlow's (Keras' mode "tf"); YOLO's detectors.
_CROPPED: Mapping[str, Any] = {"resize_short": 256, "center_crop": (224, 224)}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {**_CROPPED, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "imagenet-bgr-caffe": {
        **_CROPPED, "scale": 1.0, "mean": (103.939, 116.779, 123.68), "channels": "BGR",
    },
    "tf": {**_CROPPED, "scale": 1 / 127.5, "mean": (1.0, 1.0, 1.0), "layout": "NHWC"},
    "letterbox": {"letterbox": (640, 640), "fill": 114},
}  # fmt: skip
