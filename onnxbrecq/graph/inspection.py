"""What would be quantized, and what not, known from the graph alone."""

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnxbrecq.graph.blocks import Block, partition
from onnxbrecq.graph.islands import islands
from onnxbrecq.graph.layers import WeightLayer, weight_layers
from onnxbrecq.graph.load import fingerprint, load, read
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model
from onnxbrecq.graph.points import FloatNode, find_points
from onnxbrecq.graph.provenance import Provenance, provenance


@dataclass(frozen=True)
class Inspection:
    """The structure of a model as quantization sees it."""

    model: Model
    blocks: tuple[Block, ...]
    layers: tuple[WeightLayer, ...]
    float_nodes: tuple[FloatNode, ...]
    islands: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `onnxbrecq inspect`."""
        by_node = {layer.name: layer for layer in self.layers}
        block_of = {name: block.name for block in self.blocks for name in block.nodes}
        floating = {node.name for node in self.float_nodes}
        return {
            "schema_version": 1,
            "model": {
                "path": str(self.model.path),
                "sha256": self.model.source_sha256,
                "size_bytes": self.model.source_bytes,
                "opset": self.model.source_opset,
                "inputs": {n: list(self.model.shapes.get(n, ())) for n in self.model.inputs},
                "outputs": {n: list(self.model.shapes.get(n, ())) for n in self.model.outputs},
                "notes": list(self.model.notes),
            },
            "blocks": [
                {
                    "name": block.name,
                    "nodes": list(block.nodes),
                    "inputs": list(block.inputs),
                    "outputs": list(block.outputs),
                    "weights": list(block.weights),
                    "macs": sum(by_node[n].macs for n in block.nodes if n in by_node),
                    "parameters": sum(by_node[n].parameters for n in block.nodes if n in by_node),
                }
                for block in self.blocks
            ],
            "layers": [
                {
                    "name": x.name,
                    "op": x.op,
                    "block": block_of[x.name],
                    "macs": x.macs,
                    "parameters": x.parameters,
                    "quantized": x.name not in floating,
                }
                for x in self.layers
            ],
            "float_nodes": [
                {
                    "name": node.name,
                    "op": node.op,
                    "block": block_of[node.name],
                    "reason": node.reason,
                }
                for node in self.float_nodes
            ],
            "islands": list(self.islands),
        }


@dataclass(frozen=True)
class QuantizedInspection:
    """What a file that `quantize` or `emit` wrote says of itself."""

    path: Path
    sha256: str
    size_bytes: int
    opset: int
    provenance: Provenance

    def as_json(self) -> dict[str, Any]:
        """The JSON object of `onnxbrecq inspect` for such a file."""
        told = asdict(self.provenance)
        blocks = told.pop("blocks")
        return {
            "schema_version": 1,
            "model": {
                "path": str(self.path),
                "sha256": self.sha256,
                "size_bytes": self.size_bytes,
                "opset": self.opset,
            },
            "layers": [
                {
                    "name": name,
                    "weight_bits": weight,
                    "activation_bits": data,
                    "block_size": blocks.get(name),
                }
                for name, (weight, data) in told.pop("bits").items()
            ],
            "quantized": told,
        }


def inspect(path: str | PathLike[str]) -> Inspection | QuantizedInspection:
    """The structure of the model at `path`; neither runs it nor imports it into torch.

    Of a file that this tool has quantized it is what the file says of itself.

    Raises:
        ModelError: the file cannot be read as a model.
    """
    proto, files = read(Path(path))
    told = provenance(proto, str(path))
    if told is not None:
        size, digest = fingerprint(files)
        opset = max(o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS)
        return QuantizedInspection(Path(path), digest, size, opset, told)
    del proto
    model = load(Path(path))
    blocks = partition(model)
    return Inspection(
        model,
        blocks,
        weight_layers(model),
        find_points(model).float_nodes,
        islands(model, blocks),
    )
