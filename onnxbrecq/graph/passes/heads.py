"""The last layers, each for itself: boxes and scores never share a scale.

A Conv whose output channels are cut apart, and only that, is several Convs,

    (W x + b)[k:l] = W[k:l] x + b[k:l]

so that each part has a quantizer of its own. Only where no layer follows: there distances, scores
and masks lie side by side, each with its own range; elsewhere a single kernel serves all parts.
"""

from dataclasses import dataclass

import numpy as np
import onnx

from onnxbrecq.graph.passes.editor import Editor, altered, is_a
from onnxbrecq.graph.passes.values import number

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Cut:
    """Channels `start` to `stop` of a tensor, under a name of their own."""

    output: str
    start: int
    stop: int


def edit_heads(editor: Editor) -> None:
    """A last Conv that is cut apart along its channels becomes one for each part (see above)."""
    before = _before_layers(editor)
    for node in editor.nodes:
        if not editor.has(node) or not is_a(node, "Conv") or node.output[0] in before:
            continue
        reader = editor.reader(node.output[0], "Split")
        cuts = None if reader is None else _cuts(editor, reader)
        if reader is not None and cuts is not None and number(node, "group", 1) == 1:
            _edit(editor, node, reader, cuts)


def _edit(editor: Editor, conv: onnx.NodeProto, split: onnx.NodeProto, cuts: list[_Cut]) -> None:
    constants = [editor.constant(name) for name in conv.input[1:] if name]
    if any(value is None or len(value) != cuts[-1].stop for value in constants):
        return
    made = []
    for i, cut in enumerate(cuts):
        parts = [
            editor.add_constant(f"{cut.output}~{what}", value[cut.start : cut.stop])
            for what, value in zip(("weight", "bias"), constants, strict=False)
            if value is not None
        ]
        part = altered(conv, inputs=[conv.input[0], *parts], output=cut.output)
        part.name = f"{conv.name}/{i}"
        made.append(part)
    editor.replace([conv, split], made)


def _cuts(editor: Editor, split: onnx.NodeProto) -> list[_Cut] | None:
    """The parts into which the Split cuts channels; None if it does not, or where is not known."""
    shape = editor.shape(split.input[0])
    sizes = editor.constant(split.input[1]) if len(split.input) > 1 else None
    if not shape or sizes is None or int(number(split, "axis", 0)) % len(shape) != 1:
        return None
    stops = [int(stop) for stop in np.cumsum(sizes)]
    starts = [0, *stops[:-1]]
    whole = all(start < stop for start, stop in zip(starts, stops, strict=True))
    if not all(split.output) or len(stops) != len(split.output) or not whole:
        return None
    return [_Cut(*found) for found in zip(split.output, starts, stops, strict=True)]


def _before_layers(editor: Editor) -> set[str]:
    """The tensors that a layer depends on."""
    found: set[str] = set()
    for node in reversed(editor.nodes):
        layer = is_a(node, *_LAYERS) and editor.is_constant(node.input[1])
        if layer or not found.isdisjoint(node.output):
            found.update(node.input)
    return found
