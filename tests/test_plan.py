import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from onnxbrecq import affine
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU
from onnxbrecq.errors import PlanError
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.plan import QType, QuantPlan, TensorQuant
from onnxbrecq.recipe import Recipe


def _plan() -> QuantPlan:
    weight = TensorQuant(
        QType(2, "half"),
        np.array([0.5, 0.25], np.float32),
        np.zeros(2, np.int32),
        0,
        np.array([[0, 1, 2], [3, 2, 1]], np.uint8),
    )
    data = TensorQuant(QType(8, "affine"), np.array(0.1, np.float32), np.array(7, np.int32))
    blocks = affine.block_quant(np.eye(5, 40, dtype=np.float32), QType(4, "affine"), 0, 16)
    biases = {"b:bias": np.array([1, -2], np.float32)}
    tensors = {"w": weight, "x:scale": data, "blocks": blocks}
    return QuantPlan(tensors, biases, "abc", "def", {"weights": 2})


def test_a_plan_survives_disk_unchanged(tmp_path: Path) -> None:
    plan, path = _plan(), tmp_path / "plan.safetensors"
    plan.save(path)
    loaded = QuantPlan.load(path)
    assert loaded == plan
    assert loaded.tensors["w"].levels is not None
    assert loaded.tensors["w"].levels.dtype == np.uint8
    assert loaded.tensors["x:scale"].axis is None


def test_the_header_is_in_order_whatever_the_library_makes_of_it(tmp_path: Path) -> None:
    """safetensors writes metadata in the order of a hash table, another in each process."""
    content = _plan().as_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert size % 8 == 0
    assert list(header) == sorted(header)
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_a_reloaded_plan_emits_the_same_bytes(model: Model, data: Dataset, tmp_path: Path) -> None:
    plan = calibrate(model, find_points(model), data, Recipe(weights=2, activations=4))
    plan.save(tmp_path / "plan.safetensors")
    loaded = QuantPlan.load(tmp_path / "plan.safetensors")
    first, second = (emit(model, p, ORT_CPU).SerializeToString() for p in (plan, loaded))
    assert first == second


def test_a_changed_plan_is_unequal() -> None:
    plan = _plan()
    assert plan.updated({}, {"b:bias": np.array([1, 2], np.float32)}) != plan
    assert plan.updated({"w": plan.tensors["x:scale"]}) != plan
    wider = dataclasses.replace(plan.tensors["blocks"], block_size=32)
    assert plan.updated({"blocks": wider}) != plan


@pytest.mark.parametrize("content", [b"", b"no plan at all", b"\x10" * 64], ids=str)
def test_a_damaged_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.safetensors"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.safetensors"):
        QuantPlan.load(path)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="missing"):
        QuantPlan.load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("tensor", "changed", "told"),
    [
        ("w", {"qtype": QType(5, "half")}, "5 bits on the grid 'half'"),
        ("w", {"qtype": QType(2, "other")}, "on the grid 'other'"),  # type: ignore[arg-type]
        ("w", {"scale": np.ones(2)}, "scales of float64"),
        ("w", {"zero_point": np.zeros(2, np.int64)}, "zero points of int64"),
        ("w", {"scale": np.ones(3, np.float32)}, "other numbers of scales"),
        ("w", {"scale": np.array([1, 0], np.float32)}, "not a positive number"),
        ("w", {"scale": np.array([1, np.nan], np.float32)}, "not a positive number"),
        ("w", {"zero_point": np.array([128, 0], np.int32)}, "beyond -128 to 127"),
        ("w", {"levels": np.full((2, 3), 4, np.uint8)}, "levels beyond its 2 bits"),
        ("w", {"levels": np.zeros((2, 3), np.int8)}, "levels beyond"),
        ("x:scale", {"zero_point": np.array(256, np.int32)}, "beyond 0 to 255"),
        ("x:scale", {"zero_point": np.array(-1, np.int32)}, "beyond 0 to 255"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_decision_that_cannot_be_is_refused(
    tensor: str, changed: dict[str, object], told: str, tmp_path: Path
) -> None:
    plan, path = _plan(), tmp_path / "m.plan"
    wrong = dataclasses.replace(plan.tensors[tensor], **changed)  # type: ignore[arg-type]
    plan.updated({tensor: wrong}).save(path)
    with pytest.raises(PlanError) as caught:
        QuantPlan.load(path)
    assert told in str(caught.value)
    assert f"tensor {tensor!r}" in str(caught.value)
