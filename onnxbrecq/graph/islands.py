"""Islands known without torch: blocks with an operator that the bridge has no converter for.

The table repeats what `onnxbrecq.recon.bridge` knows, for whoever must not wait for torch; a test
holds the two equal (tests/recon/test_bridge.py).
"""

from onnxbrecq.graph.blocks import Block
from onnxbrecq.graph.model import STANDARD_DOMAINS, Model

UNCONVERTED = frozenset(
    {"BitCast", "Col2Im", "ConcatFromSequence", "ConvInteger", "DFT", "DeformConv", "GRU", "If",
     "ImageDecoder", "LSTM", "Loop", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
     "Multinomial", "Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv",
     "QLinearMatMul", "RNN", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike", "RegexFullMatch", "STFT", "Scan", "SequenceAt", "SequenceConstruct",
     "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
     "StringConcat", "StringNormalizer", "StringSplit", "TensorScatter", "TfIdfVectorizer",
     "Unique"}
)  # fmt: skip
# onnx2torch leaves these two to torchvision, which need not be there.
_TORCHVISION = frozenset({"NonMaxSuppression", "RoiAlign"})
# Their ONNX definitions use operators of the table.
_DEFINED_BY_THEM = frozenset({"Bernoulli", "SequenceMap"})
_ISLANDS = UNCONVERTED | _TORCHVISION | _DEFINED_BY_THEM


def islands(model: Model, blocks: tuple[Block, ...]) -> tuple[str, ...]:
    """Names of the blocks that will run in onnxruntime only, rounded to nearest."""
    refused = {
        node.name
        for node in model.nodes
        if node.domain not in STANDARD_DOMAINS or node.op_type in _ISLANDS
    }
    return tuple(block.name for block in blocks if not refused.isdisjoint(block.nodes))
