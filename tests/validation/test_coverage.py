import onnx
import onnx.parser
import pytest

from onnxbrecq.graph.model import Model
from onnxbrecq.runtime.kernels import ExecutedNode, integer_kernels
from onnxbrecq.validation.coverage import coverage


@pytest.fixture
def reference() -> Model:
    """Two layers: 12 and 6 multiply-accumulates."""
    text = """<ir_version: 10, opset_import: ["": 21]>
        g (float[N, 4] x) => (float[N, 2] y)
        <float[4, 3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0},
         float[3, 2] v = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> {
            [big] h = MatMul (x, w)
            [act] r = Relu (h)
            [small] y = Gemm (r, v)
        }"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return Model(proto, (tuple(proto.graph.input), tuple(proto.graph.output)), batched=True)


@pytest.mark.parametrize(
    ("nodes", "fraction", "floats"),
    [
        ({"big": "QLinearMatMul", "small": "QGemm"}, 1.0, ()),
        ({"big": "QLinearMatMul", "small": "Gemm"}, 12 / 18, ("small",)),
        ({"small": "QGemm"}, 6 / 18, ("big",)),
        ({}, 0.0, ("big", "small")),
    ],
    ids=["all", "one-float", "one-missing", "none"],
)
def test_work_is_weighed_by_macs(
    reference: Model, nodes: dict[str, str], fraction: float, floats: tuple[str, ...]
) -> None:
    ran = [ExecutedNode(name, op, "") for name, op in nodes.items()]
    found = coverage(reference, integer_kernels(["big", "small"], ran))
    assert found.integer_macs_fraction == pytest.approx(fraction)
    assert found.float_nodes == floats


def test_a_model_without_weight_layers_has_no_integer_work() -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (float[N] y) {y = Neg(x)}'
    proto = onnx.parser.parse_model(text)
    model = Model(proto, (tuple(proto.graph.input), tuple(proto.graph.output)), batched=True)
    found = coverage(model, {})
    assert (found.integer_macs_fraction, found.float_nodes) == (0.0, ())
