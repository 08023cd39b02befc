"""Learning on a device other than the processor, on a stand-in for one.

The stand-in computes on the processor, but as on a GPU its tensors are not numpy's to read, and an
operation that meets tensors of both is an error.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from onnxbrecq import blockwise, curvature, parts
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit.targets import ORT_CPU
from onnxbrecq.errors import RecipeError
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.load import load
from onnxbrecq.graph.points import find_points
from onnxbrecq.parts import Task
from onnxbrecq.plan import QuantPlan
from onnxbrecq.progress import silent
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.recon import device
from onnxbrecq.recon.device import CPU, Rows, learning_device

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_THERE = torch.device("meta")  # a type of device that every build of torch has


class _Away(torch.Tensor):
    """A tensor on the stand-in; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls: type[Self], inner: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=_THERE,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _dispatched(func, args, kwargs or {})


class _StandIn(TorchDispatchMode):
    """Within the context tensors can be made on the stand-in, and brought there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _dispatched(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Within the context numbers go to the stand-in and come from it: they are not dispatched."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == _THERE:
            return torch.tensor(*args, **{**kwargs, "device": CPU}).to(_THERE)
        if func is torch.Tensor.tolist:
            return _inside(args[0]).tolist()
        return func(*args, **kwargs)


def _dispatched(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = any(isinstance(t, _Away) for t in tensors)
    here = any(t.ndim and not isinstance(t, _Away) for t in tensors)
    if away and here and func is not torch.ops.aten.copy_.default:
        raise RuntimeError(f"{func}: tensors on the processor meet tensors on the device")
    target = kwargs.get("device")
    inner = {**kwargs, "device": CPU} if target is not None else kwargs
    made = func(*tree_map(_inside, args), **tree_map(_inside, dict(inner)))
    if func._schema.is_mutable and tensors and func._schema.returns:
        return args[0]
    away = away if target is None else target == _THERE
    return tree_map(lambda t: _Away(t) if away and isinstance(t, torch.Tensor) else t, made)


def _inside(value: Any) -> Any:
    return value.inner if isinstance(value, _Away) else value


@contextmanager
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the context the stand-in is chosen as a GPU would be."""
    with monkeypatch.context() as patch, _StandIn(), _Literals():
        for module in (parts, curvature):
            patch.setattr(module, "learning_device", lambda _: _THERE)
        patch.setattr(device, "_free", lambda _: 1 << 30)
        optimizer = importlib.import_module("torch.optim.optimizer")
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [_THERE.type])
        yield


def _learned(name: str, settings: Reconstruction) -> QuantPlan:
    model = load(_FIXTURES / f"{name}.onnx")
    with np.load(_FIXTURES / f"{name}.calib.npz") as arrays:
        data = Dataset({key: arrays[key][:64] for key in arrays.files})
    recipe = Recipe(weights=2, activations=4, threads=1, reconstruction=settings)
    points = find_points(model)
    task = Task(model, partition(model), points, data, recipe, ORT_CPU)
    return blockwise.walk(task, calibrate(model, points, data, recipe), silent).plan


@pytest.mark.parametrize(("start", "loss"), [("second-order", "mse"), ("nearest", "fisher")])
@pytest.mark.parametrize("name", ["residual", "inverted", "vit"])
def test_what_is_learned_on_a_device_is_what_is_learned_on_the_processor(
    name: str, start: Any, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Reconstruction(
        start=start, loss=loss, iterations=4, batch_size=4, drop=0.5, step_search=False
    )
    with _stand_in(monkeypatch):
        there = _learned(name, settings)
    assert _learned(name, settings) == there


def test_the_stand_in_refuses_tensors_of_both() -> None:
    with _StandIn(), pytest.raises(RuntimeError, match="meet"):
        torch.ones(3).to(_THERE) + torch.ones(3)


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_rows_are_the_same_whether_all_fit_or_not(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_free", lambda _: room)
    samples = np.random.default_rng(0).normal(size=(16, 3, 4, 4)).astype(np.float32)
    index = np.array([3, 3, 7])
    with _StandIn():
        rows = Rows({"x": samples}, _THERE)
        assert len(rows._kept) == (room > 0)
        found = rows.at(index)["x"].to(CPU).numpy()
    np.testing.assert_array_equal(found, samples[index])


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert learning_device("auto") == CPU
    with pytest.raises(RecipeError, match="cuda"):
        learning_device("cuda")


def test_auto_takes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert learning_device("auto") == learning_device("cuda") == torch.device("cuda")
    assert learning_device("cpu") == CPU
