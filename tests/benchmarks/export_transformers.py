"""Exports small transformers of Hugging Face's architectures to ONNX, for `coverage.py`; by hand.

    python tests/benchmarks/export_transformers.py --output DIR [--only NAMES] \
        [--exporter torchscript,dynamo]

Needs `transformers` (5.x) and, for torch's newer exporter, onnxscript. Weights are random, from one
seed; each has two layers of 64 channels. Those of text take any number of tokens, under a mask, and
those of images any number of images. What is exported already stays.
"""

import argparse
import importlib.util
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from export_torchvision import images, randomise
from torch import Tensor, nn

log = logging.getLogger("export_transformers")

_WORDS, _TOKENS, _SIDE = 300, 12, 64
_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 128, "vocab_size": _WORDS}  # fmt: skip
_VISION = {key: value for key, value in _TEXT.items() if key != "vocab_size"} | {
    "image_size": _SIDE, "patch_size": 16,
}  # fmt: skip
_STAGES = {"hidden_sizes": [32, 32, 32], "neck_hidden_sizes": [8, 16, 16, 24, 24, 32, 64]}
# Name → class of the model, class of its configuration, and what is small in it.
TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig",
                   {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 300}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig",
                {**_TEXT, "embedding_size": 64}),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 32}),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", _TEXT),
    "deberta_v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config",
                   {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                    "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
    "mobilebert": ("MobileBertForSequenceClassification", "MobileBertConfig",
                   {"vocab_size": _WORDS, "num_hidden_layers": 2}),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig",
                   {**_TEXT, "pad_token_id": 0, "reference_compile": False}),
    "t5_encoder": ("T5EncoderModel", "T5Config",
                   {"vocab_size": _WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2,
                    "num_heads": 4}),
    "gpt2": ("GPT2Model", "GPT2Config",
             {"vocab_size": _WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4}),
}  # fmt: skip
IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _VISION),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _VISION),
    "beit": ("BeitForImageClassification", "BeitConfig",
             {**_VISION, "use_relative_position_bias": True}),
    "swin": ("SwinForImageClassification", "SwinConfig",
             {"image_size": _SIDE, "patch_size": 4, "embed_dim": 32, "depths": [2, 2],
              "num_heads": [2, 4], "window_size": 4}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", _VISION),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig",
                    {**_VISION, "projection_dim": 32}),
    "yolos": ("YolosForObjectDetection", "YolosConfig",
              {**_VISION, "image_size": [_SIDE, _SIDE], "num_detection_tokens": 5}),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig",
                 {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2}),
    "mobilevit": ("MobileViTForImageClassification", "MobileViTConfig",
                  {"image_size": _SIDE, **_STAGES}),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig",
                  {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1],
                   "decoder_hidden_size": 32}),
}  # fmt: skip
_OPSET = {"torchscript": 17, "dynamo": 18}
_OUTPUTS = ("logits", "image_embeds", "last_hidden_state")


class _Positional(nn.Module):
    """A model of keywords as one of positions, with one output."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Any:
        found = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return next(found[name] for name in _OUTPUTS if name in found)


def load_transformers() -> Any:
    """transformers, without a torchvision that may not load beside the installed torch.

    Not the benchmark of that name in this folder.
    """
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name.partition(".")[0] == "torchvision" else find(name, *rest)

    importlib.util.find_spec = without
    import transformers  # type: ignore[import-not-found] # noqa: PLC0415

    return transformers


def export(name: str, exporter: str, path: Path) -> None:
    """Writes the ONNX file of one architecture."""
    torch.manual_seed(0)
    library = load_transformers()
    kind, config, small = {**TEXT, **IMAGES}[name]
    settings = getattr(library, config)(**small)
    model = getattr(library, kind)(settings).eval()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    names, sample, free = _sample(name in TEXT)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        randomise(_Positional(model, names), images(32, _SIDE))  # or activations fade away
    options: dict[str, Any] = {"input_names": list(names), "output_names": ["out"],
                               "opset_version": _OPSET[exporter]}  # fmt: skip
    if exporter == "dynamo":
        any_size = dict.fromkeys(range(len(free)), torch.export.Dim.DYNAMIC)
        options |= {"dynamo": True, "external_data": False, "verbose": False}
        options["dynamic_shapes"] = (tuple(any_size for _ in names),)
    else:
        axes = {name: dict(enumerate(free)) for name in names}
        options |= {"dynamo": False, "dynamic_axes": {**axes, "out": {0: free[0]}}}
    torch.onnx.export(_Positional(model, names).eval(), sample, str(path), **options)


def _sample(text: bool) -> tuple[tuple[str, ...], tuple[Tensor, ...], Any]:
    """Names of the inputs, inputs, and names of their first, free axes."""
    if text:
        ids = torch.randint(1, _WORDS, (2, _TOKENS))
        return ("input_ids", "attention_mask"), (ids, torch.ones_like(ids)), ("batch", "sequence")
    return ("pixel_values",), (torch.randn(2, 3, _SIDE, _SIDE),), ("batch",)


def main() -> None:
    """Exports what is not there yet; an export that fails is told and left out."""
    parser = argparse.ArgumentParser(description="Exports transformers of Hugging Face.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join([*TEXT, *IMAGES]))
    parser.add_argument("--exporter", default="torchscript,dynamo")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.only.split(","):
        for exporter in arguments.exporter.split(","):
            path = arguments.output / f"hf_{name}-{exporter}.onnx"
            if path.exists():
                continue
            started = time.perf_counter()
            try:
                export(name, exporter, path)
            except Exception as error:  # an exporter may fail in any way
                path.unlink(missing_ok=True)
                log.info("%s: %.200s", path.name, " ".join(str(error).split()))
                continue
            log.info("%s: %.1f s", path.name, time.perf_counter() - started)


if __name__ == "__main__":
    main()
