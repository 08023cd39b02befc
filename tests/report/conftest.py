"""A result and its evidence, made by hand, with names that a browser must not obey."""

from pathlib import Path

import pytest

from onnxbrecq.report.evidence import (
    Distribution,
    Evidence,
    Front,
    FrontPoint,
    Growth,
    Histogram,
    LayerNoise,
)
from onnxbrecq.report.result import (
    Accuracy,
    BlockFacts,
    Check,
    ExecutedKernel,
    Execution,
    Fidelity,
    FileFacts,
    Gate,
    Latency,
    LayerFacts,
    Result,
)

SCRIPT = "<script>document.body.dataset.obeyed = 'yes'</script>"
IMAGE = '"><img src=x onerror="document.body.dataset.obeyed = \'yes\'">'
NAMES = ("/features/conv", SCRIPT, IMAGE, "a & b &lt; %{x} <b>bold</b>")


@pytest.fixture
def result() -> Result:
    told = f"top-1 falls by 2.00 points in {SCRIPT}; at most 1 was asked for"
    check = Check("max_drop", 1.0, 2.0, False, told)
    nodes = tuple(
        ExecutedKernel(name, "QLinearConv", "CPUExecutionProvider", kind, 0.5, 0.25)
        for name, kind in zip(NAMES, ("integer", "float", "conversion", "other"), strict=True)
    )
    latency = Latency(1, 1, 2.0, 3.0, 1.5, (1.4, 1.6))
    return Result(
        tool_version="0.1.0",
        model=FileFacts("a.onnx", "ab", 4_000_000, 17),
        output=FileFacts(f"out/{SCRIPT.replace('/', '')}.onnx", "cd", 500_000, 21),
        weights_mean_bits=4.25,
        activations_mean_bits=8.0,
        layers=tuple(LayerFacts(name, "Conv", 4, None, 1000, 100) for name in NAMES),
        blocks=tuple(
            BlockFacts(name, (name,), 0.4, after, 100, 1.0, SCRIPT)
            for name, after in zip(NAMES, (0.1, 0.4, None, 0.0), strict=True)
        ),
        accuracy=Accuracy("top-1", 91.0, 89.0, 2.0, (0.5, 3.5), 1000, 30, 10, 0.002),
        fidelity=Fidelity(98.5, 21.25, 1000),
        execution=(
            Execution("CPUExecutionProvider", True, 0.75, NAMES[:2], 2.0, 3.0, 1.5, (latency,),
                      nodes),
        ),
        parity=None,
        gate=Gate({"max_drop": 1.0}, False, told, (check,)),
        total_seconds=12.34,
        stages={"load": 1.0},
        peak_bytes=1_000_000,
        environment={"processor": SCRIPT},
        notes=(f"a note on {IMAGE}",),
    )  # fmt: skip


@pytest.fixture
def evidence() -> Evidence:
    histogram = Histogram((-2.0, -1.0, 0.0, 1.0, 2.0), (0.1, 0.4, 0.4, 0.1))
    return Evidence(
        origin=SCRIPT,
        samples=32,
        growth=tuple(Growth(name, 0.1 * i, 0.05 * i) for i, name in enumerate(NAMES)),
        noise=tuple(LayerNoise(name, 0.01, None) for name in NAMES),
        worst=(
            Distribution(
                NAMES[1], histogram, ((-1, 0.5), (1, 0.5)), histogram, -1.0, 1.0, 0.5, 0.2
            ),
            Distribution(NAMES[2], None, (), None, None, None, None, None),
        ),
        thumbnails=("data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=",),
        front=Front("bytes", (FrontPoint(1e3, 0.1, SCRIPT), FrontPoint(2e3, 0.0, IMAGE, True))),
    )


@pytest.fixture
def page(result: Result, evidence: Evidence, tmp_path: Path) -> Path:
    from onnxbrecq.report.html import as_html  # noqa: PLC0415 -- plotly's script is 5 MB

    path = tmp_path / "report.html"
    path.write_bytes(as_html(result, evidence))
    return path
