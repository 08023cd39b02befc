"""Two quantized models of one float model, side by side, as data."""

from dataclasses import asdict, dataclass
from typing import Any

from onnxbrecq.report.result import SCHEMA_VERSION, Accuracy, Fidelity, FileFacts, LayerFacts


@dataclass(frozen=True)
class Side:
    """One of the two: its file, its layers' bits, how near it is to the float model as a whole.

    Attributes:
        file: the quantized model.
        weights_mean_bits: by parameters; None: there are no layers.
        activations_mean_bits: of what layers read, by multiply-accumulates.
        layers: those of the float model; what is not found in the file counts as float.
        fidelity: at the outputs; None: no output can be compared number by number.
        accuracy: None without labels.
    """

    file: FileFacts
    weights_mean_bits: float | None
    activations_mean_bits: float | None
    layers: tuple[LayerFacts, ...]
    fidelity: Fidelity | None
    accuracy: Accuracy | None


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of the float model and its relative squared error in both; None: not there.

    Attributes:
        name: of the tensor.
        node: that makes it.
        op: its operator.
        a: error in the first model.
        b: error in the second.
    """

    name: str
    node: str
    op: str
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared. `as_json` is its public form.

    Attributes:
        tool_version: of this package.
        reference: the float model.
        a: the first model.
        b: the second.
        tensors: those of the float graph that one of the two has, in its order.
        outputs: layer → the tensor that stands for its output.
        samples: on which tensors were compared.
    """

    tool_version: str
    reference: FileFacts
    a: Side
    b: Side
    tensors: tuple[TensorFacts, ...]
    outputs: dict[str, str]
    samples: int

    def layers(self) -> tuple[tuple[LayerFacts, LayerFacts, TensorFacts | None], ...]:
        """Each layer as the first and the second model have it, and its output's errors."""
        tensors = {tensor.name: tensor for tensor in self.tensors}
        return tuple(
            (first, second, tensors.get(self.outputs.get(first.name, "")))
            for first, second in zip(self.a.layers, self.b.layers, strict=True)
        )

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `compare`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "onnxbrecq", "version": self.tool_version},
            "model": asdict(self.reference),
            "a": _side(self.a),
            "b": _side(self.b),
            "layers": [
                {
                    "name": first.name,
                    "op": first.op,
                    "macs": first.macs,
                    "parameters": first.parameters,
                    "a": _layer(first, tensor.a if tensor else None),
                    "b": _layer(second, tensor.b if tensor else None),
                }
                for first, second, tensor in self.layers()
            ],
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "samples": self.samples,
        }


def _side(side: Side) -> dict[str, Any]:
    return {
        **asdict(side.file),
        "bits": {
            "weights_mean": side.weights_mean_bits,
            "activations_mean": side.activations_mean_bits,
        },
        "fidelity": asdict(side.fidelity) if side.fidelity else None,
        "accuracy": asdict(side.accuracy) if side.accuracy else None,
    }


def _layer(layer: LayerFacts, error: float | None) -> dict[str, Any]:
    return {
        "weight_bits": layer.weight_bits,
        "activation_bits": layer.activation_bits,
        "error": error,
    }
