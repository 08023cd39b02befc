from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import ModelError
from onnxbrecq.graph.model import Model
from onnxbrecq.report.result import ExecutedKernel, Execution, Latency
from onnxbrecq.validation.gate import Limits
from onnxbrecq.validation.validate import Validation, _slow, validate


@pytest.fixture
def labelled(samples: Dataset, weight: np.ndarray) -> Dataset:
    """Labels that the float model gets right, but for the first four."""
    classes = (samples.inputs["x"] @ weight).argmax(axis=1)
    classes[:4] = (classes[:4] + 1) % 3
    return Dataset(samples.inputs, classes, "labelled.npz")


@pytest.fixture
def found(quantized: Path, reference: Model, samples: Dataset, labelled: Dataset) -> Validation:
    return validate(
        quantized,
        reference,
        samples=samples,
        labelled=labelled,
        limits=Limits(max_drop=50.0),
        threads=1,
    )


def test_accuracy_is_measured_on_labelled_data(found: Validation) -> None:
    assert found.accuracy is not None
    assert found.accuracy.float == 90.0
    assert found.accuracy.samples == 40
    assert found.accuracy.drop == pytest.approx(found.accuracy.float - found.accuracy.quantized)


def test_eight_bits_are_near_the_float_model(found: Validation) -> None:
    assert found.fidelity is not None
    # The outputs' variance is 4 * 12 * 0.54 = 26 (data, weight); the noise's is 0.25^2 / 12 of the
    # output's step and 4 * 0.54 * 0.05^2 / 12 of the data's: 10 log10(26 / 0.0057) = 37 dB.
    assert found.fidelity.sqnr_db > 30
    assert found.fidelity.agreement is not None
    assert found.fidelity.agreement >= 95


def test_execution_is_measured(found: Validation) -> None:
    (execution,) = found.execution
    assert execution.provider == "CPUExecutionProvider"
    assert execution.loads
    assert (execution.integer_macs_fraction, execution.float_nodes) == (1.0, ())
    assert execution.latency_ms is not None
    assert execution.float_latency_ms is not None
    assert execution.speedup is not None
    assert min(execution.latency_ms, execution.float_latency_ms, execution.speedup) > 0
    assert [(latency.threads, latency.batch) for latency in execution.latencies] == [(1, 1), (1, 8)]
    first = execution.latencies[0]
    assert first.speedup == execution.speedup
    assert first.interval_95 is not None
    assert first.interval_95[0] <= first.speedup <= first.interval_95[1]
    kernels = {node.op: node.arithmetic for node in execution.nodes}
    assert kernels == {"QuantizeLinear": "conversion", "QGemm": "integer",
                       "DequantizeLinear": "conversion"}  # fmt: skip
    assert sum(node.share for node in execution.nodes) == pytest.approx(1)


def test_a_slower_model_says_so_and_names_its_costliest_nodes() -> None:
    def latency(batch: int, speedup: float, high: float) -> Latency:
        return Latency(1, batch, 1.0, speedup, speedup, (0.5, high))

    node = ExecutedKernel("conv", "QLinearConv", "CPUExecutionProvider", "integer", 2.0, 0.8)
    unsure = Execution("CPUExecutionProvider", True, 1.0, (), 1.0, 1.0, 0.9,
                       (latency(1, 0.9, 1.1),), (node,))  # fmt: skip
    assert _slow(unsure) == ()
    (line,) = _slow(replace(unsure, latencies=(latency(1, 0.9, 1.1), latency(8, 0.7, 0.8))))
    assert "0.70x as fast at batch 8" in line
    assert "conv (QLinearConv, integer, 80 %)" in line


def test_parity_and_gate_are_there(found: Validation) -> None:
    assert found.parity.max_steps is not None
    assert found.parity.nodes is not None
    assert found.parity.nodes.samples == 8
    assert found.parity.nodes.max_steps <= 1
    assert found.parity.divergence is not None
    assert found.parity.divergence.samples == 8
    assert found.gate.met is True
    assert not [note for note in found.notes if "slower" not in note]


def test_without_labels_the_gate_judges_agreement(
    quantized: Path, reference: Model, samples: Dataset
) -> None:
    found = validate(quantized, reference, samples=samples, limits=Limits(max_drop=0.0), threads=1)
    assert found.accuracy is None
    assert found.fidelity is not None
    assert found.fidelity.samples == 40
    assert found.gate.met is (found.fidelity.agreement == 100)


def test_a_float_copy_is_exact_and_has_no_integer_kernels(
    reference: Model, samples: Dataset, labelled: Dataset, tmp_path: Path
) -> None:
    onnx.save(reference.proto, tmp_path / "copy.onnx")
    found = validate(
        tmp_path / "copy.onnx",
        replace(reference, files=(tmp_path / "copy.onnx",)),
        samples=samples,
        labelled=labelled,
        limits=Limits(max_drop=0.0),
        threads=1,
    )
    assert found.accuracy is not None
    assert found.accuracy.interval_95 == (0.0, 0.0)
    assert found.gate.met is True
    assert found.execution[0].integer_macs_fraction == 0.0
    assert found.execution[0].float_nodes == ("gemm",)
    assert found.parity.max_steps is None


def test_a_model_of_fixed_batch_runs_sample_by_sample(
    quantized: Path, reference: Model, samples: Dataset
) -> None:
    proto = onnx.load(quantized)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(reference.proto)
    for graph in (proto.graph, fixed.graph):
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, quantized)
    model = Model(fixed, (tuple(fixed.graph.input), tuple(fixed.graph.output)), batched=False)
    found = validate(quantized, model, samples=samples, threads=1)
    assert found.fidelity is not None
    assert found.fidelity.samples == 40


def test_integer_arithmetic_has_its_bounds(
    quantized: Path, reference: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model has 12 multiply-accumulates.
    for most, wanted in ((12 * 3, 3), (11, None)):
        monkeypatch.setattr("onnxbrecq.validation.validate._REFERENCE_MACS", most)
        found = validate(quantized, reference, samples=samples, threads=1)
        assert (found.parity.nodes and found.parity.nodes.samples) == wanted
        assert any("take too long" in note for note in found.notes) is (wanted is None)


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_another_interface_is_refused(
    kind: str, quantized: Path, reference: Model, samples: Dataset
) -> None:
    proto = onnx.load(quantized)
    if kind == "outputs":
        proto.graph.output[0].name = proto.graph.node[-1].output[0] = "scores"
    else:
        proto.graph.input[0].name = proto.graph.node[0].input[0] = "image"
    onnx.save(proto, quantized)
    with pytest.raises(ModelError, match=f"its {kind} are"):
        validate(quantized, reference, samples=samples, threads=1)


def test_labels_without_class_scores_are_noted(tmp_path: Path, samples: Dataset) -> None:
    graph = helper.make_graph(
        [helper.make_node("Unsqueeze", ["x", "axes"], ["y"], name="shape")],
        "image",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 1, 4])],
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, tmp_path / "image.onnx")
    model = Model(proto, (tuple(graph.input), tuple(graph.output)), batched=True)
    found = validate(
        tmp_path / "image.onnx",
        model,
        samples=samples,
        labelled=samples,
        limits=Limits(max_drop=1),
        threads=1,
    )
    assert found.accuracy is None
    assert "labels were not used" in found.notes[0]
    assert found.gate.met is False
