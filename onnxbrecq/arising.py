"""Where a NaN arises: the first node, in the order of computation, that makes one of other numbers.

NaN in the middle of a network need not be wrong (the softmax of a row that a mask has closed,
replaced behind it), but no scale and no gradient can be had from it.
"""

import numpy as np

from onnxbrecq.data.dataset import Feed, Samples
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.extract import submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.runtime.session import Session

_PART = 8  # samples looked at together


def first_nan(samples: Samples) -> int | None:
    """The first sample that holds a NaN; None: none does."""
    if samples.dtype.kind != "f":
        return None
    for start in range(0, len(samples), _PART):
        part = np.asarray(samples[start : start + _PART])
        if np.isnan(part).any():
            rows = np.isnan(part.reshape(len(part), -1)).any(axis=1)
            return start + int(rows.argmax())
    return None


def origin(model: Model, feed: Feed, *, threads: int | None = None) -> str:
    """Which node of `model` makes the first NaN of a feed that has one, as words of a sentence."""
    made = tuple(name for node in model.nodes for name in node.output if name)
    probe = submodel(model, list(model.nodes), model.inputs, made)
    try:
        values = Session(probe.proto, optimize=False, threads=threads).run(feed)
    except ModelError:  # a tensor that cannot be an output: the node stays unknown
        return "a node that cannot be told makes NaN"
    for node in model.nodes:
        for name in node.output:
            value = values.get(name)
            if value is not None and value.dtype.kind == "f" and np.isnan(value).any():
                return f"node {node.name!r} ({node.op_type}) makes NaN in {name!r}"
    return "no node makes NaN alone, without optimisation"
