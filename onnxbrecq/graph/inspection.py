"""What would be quantized, and what not, known from the graph alone."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnxbrecq.graph.blocks import Block, partition
from onnxbrecq.graph.islands import islands
from onnxbrecq.graph.layers import WeightLayer, weight_layers
from onnxbrecq.graph.load import load
from onnxbrecq.graph.model import Model
from onnxbrecq.graph.points import FloatNode, find_points


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


def inspect(path: str | PathLike[str]) -> Inspection:
    """The structure of the model at `path`; neither runs it nor imports it into torch.

    Raises:
        ModelError: the file cannot be read as a model.
    """
    model = load(Path(path))
    blocks = partition(model)
    return Inspection(
        model,
        blocks,
        weight_layers(model),
        find_points(model).float_nodes,
        islands(model, blocks),
    )
