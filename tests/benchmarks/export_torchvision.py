"""Exports torchvision's architectures to ONNX, for `coverage.py`; run by hand.

    python tests/benchmarks/export_torchvision.py --output DIR [--only NAMES] \
        [--exporter torchscript,dynamo] [--side 224]

Needs torchvision and, for torch's newer exporter, onnxscript. Weights are random, from one seed;
the statistics of every batch normalisation are taken from noise and then jittered, so that folding
them is put to the test while activations keep their size; a network without any has its layers
scaled instead. An export that fails is kept as one line in OUTPUT/failures.json.

A torchvision whose compiled operators do not load beside the installed torch is enough: two of
them are written out below for the trace.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("export_torchvision")

# Architecture → side of the square input in pixels; the smallest that it works at, for VGG and
# AlexNet in both exporters: TorchScript's has no adaptive pooling to a size that does not divide.
CLASSIFIERS = {
    "alexnet": 224,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mnasnet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 224,
    "vgg11_bn": 224,
    "vit_b_32": 224,
    "wide_resnet50_2": 64,
}
DETECTORS = {
    "ssdlite320_mobilenet_v3_large": 320,
    "retinanet_resnet50_fpn": 320,
    "fasterrcnn_resnet50_fpn": 320,
}
_OPSET = {"torchscript": 17, "dynamo": 18}
_AUXILIARY = ("googlenet", "inception_v3")  # built with a second head, which only training needs


def load_torchvision() -> Any:
    """torchvision; where its compiled operators do not load, with nms and roi_align in torch."""
    try:
        import torchvision  # noqa: PLC0415
    except RuntimeError:
        torchvision = _without_compiled_operators()
    return torchvision


def _without_compiled_operators() -> Any:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
        "int pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _roi_align, "CPU")
    register = torch.library.register_fake

    def tolerant(name: str, *args: Any, **options: Any) -> Callable[[Any], Any]:
        known = name in ("torchvision::nms", "torchvision::roi_align")
        return register(name, *args, **options) if known else lambda function: function

    torch.library.register_fake = tolerant  # type: ignore[assignment]
    import torchvision  # noqa: PLC0415

    torch.library.register_fake = register
    _without_compiled_operators.library = library  # type: ignore[attr-defined]
    for function in (torchvision.ops.nms, torchvision.ops.roi_align):
        function.__globals__["_assert_has_ops"] = _operators_there
        function.__globals__["_has_ops"] = lambda: True
    return torchvision


def _operators_there() -> None:
    """Stands in for torchvision's check; no lambda, for TorchScript compiles it."""


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the kept boxes, best first."""
    from torchvision.ops import box_iou  # noqa: PLC0415

    order, kept = scores.argsort(descending=True), []
    while order.numel():
        best = order[0]
        kept.append(best)
        overlap = box_iou(boxes[best][None], boxes[order])[0]
        order = order[overlap <= threshold] if float(overlap[0]) > threshold else order[1:]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def _roi_align(
    features: Tensor,
    rois: Tensor,
    scale: float,
    height: int,
    width: int,
    _ratio: int,
    _aligned: bool,
) -> Tensor:
    """Its shape is all the trace needs: zeros [rois, C, height, width]."""
    return features.new_zeros(len(rois), features.shape[1], height, width)


def randomise(model: nn.Module, sample: Tensor) -> None:
    """Gives batch normalisations statistics of their own; LayerScale a visible size.

    The statistics are those of `sample` at each normalisation, then jittered; the next one sees
    what the jitter did, so that deviations do not add up over the depth. Every layer with a bias
    (one without batch normalisation behind it, as a rule) is scaled to an output of unit deviation:
    a gate that is shut for all samples would leave its channels without a variance to go by.
    """
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            parameter.data.uniform_(0.1, 0.3, generator=generator)
    hooks: list[Any] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            hook = partial(_normalise, generator)
            hooks.append(module.register_forward_pre_hook(hook))
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            hooks.append(module.register_forward_hook(_scale))
    model.eval()
    with torch.no_grad():
        model(sample)
    for hook in hooks:
        hook.remove()


def _normalise(generator: torch.Generator, norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Gives a batch normalisation the statistics of `inputs`, and parameters."""
    assert isinstance(norm, nn.BatchNorm2d)
    value = inputs[0]
    variance, mean = torch.var_mean(value, dim=(0, 2, 3))
    low, high = 0.5, 1.5
    norm.running_var = variance * torch.empty_like(mean).uniform_(low, high, generator=generator)
    shift = 0.1 * torch.empty_like(mean).normal_(generator=generator)
    norm.running_mean = mean + shift * variance.sqrt()
    norm.weight.data.uniform_(low, high, generator=generator)
    norm.bias.data.normal_(0, 0.1, generator=generator)


