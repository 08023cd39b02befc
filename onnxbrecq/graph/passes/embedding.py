"""onnxruntime's EmbedLayerNormalization, written as the tables and the norm that it is made of.

LayerNormalization(words[input_ids] + positions[position_ids or 0 ... S - 1] + segments[ids])
"""

import numpy as np
from onnx import TensorProto

from onnxbrecq.graph.passes.values import number
from onnxbrecq.graph.passes.written import Written

_IDS, _SEGMENT_IDS, _WORDS, _POSITIONS, _SEGMENTS, _GAMMA, _BETA, _MASK, _AT = range(9)  # inputs
_EPSILON = 1e-12


def embedding(written: Written) -> bool:
    """Writes the node; says whether it could."""
    ids, segment_ids, segments = map(written.input, (_IDS, _SEGMENT_IDS, _SEGMENTS))
    mask, lengths = written.input(_MASK), written.output(1)
    if bool(segment_ids) != bool(segments) or (lengths and not mask):
        return False
    if lengths:
        one, axis = (written.constant(name, np.array(value, dtype)) for name, value, dtype in
                     (("one", 1, np.int32), ("axis", [1], np.int64)))  # fmt: skip
        seen = written.add("Cast", written.add("Equal", mask, one), to=TensorProto.INT32)
        written.add("ReduceSum", seen, axis, keepdims=0)
        written.nodes[-1].output[0] = lengths
    words = written.add("Gather", written.input(_WORDS), ids)
    total = written.add("Add", words, _positions(written))
    if segments:
        total = written.add("Add", total, written.add("Gather", segments, segment_ids))
    if written.output(2):
        written.nodes[-1].output[0] = total = written.output(2)
    written.add(
        "LayerNormalization", total, written.input(_GAMMA), written.input(_BETA),
        name=written.node.name, last=True, axis=-1,
        epsilon=number(written.node, "epsilon", _EPSILON),
    )  # fmt: skip
    return True


def _positions(written: Written) -> str:
    """The rows [N, S, width] or [S, width] of the table of positions."""
    table, ids = written.input(_POSITIONS), written.input(_AT)
    if ids:
        return written.add("Gather", table, ids)
    length = written.add("Shape", written.input(_IDS), start=1, end=2)
    start = written.constant("start", np.zeros(1, np.int64))
    return written.add("Slice", table, start, length, start)
