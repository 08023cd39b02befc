import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxbrecq import blockwise, parts
from onnxbrecq.blockwise import Walk, walk
from onnxbrecq.calibrate import calibrate
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.emit import saturation
from onnxbrecq.emit.emit import emit
from onnxbrecq.emit.targets import ORT_CPU
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.layers import weight_layers
from onnxbrecq.graph.load import from_proto
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import find_points
from onnxbrecq.parts import Task, output_error, relative_error
from onnxbrecq.plan import QuantPlan
from onnxbrecq.progress import silent
from onnxbrecq.recipe import Recipe, Reconstruction
from onnxbrecq.recon.optimise import Decisions, Problem
from onnxbrecq.recon.problem import BlockData


def _task(model: Model, data: Dataset, **options: object) -> tuple[Task, QuantPlan]:
    recipe = Recipe(**{"weights": 2, "activations": 4, **options})  # type: ignore[arg-type]
    points = find_points(model)
    task = Task(model, partition(model), points, data, recipe, ORT_CPU)
    return task, calibrate(model, points, data, recipe)


@pytest.mark.parametrize(
    ("batches", "together", "macs", "places"),
    [
        (1000, 1, 0, 128),
        (1000, 1, 10**8, 128),
        (1000, 1, 5 * 10**8, 32),
        (1000, 1, 10**10, 16),
        (30, 32, 10**8, 4),
        (30, 256, 10**8, 1),
        (10, 1, 10**8, 10),
    ],
)
def test_steps_are_compared_on_fewer_samples_of_large_blocks(
    batches: int, together: int, macs: int, places: int
) -> None:
    chosen = blockwise._spread(batches, together, macs)
    assert len(set(chosen.tolist())) == places
    assert chosen[0] == 0
    assert places == 1 or chosen[-1] == batches - 1


def test_a_part_knows_its_work(model: Model, data: Dataset) -> None:
    task, _ = _task(model, data)
    found = {block.name: parts.import_part(task, block).macs for block in task.blocks}
    layers = {layer.name: layer.macs for layer in weight_layers(model)}
    assert sum(found.values()) == sum(layers.values())
    assert all(
        found[block.name] == sum(layers.get(node, 0) for node in block.nodes)
        for block in task.blocks
    )


def _assert_weights_kept(walked: Walk, task: Task, plan: QuantPlan) -> None:
    """Only the steps of activations may have changed, and for the better."""
    weights = [name for name, point in task.points.points.items() if point.kind == "weight"]
    assert all(walked.plan.tensors[name] == plan.tensors[name] for name in weights)
    assert walked.plan.biases == plan.biases
    assert all(block.loss_after <= block.loss_before for block in walked.blocks)


_QUICK = Reconstruction(iterations=150, batch_size=16)
_NEAREST = Reconstruction(start="nearest", iterations=0, step_search=False)


@pytest.mark.parametrize("loss", ["mse", "fisher"])
def test_learning_lowers_the_error_of_the_deployed_blocks(
    model: Model, data: Dataset, loss: str
) -> None:
    settings = dataclasses.replace(_QUICK, loss=loss)
    task, plan = _task(model, data, reconstruction=settings)
    walked = walk(task, plan, silent)
    assert all(block.loss_after <= block.loss_before for block in walked.blocks)
    inner = walked.blocks[1]
    assert inner.loss_after < 0.8 * inner.loss_before
    assert walked.plan != plan


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_the_best_of_several_trials_is_kept(model: Model, data: Dataset, drop: float) -> None:
    losses = []
    for trials in (1, 2):
        settings = Reconstruction(iterations=40, batch_size=16, trials=trials, drop=drop)
        task, plan = _task(model, data, first_last=2, reconstruction=settings)
        losses.append(walk(task, plan, silent).blocks[0].loss_after)
    once, twice = losses
    assert twice <= once