def images(count: int, side: int) -> Tensor:
    """Colours that vary over an image and from one to the next, under noise; [N, 3, side, side].

    Of noise alone deep layers see only its mean, the same for every sample; what little varies
    would then be normalised to unit variance again and again, until rounding errors are as large.
    """
    coarse = torch.randn(count, 3, 4, 4)
    smooth = nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return smooth + 0.3 * torch.randn(count, 3, side, side)


def _scale(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Divides a layer by its output's deviation; one of zeros is drawn first."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if not layer.weight.any():  # the head of a vision transformer
        nn.init.normal_(layer.weight)
        output = layer.forward(*inputs)
    deviation = output.std()
    layer.weight.data /= deviation
    if layer.bias is not None:
        layer.bias.data /= deviation
    return output / deviation


def export(name: str, exporter: str, path: Path, side: int | None) -> None:
    """Writes the ONNX file of one architecture; a classifier's with inputs of that side."""
    torch.manual_seed(0)
    if name in DETECTORS:
        model, sample = detector(name)
    else:
        model, sample = classifier(name, side or CLASSIFIERS[name])
    options: dict[str, Any] = {"input_names": ["image"], "opset_version": _OPSET[exporter]}
    if name not in DETECTORS:
        options["output_names"] = ["logits"]
    if exporter == "dynamo":
        options |= {"dynamo": True, "external_data": False}
        options["dynamic_shapes"] = ({0: torch.export.Dim("N", min=1, max=256)},)
    else:
        options["dynamo"] = False
        if name not in DETECTORS:
            options["dynamic_axes"] = {"image": {0: "N"}, "logits": {0: "N"}}
    torch.onnx.export(model, (sample,), str(path), **options)


def classifier(name: str, side: int) -> tuple[nn.Module, Any]:
    """A classifier in evaluation mode, and a batch of two for it."""
    models = load_torchvision().models
    settings: dict[str, Any] = {"init_weights": True} if name in _AUXILIARY else {}
    if name in _AUXILIARY:
        settings["aux_logits"] = False
    model = models.get_model(name, weights=None, **settings)
    randomise(model, images(32, side))
    return model, images(2, side)


def detector(name: str) -> tuple[nn.Module, Any]:
    """A detector in evaluation mode, and a batch of one image for it.

    With random weights every class is about as likely; thresholds lie where some boxes pass.
    """
    models, side = load_torchvision().models, DETECTORS[name]
    settings: dict[str, Any] = {"score_thresh": 0.02}
    if name != "ssdlite320_mobilenet_v3_large":
        settings = {"min_size": side, "max_size": side}
        threshold = {"fasterrcnn_resnet50_fpn": "box_score_thresh"}.get(name, "score_thresh")
        settings[threshold] = 0.011
    model = models.get_model(name, weights=None, weights_backbone=None, **settings)
    randomise(model.backbone, images(2, side))
    return _Batched(model.eval()), images(1, side)


class _Batched(nn.Module):
    """A detector that takes a batch of one image, as most exported ones do, and not a list."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found: list[dict[str, Tensor]] = self.detector([images[0]])
        return found[0]


def main() -> None:
    """Exports what is not there yet; an export that fails is told, kept as a line, and left out."""
    parser = argparse.ArgumentParser(description="Exports torchvision's architectures.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join([*CLASSIFIERS, *DETECTORS]))
    parser.add_argument("--exporter", default="torchscript,dynamo")
    parser.add_argument("--side", type=int, help="of classifiers' inputs; each has its own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = arguments.output / "failures.json"
    failures = json.loads(record.read_text()) if record.exists() else {}
    for name in arguments.only.split(","):
        for exporter in arguments.exporter.split(","):
            path = arguments.output / f"{name}-{exporter}.onnx"
            if path.exists() or (name in DETECTORS and exporter == "dynamo"):
                continue  # detectors: their data-dependent loops are not torch.export's
            started = time.perf_counter()
            try:
                export(name, exporter, path, arguments.side)
            except Exception as error:  # an exporter may fail in any way; the table says so
                path.unlink(missing_ok=True)
                failures[path.name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                record.write_text(json.dumps(failures, indent=1))
                log.info("%s: %s", path.name, failures[path.name])
                continue
            failures.pop(path.name, None)
            record.write_text(json.dumps(failures, indent=1))
            log.info("%s: %.1f s", path.name, time.perf_counter() - started)


if __name__ == "__main__":
    main()
