import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract
from onnxbrecq.graph.islands import UNCONVERTED, islands
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.recon.bridge import BridgeError, _version, import_block
from onnxbrecq.runtime.session import Session


def test_blocks_compute_what_onnxruntime_computes(model: Model, data: Dataset) -> None:
    values = dict(data.inputs)
    for block in partition(model):
        part = extract(model, block)
        feed = {name: values[name] for name in block.inputs}
        expected = Session(part.proto).run(feed)
        made = import_block(part).arrays(feed)
        for name in block.outputs:
            # float32 sums of at most 72 products, in another order
            np.testing.assert_allclose(made[name], expected[name], atol=1e-5)
        values.update(expected)


def test_a_weight_is_replaced_by_name(model: Model, data: Dataset) -> None:
    import torch  # noqa: PLC0415

    block = import_block(model)
    feed = {"x": torch.from_numpy(np.asarray(data.inputs["x"]))}
    name = partition(model)[-1].weights[-1]
    zero = torch.zeros(model.initializers[name].shape)
    logits = block.run(feed, constants={name: zero})["logits"]
    assert torch.equal(logits, logits[:1].expand_as(logits))  # nothing but the bias is left


@pytest.mark.parametrize("steps", ["[1, 2]", "[2, 1]"])
def test_slice_with_constant_bounds(steps: str) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    sliced (float[N, 6, 6] x) => (float[N, A, B] y) {{
        s = Constant <value_ints = [1, -4]> ()
        e = Constant <value_ints = [5, 100]> ()
        a = Constant <value_ints = [1, 2]> ()
        t = Constant <value_ints = {steps}> ()
        y = Slice (x, s, e, a, t)
    }}"""
    model = from_proto(onnx.parser.parse_model(text))
    feed = {"x": np.arange(72, dtype=np.float32).reshape(2, 6, 6)}
    np.testing.assert_array_equal(
        import_block(model).arrays(feed)["y"], Session(model.proto).run(feed)["y"]
    )


def test_unknown_operator_is_refused_by_name() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
    custom (float[N, 4] x) => (float[N, 4] y) { [odd] y = my.domain.Frobnicate (x) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.node[0].name = "odd"
    with pytest.raises(BridgeError, match=r"odd.*Frobnicate"):
        import_block(from_proto(proto))


def test_import_works_beside_a_torchvision_that_does_not_load() -> None:
    """The symptom was: operator torchvision::nms does not exist."""
    script = """
import sys, importlib.abc

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] == 'torchvision' and name not in sys.modules:
            raise RuntimeError('operator torchvision::nms does not exist')

sys.meta_path.insert(0, Broken())
from onnxbrecq.recon.bridge import _onnx2torch
assert _onnx2torch('onnx2torch').convert
assert 'torchvision' not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_gemm_weight_in_both_layouts() -> None:
    import torch  # noqa: PLC0415

    for transposed in (0, 1):
        text = f"""
        <ir_version: 10, opset_import: ["" : 21]>
        dense (float[N, 4] x) => (float[N, 3] y) {{ y = Gemm <transB = {transposed}> (x, w) }}"""
        proto = onnx.parser.parse_model(text)
        weight = np.random.default_rng(0).normal(size=(3, 4) if transposed else (4, 3))
        proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
        block = import_block(from_proto(proto))
        x = torch.eye(4)
        replaced = torch.from_numpy(2 * weight.astype(np.float32))
        made = block.run({"x": x}, constants={"w": replaced})["y"]
        expected = replaced.T if transposed else replaced
        assert torch.allclose(made, expected)


def test_inspect_knows_the_islands_without_torch() -> None:
    """For every operator of every opset that a canonical model may have."""
    opsets = range(13, onnx.defs.onnx_opset_version() + 1)
    refused: dict[str, set[bool]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain != onnx.defs.ONNX_DOMAIN or schema.deprecated:
            continue
        for opset in opsets:
            if schema.since_version <= opset:
                refused.setdefault(schema.name, set()).add(_refused(schema.name, opset))
    assert all(len(answers) == 1 for answers in refused.values())
    known = UNCONVERTED & refused.keys()  # an older onnx has fewer operators
    assert {name for name, (answer,) in refused.items() if answer} == known


def _refused(op_type: str, opset: int) -> bool:
    newest = onnx.defs.get_schema(op_type, opset)
    defined = newest.has_function or newest.has_context_dependent_function
    return not newest.deprecated and not defined and _version(op_type, opset) is None


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_a_block_with_a_recurrent_layer_is_an_island_for_inspect_and_the_bridge(
    op_type: str,
) -> None:
    rows = {"LSTM": 12, "GRU": 9}[op_type]
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    recurrent (float[5, N, 4] x) => (float y) {{
        h, y = {op_type} <hidden_size = 3> (x, w, r)
    }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for name, width in (("w", 4), ("r", 3)):
        weight = np.ones((1, rows, width), np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    model = from_proto(proto)
    blocks = partition(model)
    assert islands(model, blocks) == (blocks[0].name,)
    with pytest.raises(BridgeError, match=op_type):
        import_block(extract(model, blocks[0]))