def test_a_block_that_got_worse_keeps_its_former_decisions(
    model: Model, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(_QUICK, start="nearest")
    task, plan = _task(model, data, reconstruction=settings)

    def ruined(problem: Problem, *_: object) -> Decisions:
        return Decisions(
            {
                name: dataclasses.replace(plan.tensors[name], levels=np.zeros(w.shape, np.uint8))
                for name, w in problem.constants.items()
                if name in plan.tensors
            },
            {},
        )

    monkeypatch.setattr(blockwise, "reconstruct", ruined)
    walked = walk(task, plan, silent)
    _assert_weights_kept(walked, task, plan)
    assert all("kept round-to-nearest" in (block.note or "") for block in walked.blocks)


@pytest.mark.parametrize("apart", [False, True], ids=["in-one-block", "in-two-blocks"])
def test_a_shared_weight_is_learned_once_for_all_its_layers(apart: bool) -> None:
    body = """stem = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) fine = Relu (stem)
        coarse = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (fine)
        top = Conv <pads = [1, 1, 1, 1]> (coarse, w1, b1) high = Relu (top) """
    body += "deep = Conv <pads = [1, 1, 1, 1]> (high, w1, b1) more = Relu (deep) " if apart else ""
    body += """low = Conv <pads = [1, 1, 1, 1]> (fine, w1, b1) wide = Relu (low)
        small = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (wide)"""
    body += f" sum = Add (small, {'more' if apart else 'high'}) y = Conv (sum, w2, b2)"
    model = _shared_model(body)
    x = np.random.default_rng(1).normal(size=(128, 3, 8, 8)).astype(np.float32)
    settings = Reconstruction(iterations=40)
    task, plan = _task(model, Dataset({"x": x}), activations=8, reconstruction=settings)
    walked = walk(task, plan, silent)
    layers = [n for n in task.points.layers.values() if n.weight.startswith("w1")]
    decisions = [walked.plan.tensors[layer.weight] for layer in layers]
    assert len(decisions) == 2 + apart
    assert all(decision == decisions[0] for decision in decisions)
    assert decisions[0] != plan.tensors[layers[0].weight]
    biases = [walked.plan.biases[layer.bias] for layer in layers if layer.bias]
    assert not np.array_equal(*biases[:2])
    assert sum(b.loss_after for b in walked.blocks) < sum(b.loss_before for b in walked.blocks)
    sizes = [np.prod(t.dims) for t in emit(model, walked.plan, ORT_CPU).graph.initializer]
    assert sizes.count(8 * 8 * 9) == 1  # stored once


def _shared_model(body: str) -> Model:
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, 8, 8] x) => (float y)'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 1, 1)}
    for name, shape in shapes.items():
        weight = random.normal(0, 1.4 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        bias = random.normal(0, 0.1, shape[0]).astype(np.float32)
        for array, key in ((weight, name), (bias, name.replace("w", "b"))):
            proto.graph.initializer.append(numpy_helper.from_array(array, key))
    return from_proto(proto)


def test_a_block_that_torch_cannot_import_is_an_island(
    model: Model, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Model) -> None:
        raise parts.BridgeError("node n (Odd-1): no converter")

    monkeypatch.setattr(parts, "import_block", refuse)
    task, plan = _task(model, data, reconstruction=_QUICK)
    walked = walk(task, plan, silent)
    _assert_weights_kept(walked, task, plan)
    assert all("island" in (block.note or "") for block in walked.blocks)


def test_a_block_that_torch_computes_otherwise_is_an_island(
    model: Model, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, plan = _task(model, data, reconstruction=_QUICK)
    real = parts.import_block

    def wrong(part: Model) -> object:
        block = real(part)
        arrays = block.arrays
        monkeypatch.setattr(
            block, "arrays", lambda feed: {n: 1.5 * a for n, a in arrays(feed).items()}
        )
        return block

    monkeypatch.setattr(parts, "import_block", wrong)
    walked = walk(task, plan, silent)
    _assert_weights_kept(walked, task, plan)
    assert all("torch differs" in (block.note or "") for block in walked.blocks)


def test_no_iterations_mean_round_to_nearest(model: Model, data: Dataset) -> None:
    task, plan = _task(model, data, reconstruction=_NEAREST)
    walked = walk(task, plan, silent)
    assert walked.plan == plan
    assert all(block.iterations == 0 for block in walked.blocks)


def test_the_same_seed_gives_the_same_plan(model: Model, data: Dataset) -> None:
    settings = Reconstruction(iterations=30, batch_size=8)
    task, plan = _task(model, data, reconstruction=settings)
    assert walk(task, plan, silent).plan == walk(task, plan, silent).plan


def test_few_samples_do_both_many_are_parted() -> None:
    def parted(count: int) -> tuple[BlockData, BlockData]:
        x = np.arange(count, dtype=np.float32)[:, None]
        return blockwise._parted(BlockData({"x": x}, {"x": x}, {"y": x}, {}), 1)

    few = parted(63)
    assert few[0] is few[1]
    seen, held = parted(100)
    assert (len(seen), len(held)) == (88, 12)
    values = np.concatenate([part.inputs["x"][:] for part in (seen, held)])
    np.testing.assert_array_equal(np.sort(values[:, 0]), np.arange(100))
    np.testing.assert_array_equal(held.targets["y"][2:4], [[23], [31]])


def test_samples_that_go_together_are_not_parted() -> None:
    x = np.arange(192, dtype=np.float32)[:, None]
    held = blockwise._parted(BlockData({"x": x}, {"x": x}, {"y": x}, {}), 3)[1]
    values = held.targets["y"][:6].reshape(-1)
    np.testing.assert_array_equal(values, [21, 22, 23, 45, 46, 47])


def test_outputs_without_a_row_for_each_sample_are_not_parted() -> None:
    x = np.arange(100, dtype=np.float32)[:, None]
    seen, held = blockwise._parted(BlockData({"x": x}, {"x": x}, {"y": x[:90]}, {}), 1)
    assert seen is held


def test_the_error_of_a_masked_output_is_that_of_what_is_open() -> None:
    target = np.array([[1, -np.inf], [2, 2]], np.float32)
    made = np.array([[1, 5], [2, 1]], np.float32)
    assert relative_error({"y": made}, {"y": target}, {}) == 1 / 9
    assert relative_error({"y": target}, {"y": target}, {}) == 0


def test_boxes_in_pixels_do_not_outweigh_scores() -> None:
    targets = {
        "boxes": np.full((2, 4), 100, np.float32),
        "scores": np.full((2, 3), 0.1, np.float32),
    }
    worse = {**targets, "scores": 2 * targets["scores"]}
    assert output_error(worse, targets, {}) == pytest.approx(0.5)
    assert relative_error(worse, targets, {}) < 1e-5  # type: ignore[operator]
    weights = {"scores": np.full((1, 3), 1e6, np.float32)}
    assert output_error(worse, targets, weights) == relative_error(worse, targets, weights)
    silent = {**targets, "scores": np.zeros((2, 3), np.float32)}
    assert output_error(targets, silent, {}) < 1e-5  # type: ignore[operator]


_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 3, 16, 16] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    r = Relu (a)
    t = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (r, w1, b1)
    s = Relu (t)
    u = ConvTranspose <group = 2> (s, w2, b2)
    y = Conv (u, w3, b3)
}
"""


def test_the_weight_of_a_transposed_convolution_is_learned(data: Dataset) -> None:
    proto = onnx.parser.parse_model(_DECODER)
    random = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 4, 4), "w2": (8, 4, 1, 1), "w3": (3, 8, 1, 1)}
    for name, shape in shapes.items():
        weight = random.normal(0, 0.2, shape).astype(np.float32)
        bias = random.normal(0, 0.1, 3 if name == "w3" else 8).astype(np.float32)
        for array, key in ((weight, name), (bias, name.replace("w", "b"))):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    model = from_proto(proto)
    task, plan = _task(model, data, activations=8, reconstruction=_QUICK)
    walked = walk(task, plan, silent)
    for name in ("w1", "w2"):
        before, after = plan.tensors[name], walked.plan.tensors[name]
        assert before.qtype.bits == 2
        assert not np.array_equal(before.levels, after.levels)  # type: ignore[arg-type]
    total = [sum(getattr(block, key) for block in walked.blocks)
             for key in ("loss_before", "loss_after")]  # fmt: skip
    assert total[1] < 0.7 * total[0]


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_learning_does_not_make_sums_overflow(model: Model, data: Dataset, target: str) -> None:
    """Where calibration saw to it that they do not; elsewhere what was learned is kept."""
    task, plan = _task(model, data, weights=8, activations=8, target=target)
    random = np.random.default_rng(0)
    moved = {}
    for layer in task.points.layers.values():
        quant = plan.tensors[layer.weight]
        assert quant.levels is not None
        levels = quant.levels.astype(int) + random.integers(-9, 10, quant.levels.shape)
        levels = np.clip(levels, 0, 255).astype(np.uint8)
        moved[layer.weight] = dataclasses.replace(quant, levels=levels)
    learned = blockwise._told(task, plan, Decisions(moved, {}))
    nodes = {node.name: node for node in model.nodes}
    fit = [
        saturation.fits(nodes[name], learned.tensors[layer.weight], 255)
        for name, layer in task.points.layers.items()
    ]
    if target == "portable":
        assert all(fit)
        assert learned.tensors != plan.updated(moved).tensors
    else:
        assert not any(fit)
        assert learned.tensors == plan.updated(moved).tensors
