import numpy as np
import pytest
import torch

from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.blocks import partition
from onnxbrecq.graph.extract import extract, submodel
from onnxbrecq.graph.model import Model
from onnxbrecq.recon.bridge import import_block
from onnxbrecq.recon.fisher import FisherSweep, random_gradients, random_numbers
from onnxbrecq.runtime.session import Session


def test_sweep_equals_autograd_through_the_whole_model(model: Model, data: Dataset) -> None:
    blocks = partition(model)
    assert len(blocks) > 2
    names = tuple(dict.fromkeys(name for block in blocks for name in block.outputs))
    values = Session(submodel(model, list(model.nodes), model.inputs, names).proto).run(data.inputs)
    sweep = FisherSweep([import_block(extract(model, block)) for block in blocks], seed=7)
    sweep.add({**data.inputs, **values}, ["logits"])
    weights = sweep.weights()

    drawn = torch.Generator().manual_seed(7)
    whole = import_block(model)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(value: torch.Tensor) -> torch.Tensor:
            kept[name] = value.requires_grad_() if not value.requires_grad else value
            kept[name].retain_grad()
            return kept[name]

        return hook

    x = torch.from_numpy(np.asarray(data.inputs["x"]))
    logits = whole.run({"x": x}, hooks={name: keep(name) for name in names})["logits"]
    label = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn)
    torch.nn.functional.cross_entropy(logits, label[:, 0], reduction="sum").backward()
    for name in names:
        gradient = kept[name].grad
        assert gradient is not None
        expected = gradient.square().sum(0, keepdim=True)
        # float32 sums over 64 samples and at most 512 terms, in another order
        np.testing.assert_allclose(
            weights[name], (expected / expected.mean()).numpy(), rtol=1e-3, atol=1e-5
        )


def test_an_island_ends_the_sweep(model: Model, data: Dataset) -> None:
    blocks = partition(model)
    names = tuple(dict.fromkeys(name for block in blocks for name in block.outputs))
    values = Session(submodel(model, list(model.nodes), model.inputs, names).proto).run(data.inputs)
    parts = [import_block(extract(model, block)) for block in blocks]
    sweep = FisherSweep([*parts[:-1], None], seed=7)
    sweep.add({**data.inputs, **values}, ["logits"])
    assert sweep.weights() == {}


def test_outputs_that_are_no_scores_have_gaussian_gradients(model: Model, data: Dataset) -> None:
    values = Session(submodel(model, list(model.nodes), model.inputs, ("f", "logits")).proto).run(
        data.inputs
    )
    tail = submodel(model, [model.producer[n] for n in ("g", "h", "logits")], ("f",), ("logits",))
    block = import_block(tail)
    sweep = FisherSweep([block], seed=7)
    sweep.add({**data.inputs, **values}, ["f", "logits"])
    weights = sweep.weights()
    drawn = torch.Generator().manual_seed(7)
    torch.randn(values["f"].shape, generator=drawn)
    seed = torch.randn(values["logits"].shape, generator=drawn)
    expected = seed.square().sum(0, keepdim=True)
    np.testing.assert_allclose(weights["logits"], expected / expected.mean(), rtol=1e-5)


def test_random_gradients_tell_what_errors_become_at_the_output(
    model: Model, data: Dataset
) -> None:
    """E[(g . e)^2] is |J e|^2 though errors e of all places are alike; 1000 draws of a sample.

    A mean of squared Gaussians is good to 3 sqrt(2 / 1000). J e is taken from the network.
    """
    blocks = partition(model)
    names = tuple(dict.fromkeys(name for block in blocks for name in block.outputs))
    x = np.repeat(data.inputs["x"][:1], 1000, axis=0)
    values = Session(submodel(model, list(model.nodes), model.inputs, names).proto).run({"x": x})
    parts = [import_block(extract(model, block)) for block in blocks]
    found = random_gradients(parts, {"x": x, **values}, ["logits"], random_numbers(0))
    (z,) = blocks[0].outputs
    error = np.zeros_like(values[z][:1])
    error[:, 2] = 1e-3 * (values[z][:1, 2] > 0.01)  # a channel, wherever it is on
    inner = {name for block in blocks[1:] for name in block.nodes}
    behind = submodel(model, [n for n in model.nodes if n.name in inner], (z,), ("logits",))
    moved = Session(behind.proto).run({z: values[z][:1] + error})["logits"] - values["logits"][:1]
    along = (found[z] * error).reshape(1000, -1).sum(axis=1, dtype=np.float64)
    assert np.square(along).mean() == pytest.approx(float(np.square(moved).sum()), rel=0.15)
