from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import DataError, ModelError
from onnxbrecq.runtime.cache import Storage
from onnxbrecq.runtime.session import Session, paired_runs, run_batches

HEADER = '<ir_version: 10, opset_import: ["": 21, "my.domain": 1]>'

SCALE = f"""{HEADER}
    scale (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {{
        two = Constant <value: tensor = float[1] {{2.0}}> ()
        y = Mul (x, two)
        z = Neg (x)
    }}"""


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


@pytest.fixture
def samples() -> Dataset:
    return Dataset({"x": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)})


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as-written"])
def test_run_returns_every_output_by_name(samples: Dataset, optimize: bool) -> None:
    session = Session(model(SCALE), optimize=optimize, threads=1)
    assert session.inputs == ("x",)
    assert session.outputs == ("y", "z")
    outputs = session.run(samples.inputs)
    np.testing.assert_array_equal(outputs["y"], samples.inputs["x"] * 2)
    np.testing.assert_array_equal(outputs["z"], -samples.inputs["x"])


def test_opens_a_file(tmp_path: Path, samples: Dataset) -> None:
    onnx.save(model(SCALE), tmp_path / "model.onnx")
    outputs = Session(tmp_path / "model.onnx", threads=1).run(samples.inputs)
    np.testing.assert_array_equal(outputs["z"], -samples.inputs["x"])


@pytest.mark.parametrize(
    ("optimize", "level"),
    [
        (True, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (False, ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ],
    ids=["optimized", "as-written"],
)
def test_optimisations_are_all_on_or_all_off(
    optimize: bool, level: ort.GraphOptimizationLevel
) -> None:
    session = Session(model(SCALE), optimize=optimize, threads=1)
    assert session._ort.get_session_options().graph_optimization_level == level


def test_threads_are_as_asked_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    # The unused initializer makes onnxruntime warn at its default severity.
    text = f"{HEADER} g (float[1] x) => (float[1] y) <float[1] unused = {{1.0}}> {{ y = Neg (x) }}"
    session = Session(model(text), threads=2)
    assert session._ort.get_session_options().intra_op_num_threads == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_batches_are_concatenated_in_order(samples: Dataset, size: int) -> None:
    seen: list[tuple[str, int, int]] = []
    outputs = run_batches(
        Session(model(SCALE), threads=1),
        samples,
        size,
        Storage(),
        progress=lambda stage, done, total, detail="": seen.append((stage, done, total)),
        stage="here",
    )
    np.testing.assert_array_equal(outputs["z"][:], -samples.inputs["x"])
    assert len(seen) == -(-5 // size)
    assert seen[-1] == ("here", 5, 5)


def test_paired_runs_feed_both_sessions_the_same(samples: Dataset) -> None:
    session = Session(model(SCALE), threads=1)
    pairs = list(paired_runs(session, session, samples, 2))
    assert len(pairs) == 3
    for a, b in pairs:
        np.testing.assert_array_equal(a["y"], b["y"])


def test_no_samples_is_a_data_error() -> None:
    empty = Dataset({"x": np.zeros((0, 3), np.float32)}, origin="nothing.npz")
    with pytest.raises(DataError, match=r"nothing\.npz holds no samples"):
        run_batches(Session(model(SCALE), threads=1), empty, 2, Storage())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "g (float[1] x) => (float[1] y) { [a] y = my.domain.Foo(x) }",
            ["'a'", "Foo", "my.domain"],
        ),
        ("g (float[1] x) => (float[1] y) { [a] y = Foo(x) }", ["'a'", "Foo", "ai.onnx"]),
        ("g (bfloat16[1] x) => (bfloat16[1] y) { [a] y = Relu(x) }", ["'a'", "Relu", "ai.onnx"]),
    ],
    ids=["unknown-domain", "unknown-operator", "type-without-kernel"],
)
@pytest.mark.parametrize("on_disk", [True, False], ids=["file", "memory"])
def test_missing_kernel_is_named(text: str, says: list[str], on_disk: bool, tmp_path: Path) -> None:
    source: onnx.ModelProto | Path = model(f"{HEADER} {text}")
    if on_disk:
        onnx.save(source, tmp_path / "model.onnx")
        source = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="has no kernel in onnxruntime") as caught:
        Session(source, threads=1)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "content", [None, b"", b"not a model"], ids=["missing", "empty", "not-a-model"]
)
def test_unreadable_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        Session(path, threads=1)


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 4), np.float32)}, "Got: 4 Expected: 3"),
        ({"x": np.zeros((1, 3), np.float64)}, "double"),
    ],
    ids=["missing", "shape", "type"],
)
def test_refused_feed_is_explained(feed: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        Session(model(SCALE), threads=1).run(feed)
    assert "\n" not in str(caught.value)


def test_failing_kernel_is_explained_without_source_lines() -> None:
    text = "g (float[N] x, int64[1] s) => (float[M] y) { [a] y = Reshape(x, s) }"
    session = Session(model(f"{HEADER} {text}"), threads=1)
    with pytest.raises(ModelError, match=r"Name:'a'.*cannot be reshaped") as caught:
        session.run({"x": np.zeros(3, np.float32), "s": np.array([2])})
    assert "onnxruntime_src" not in str(caught.value)


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as-written"])
def test_a_model_beyond_protobuf_goes_through_a_file(
    monkeypatch: pytest.MonkeyPatch, optimize: bool
) -> None:
    monkeypatch.setattr("onnxbrecq.graph.write.LIMIT", 1000)
    weight = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    text = f"{HEADER} g (float[N, 40] x) => (float[N, 40] y) {{ y = MatMul (x, w) }}"
    big = onnx.parser.parse_model(text)
    big.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    before = big.SerializeToString()
    outputs = Session(big, optimize=optimize, threads=1).run({"x": np.eye(40, dtype=np.float32)})
    np.testing.assert_array_equal(outputs["y"], weight)
    assert big.SerializeToString() == before


def test_a_sequence_is_one_row_of_its_values() -> None:
    proto = model(f"""{HEADER} net (float[N, 4] x) => (seq(float[N, 2]) y) {{
        two = Constant <value = int64 {{2}}> () y = SplitToSequence <axis = 1> (x, two) }}""")
    made = Session(proto).run({"x": np.arange(8, dtype=np.float32).reshape(2, 4)})["y"]
    np.testing.assert_array_equal(made, [0, 1, 4, 5, 2, 3, 6, 7])


def test_maps_are_one_row_of_their_values() -> None:
    """What classifiers of scikit-learn end in."""
    proto = model(f"{HEADER} net (float[N, 2] x) => (float y) {{ y = Relu (x) }}")
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    node = onnx.helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml",
                                 classlabels_strings=["cat", "dog"])  # fmt: skip
    proto.graph.node[0].CopyFrom(node)
    scores = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    named = onnx.helper.make_map_type_proto(onnx.TensorProto.STRING, scores)
    proto.graph.output[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(named))
    made = Session(proto).run({"x": np.array([[1, 2], [3, 4]], np.float32)})["y"]
    np.testing.assert_array_equal(made, [1, 2, 3, 4])
