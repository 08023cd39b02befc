from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnxbrecq.runtime.profile import profile

_TEXT = """<ir_version: 10, opset_import: ["": 21]>
    g (float[N, 4] x) => (float[N, 1] y)
    <float s = {0.1}, uint8 z = {128}, float[4, 1] w = {1, 2, 3, 4},
     int64[2] shape = {0, 4}> {
        q = QuantizeLinear (x, s, z)
        r = Reshape (q, shape)
        d = DequantizeLinear (r, s, z)
        e = Exp (d)
        f = MatMul (e, w)
        size = Shape (f)
        y = Reshape (f, size)
    }"""  # fmt: skip


def test_every_node_says_what_it_computes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = profile(onnx.parser.parse_model(_TEXT), {"x": np.ones((3, 4), np.float32)}, threads=1)
    found = {node.op: node.arithmetic for node in nodes if node.op != "Reshape"}
    assert found == {"QuantizeLinear": "conversion", "DequantizeLinear": "conversion",
                     "Exp": "float", "Shape": "float", "MatMul": "float"}  # fmt: skip
    assert sorted(n.arithmetic for n in nodes if n.op == "Reshape") == ["float", "integer"]
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}
    assert all(node.ms >= 0 for node in nodes)
    assert not list(tmp_path.iterdir())  # the profile's file is gone
