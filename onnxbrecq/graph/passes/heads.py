"""The last layers, each for itself: boxes and scores never share a scale.

A Conv whose output channels are cut apart, and only that, is several Convs; with k the channels of
one part,

    (W x + b)[k] = W[k] x + b[k]

so that each part has a quantizer of its own. Only where no layer follows: there distances, scores
and masks lie side by side, each with its own range; elsewhere a single kernel serves all parts.

Between Conv and cut values may be moved, passed through functions of one value, and joined with
those of other levels, which have a Conv each. All of that is done for each part alone:

    Conv [N, A (4 + C), H, W]  Reshape [N, A, 4 + C, H, W]  Transpose [N, A, H, W, 4 + C]  Sigmoid
    Split [N, A, H, W, 4] and [N, A, H, W, C]

becomes

    Conv [N, A 4, H, W]        Reshape [N, A, 4, H, W]      Transpose [N, A, H, W, 4]      Sigmoid
    Conv [N, A C, H, W]        Reshape [N, A, C, H, W]      Transpose [N, A, H, W, C]      Sigmoid

What of it is an output of the graph as well is joined of its parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxbrecq.graph.decoding import decoding
from onnxbrecq.graph.model import attribute
from onnxbrecq.graph.passes.cuts import CUTTING, Cut, cut_apart
from onnxbrecq.graph.passes.editor import Editor, altered, is_a
from onnxbrecq.graph.passes.kinds import Kinds, sources
from onnxbrecq.graph.passes.values import number

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOST = 16  # parts: each is a kernel, and reads the layer's input again

Way = list[tuple[onnx.NodeProto, Kinds]]  # nodes in order, and the kinds in what each makes


@dataclass(frozen=True)
class _Part:
    """What goes its own way: a cut, and its name for each tensor of the whole."""

    cut: Cut
    names: dict[str, str]


def edit_heads(editor: Editor) -> None:
    """Last Convs whose channels are cut apart become one for each part (see above)."""
    before = _before_layers(editor)
    read = [node.input[0] for node in editor.nodes if is_a(node, *CUTTING)]
    for name in dict.fromkeys(read):
        cutting = [node for node in editor.readers(name) if not is_a(node, "Shape")]
        found = cut_apart(editor, name, cutting) if cutting else None
        if found is None:
            continue
        kinds, cuts = Kinds(found.axis, found.length), found.cuts
        several = 1 < len(cuts) <= _MOST
        way = _way(editor, name, kinds, cutting, before) if several else None
        if way is not None and _can_be_joined(editor, way, cuts):
            _edit(editor, way, cuts)


def _way(
    editor: Editor,
    name: str,
    kinds: Kinds,
    readers: Sequence[onnx.NodeProto],
    before: set[str],
) -> Way | None:
    """The nodes that make the tensor out of last Convs; None if others make it, or read of it."""
    found: Way = []
    pending = [(name, kinds, readers)]
    while pending:
        name, kinds, readers = pending.pop()
        node = editor.producer(name)
        if node is None or not _read_by(editor, name, kinds, readers):
            return None
        if any(node is other for other, _ in found):
            return None  # joined with itself
        found.append((node, kinds))
        if is_a(node, "Conv"):
            if name in before or not _divisible(editor, node, kinds):
                return None
            continue
        made_of = sources(editor, node, kinds)
        if made_of is None:
            return None
        pending += [(source, at, [node]) for source, at in made_of]
    return found[::-1]


def _divisible(editor: Editor, conv: onnx.NodeProto, kinds: Kinds) -> bool:
    """Whether the kinds are output channels of the Conv, and it can be taken apart."""
    if kinds.axis != 1 or number(conv, "group", 1) != 1:
        return False
    names = [name for name in conv.input[1:] if name]
    lengths = {(editor.dims(name) or (0,))[0] for name in names if editor.is_constant(name)}
    length = lengths.pop() if len(lengths) == 1 else None
    constant = all(editor.is_constant(name) for name in names)
    return constant and isinstance(length, int) and length % (kinds.count * kinds.inner) == 0


def _read_by(editor: Editor, name: str, kinds: Kinds, readers: Sequence[onnx.NodeProto]) -> bool:
    """Whether `readers` alone read the tensor; anybody may read dimensions that all parts have."""
    known = {id(node) for node in readers}
    return all(
        id(node) in known or _reads_others(editor, node, name, kinds.axis)
        for node in editor.readers(name)
    )


def _reads_others(editor: Editor, node: onnx.NodeProto, name: str, axis: int) -> bool:
    """Whether the node is a Shape of which everybody reads other dimensions than this."""
    dims = editor.dims(name)
    if dims is None or not is_a(node, "Shape") or editor.is_output(node.output[0]):
        return False
    start, end = attribute(node, "start", 0), attribute(node, "end")
    assert isinstance(start, int)
    assert end is None or isinstance(end, int)
    axes = np.arange(len(dims))[start:end]
    for reader in editor.readers(node.output[0]) if axis in axes else ():
        places = editor.constant(reader.input[1]) if is_a(reader, "Gather") else None
        if places is None or (axes[places] == axis).any():
            return False
    return True


def _can_be_joined(editor: Editor, way: Way, cuts: Sequence[Cut]) -> bool:
    """Whether what is an output of the graph is all parts side by side."""
    joined = np.concatenate([cut.places for cut in _ordered(cuts)]).tolist()
    for node, kinds in way:
        name = node.output[0]
        if editor.is_output(name):
            dims = editor.dims(name)
            whole = dims is not None and dims[kinds.axis] == kinds.count * kinds.inner
            if not whole or joined != list(range(kinds.count)):
                return False
    return True


def _ordered(cuts: Sequence[Cut]) -> list[Cut]:
    return sorted(cuts, key=lambda cut: int(cut.places[0]))


def _edit(editor: Editor, way: Way, cuts: Sequence[Cut]) -> None:
    """Does all on the way once for each part."""
    last, kinds = way[-1]
    parts = [
        _Part(cut, {last.output[0]: _edit_cut(editor, cut, kinds.axis)}) for cut in _ordered(cuts)
    ]
    for node, kinds in way:
        name, made = node.output[0], list[onnx.NodeProto]()
        for i, part in enumerate(parts):
            part.names.setdefault(name, editor.free(f"{name}~{i}"))
            made += _done_for(editor, part, node, kinds)
            made[-1].name = f"{node.name}/{i}" if node.name else ""
        own = [part.names[name] for part in parts]
        if editor.is_output(name):
            made.append(onnx.helper.make_node("Concat", own, [name], axis=kinds.axis))
        shapes = [reader for reader in editor.readers(name) if is_a(reader, "Shape")]
        editor.replace([node], made)
        for shape in shapes:
            editor.replace([shape], [altered(shape, inputs=own[:1])])


def _edit_cut(editor: Editor, cut: Cut, axis: int) -> str:
    """Takes out what cuts; returns the name of what is to be there instead."""
    if not cut.flat:
        if editor.has(cut.node):
            editor.replace([cut.node], [])
        return cut.output
    name = editor.free(f"{cut.output}~{axis}")
    axes = editor.add_constant(f"{cut.output}~axes", np.array([axis]))
    squeeze = onnx.helper.make_node("Squeeze", [name, axes], [cut.output], name=cut.node.name)
    editor.replace([cut.node], [squeeze])
    return name


def _done_for(
    editor: Editor, part: _Part, node: onnx.NodeProto, kinds: Kinds
) -> list[onnx.NodeProto]:
    """What does for the part what `node` does for the whole; the last node makes it."""
    output = part.names[node.output[0]]
    inputs = [part.names.get(name, name) for name in node.input]
    if is_a(node, "Conv"):
        for i, what in enumerate(("weight", "bias")[: len(inputs) - 1], 1):
            value = editor.constant(inputs[i])
            if value is not None:
                rows = value[kinds.places(len(value), part.cut.places)]
                inputs[i] = editor.add_constant(f"{output}~{what}", rows)
    if not is_a(node, "Reshape"):
        return [altered(node, inputs=inputs, output=output)]
    shape = _shape(editor, part, node, kinds)
    return [shape, altered(node, inputs=[inputs[0], shape.output[0]], output=output)]


def _shape(editor: Editor, part: _Part, reshape: onnx.NodeProto, kinds: Kinds) -> onnx.NodeProto:
    """The node that makes the shape of the part: where the whole's is not known, that of the whole.

    It is computed again because a 0 or -1 in it may have meant a dimension that is now another one.
    """
    dims = editor.dims(reshape.output[0])
    assert dims is not None
    own = [dim if isinstance(dim, int) else 0 for dim in dims]
    own[kinds.axis] = own[kinds.axis] // kinds.count * len(part.cut.places)
    output = part.names[reshape.output[0]]
    known = editor.add_constant(f"{output}~known", np.array([isinstance(d, int) for d in dims]))
    value = editor.add_constant(f"{output}~dimensions", np.array(own))
    name = editor.free(f"{output}~shape")
    return onnx.helper.make_node("Where", [known, value, reshape.input[1]], [name])


def _before_layers(editor: Editor) -> set[str]:
    """The tensors that a layer depends on."""
    found: set[str] = set()
    for node in reversed(editor.nodes):
        if _is_layer(editor, node) or not found.isdisjoint(node.output):
            found.update(node.input)
    return found


def _is_layer(editor: Editor, node: onnx.NodeProto) -> bool:
    weight = editor.shape(node.input[1]) if is_a(node, *_LAYERS) else None
    if weight is None or not editor.is_constant(node.input[1]):
        return False
    sizes = tuple(size or 0 for size in weight)
    return decoding(node, sizes, maker=editor.producer, constant=editor.constant) is None
