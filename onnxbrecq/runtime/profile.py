"""What each node of a default session costs, and what it computes with: onnxruntime's own profile.

A kernel computes on integers if it is one of `INTEGER_KERNELS` or the first thing it reads is an
integer of at most 16 bits; nodes on wider integers (shapes, indices) are neither integer nor float.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import onnx

from onnxbrecq.runtime.kernels import INTEGER_KERNELS
from onnxbrecq.runtime.session import Session, session_options

if TYPE_CHECKING:
    from onnxbrecq.data.dataset import Feed

_SUFFIX = "_kernel_time"
_NARROW = frozenset({"int4", "uint4", "int2", "uint2", "int8", "uint8", "int16", "uint16"})
_FLOATS = frozenset({"float", "float16", "bfloat16", "double"})
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})

Arithmetic = Literal["integer", "float", "conversion", "other"]
Event = Mapping[str, Any]


class ProfiledNode(NamedTuple):
    """A node of the executed graph: its name, kernel and provider, what it computes with (a
    conversion quantizes or dequantizes), and the median milliseconds of a run.
    """

    name: str
    op: str
    provider: str
    arithmetic: Arithmetic
    ms: float


def profile(
    model: onnx.ModelProto | Path, feed: "Feed", *, threads: int | None = None, runs: int = 5
) -> tuple[ProfiledNode, ...]:
    """The nodes of a default session in the order they first ran, with median times of some runs.

    Args:
        model: a model in memory, or its file.
        feed: what each run reads.
        threads: of one operator.
        runs: those that count; one before them does not.

    Raises:
        ModelError: the model does not load or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = Session(model, options=options)
        for _ in range(runs + 1):
            session.run(feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _kernels(events)


def _kernels(events: Sequence[Event]) -> tuple[ProfiledNode, ...]:
    """The nodes by their events; the first run is left out of the times."""
    ends = sorted(e["ts"] + e["dur"] for e in events if e["name"] == "model_run")
    spent: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(len(ends)))
    first: dict[tuple[str, str], Event] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = event["name"], event["args"]["node_index"]
            first.setdefault(key, event)
            spent[key][np.searchsorted(ends, event["ts"])] += event["dur"] / 1e3
    return tuple(
        ProfiledNode(
            name=event["name"].removesuffix(_SUFFIX),
            op=event["args"]["op_name"],
            provider=event["args"]["provider"],
            arithmetic=_arithmetic(event["args"]),
            ms=float(np.median(spent[key][1:])),
        )
        for key, event in first.items()
    )


def _arithmetic(told: Event) -> Arithmetic:
    if told["op_name"] in _CONVERSIONS:
        return "conversion"
    reads = [kind for entry in told["input_type_shape"] for kind in entry]
    if told["op_name"] in INTEGER_KERNELS or (reads and reads[0] in _NARROW):
        return "integer"
    makes = [kind for entry in told["output_type_shape"] for kind in entry]
    return "float" if _FLOATS & {*reads[:1], *makes} else "other"
