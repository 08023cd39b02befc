"""The plain facts of a report: files, layers, mean bits."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from onnxbrecq.emit.read import stored_bits, stored_blocks
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import fingerprint
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model
from onnxbrecq.report.result import FileFacts, LayerFacts

_FLOAT_BITS = 32


def source_facts(model: Model) -> FileFacts:
    """The float model's file."""
    return FileFacts(str(model.path), model.source_sha256, model.source_bytes, model.source_opset)


def output_facts(files: Sequence[Path], proto: onnx.ModelProto) -> FileFacts:
    """The quantized model's file, and the one with its constants where there is one."""
    size, digest = fingerprint(files)
    opset = max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=0)
    return FileFacts(str(files[0]), digest, size, opset)


def layer_facts(model: Model, quantized: onnx.ModelProto) -> tuple[LayerFacts, ...]:
    """Each weight layer of the float model with what the quantized graph gives it."""
    layers = weight_layers(model)
    names = tuple(layer.name for layer in layers)
    bits, blocks = stored_bits(quantized, names), stored_blocks(quantized, names)
    return tuple(
        LayerFacts(
            layer.name, layer.op, *bits[layer.name], layer.macs, layer.parameters,
            blocks.get(layer.name),
        )
        for layer in layers
    )  # fmt: skip


def mean_bits(layers: Sequence[LayerFacts]) -> tuple[float | None, float | None]:
    """Mean bits of weights (per parameter) and of the layers' inputs (per MAC); float is 32."""
    parameters = sum(layer.parameters for layer in layers)
    macs = sum(layer.macs for layer in layers)
    weights = sum(layer.parameters * (layer.weight_bits or _FLOAT_BITS) for layer in layers)
    inputs = sum(layer.macs * (layer.activation_bits or _FLOAT_BITS) for layer in layers)
    return weights / parameters if parameters else None, inputs / macs if macs else None
