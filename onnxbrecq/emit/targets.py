"""Runtimes as data: which decisions a target takes, and how weights are stored for it.

A target is a table; what it forbids is refused twice, each time with the reason: by `permit` before
any work, for a recipe, and by `refusal`, for a decision of a saved plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from onnxbrecq.errors import RecipeError
from onnxbrecq.plan import Grid, TensorQuant
from onnxbrecq.recipe import BLOCK_SIZES, Recipe

Storage = Literal["decoded", "plain", "int8"]


@dataclass(frozen=True)
class Target:
    """What calibration and emission must respect.

    Attributes:
        name: as on the command line.
        computes: what its runtime computes with, in words: the reason of a refusal.
        weights: bits a weight may have.
        activations: bits an activation may have; None: all may stay float (weight-only).
        weight_grids: of weights below 8 bits, the best first; those of 8 bits are signed.
        activation_grids: the best first. Affine: unsigned, with any zero point, which is how less
            than 8 and 16 bits are written; signed: INT8 with zero point 0.
        per_channel: the operators whose weight may have a scale for each channel.
        alone: operators that compute in floats whose weight is quantized all the same, and decoded
            by nodes whatever the storage.
        storage: of weights below 8 bits. Decoded: packed, and turned into INT8 by nodes that the
            runtime folds at load; plain: packed, read by DequantizeLinear; int8: one in a byte.
        saturates: its kernels for signed 8-bit weights lose sums beyond 16 bits, which calibration
            avoids (`onnxbrecq.emit.saturation`); None: where they do so on the processor at hand.
        unsigned: weights of 8 bits that could saturate all the same are stored as UINT8 with zero
            point 128.
        opset: the newest default-domain version the target reads.
        narrowest: bits of the smallest packed type it reads.
        moved: operators that only move values and are written on the integers, in front of the
            DequantizeLinear, because its runtime does not take them there.
        packed_products: 3 and 4-bit weights of a MatMul or Gemm with float data stay packed in
            memory as well.
        blocks: of a MatMul or Gemm with float data, bits of a weight → inputs that may share a
            scale; it stays packed likewise.
        lowered: written at the oldest opset, from 13 on, that has all the model's operators.
    """

    name: str
    computes: str
    weights: tuple[int, ...]
    activations: tuple[int | None, ...]
    weight_grids: tuple[Grid, ...]
    activation_grids: tuple[Grid, ...]
    per_channel: tuple[str, ...]
    storage: Storage
    saturates: bool | None
    unsigned: bool
    opset: int
    narrowest: int = 2
    moved: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    packed_products: bool = False
    blocks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    lowered: bool = False

    def weight_grid(self, bits: int, op: str, *, integer_data: bool) -> Grid:
        """The grid that calibration gives the weight of so many bits of an operator."""
        if bits == 8:
            return "signed"
        packed = self.packed_products and bits in PACKED_BITS and op in PRODUCTS
        return "affine" if packed and not integer_data else self.weight_grids[0]

    def block_grid(self, bits: int) -> Grid:
        """Likewise in blocks: kernels that unpack as they multiply take whole zero points."""
        return "signed" if bits == 8 else "affine"


_LAYERS = ("Conv", "Gemm", "MatMul")
PRODUCTS = ("Gemm", "MatMul")
_ALONE = ("ConvTranspose", "Gather")
# onnxruntime 1.32 makes a MatMulNBits of them, as fast as float for many rows and three times as
# fast for one (1024 x 1024, AVX2). At 8 bits many rows take 1.3 to 1.6 times as long; 2 bits would
# lose the half-step grid.
PACKED_BITS = (3, 4)
# It takes blocks of powers of two from 16 on, the last one shorter or not, and multiplies integers;
# but 2 bits in blocks of 16 take 40 to 80 times as long as in blocks of 32 (one row, 512 x 512).
_BLOCKS = {2: BLOCK_SIZES[1:], **dict.fromkeys((3, 4, 8), BLOCK_SIZES)}
_ALL_GRIDS: tuple[Grid, ...] = ("half", "signed", "affine")

# onnxruntime 1.32 reads opset 28 (`onnxbrecq doctor` tells of the one at hand), and INT2 from 1.24
# on; decoding at load is its constant folding, and fewer than 8 bits of an activation are a Clip on
# its UINT8 tensor: tests/emit/test_emit.py looks at the kernels. INT8 activations it takes as well.
# Other operators that move values it frees of the pairs around them (tests/emit/test_placement.py).
ORT_CPU = Target(
    "ort-cpu",
    computes="onnxruntime's integer kernels on the CPU take 8-bit activations, cut to fewer",
    weights=(2, 3, 4, 8),
    activations=(2, 3, 4, 8, None),
    weight_grids=_ALL_GRIDS,
    activation_grids=("affine", "signed"),
    per_channel=_LAYERS,
    storage="decoded",
    saturates=False,
    unsigned=False,
    opset=28,
    moved=("DepthToSpace", "Pad", "SpaceToDepth"),
    alone=_ALONE,
    packed_products=True,
    blocks=_BLOCKS,
)

# Without VNNI, x86 kernels for signed weights add two products in 16 bits, where 2 * 255 * 127 does
# not fit: MobileNetV2 at 8 bits falls from 22 dB to 8 dB. Those for unsigned weights are exact, and
# take 1.4 times as long (MobileNetV2, 1.32, AVX2); weights below 8 bits cannot saturate.
ORT_CPU_AVX2 = Target(
    "ort-cpu-avx2",
    computes=ORT_CPU.computes,
    weights=ORT_CPU.weights,
    activations=ORT_CPU.activations,
    weight_grids=_ALL_GRIDS,
    activation_grids=ORT_CPU.activation_grids,
    per_channel=_LAYERS,
    storage="decoded",
    saturates=True,
    unsigned=True,
    opset=28,
    moved=ORT_CPU.moved,
    alone=_ALONE,
    packed_products=True,
    blocks=_BLOCKS,
)

# OpenVINO's ONNX frontend turns QuantizeLinear (u8, i8, wider; any zero point) into FakeQuantize,
# and its low-precision transformations look for FakeQuantize and weights of u8 or i8 around a layer
# (docs.openvino.ai, "Low Precision Transformations"; frontend source, op/quantize_linear.cpp); a
# Clip between the two would part them. Measured on OpenVINO 2026.4 (tests/emit/test_openvino.py):
# ResNet-20 and MobileNetV2 run in u8 throughout, with INT8 weights and with 4-bit ones that nodes
# decode; with unsigned 8-bit weights in float32; 2-bit types it does not read. On AVX2 without VNNI
# its kernels for signed 8-bit weights saturate as well: at scales that do not heed it ResNet-20 is
# 16 dB from what onnxruntime computes.
OPENVINO = Target(
    "openvino",
    computes="OpenVINO's integer kernels take u8 and i8",
    weights=(2, 3, 4, 8),
    activations=(8, None),
    weight_grids=_ALL_GRIDS,
    activation_grids=("affine", "signed"),
    per_channel=_LAYERS,
    storage="decoded",
    saturates=None,
    unsigned=False,
    opset=25,
    narrowest=4,
    alone=_ALONE,
)

# TensorRT quantizes symmetrically only (zero points must be 0), activations and weights to INT8;
# INT4 is for weights alone, in blocks, and UINT8 it does not take (docs.nvidia.com, "Working with
# Quantized Types"). Its ONNX parser reads opsets 9 to 25 ("ONNX Opset Guide", TensorRT 11).
TENSORRT = Target(
    "tensorrt",
    computes="TensorRT quantizes activations to INT8 with zero point 0, and to nothing else",
    weights=(2, 3, 4, 8),
    activations=(8,),
    weight_grids=_ALL_GRIDS,
    activation_grids=("signed",),
    per_channel=_LAYERS,
    storage="int8",
    saturates=False,
    unsigned=False,
    opset=25,
)

# onnxruntime's own configuration for QNN: activations u8 or u16, one type for all of an operator's
# (elsewhere conversions are needed); weights of 4 and 8 bits, signed ones symmetric; a scale for
# each channel in Conv, but not in MatMul (onnxruntime.quantization.execution_providers.qnn,
# get_qnn_qdq_config; onnxruntime.ai, "QNN Execution Provider").
QNN = Target(
    "qnn",
    computes="QNN's HTP takes u8 or u16 activations and 4- or 8-bit weights",
    weights=(4, 8),
    activations=(8, 16),
    weight_grids=("signed",),
    activation_grids=("affine",),
    per_channel=("Conv",),
    storage="plain",
    saturates=False,
    unsigned=False,
    opset=25,
)

# What every runtime since 2021 reads: opset 13 is the first whose DequantizeLinear has an axis
# (onnx, Changelog.md), and INT8 and UINT8 are the types of its QuantizeLinear. It is exact wherever
# it runs.
PORTABLE = Target(
    "portable",
    computes="QuantizeLinear of opset 13 knows 8 bits only",
    weights=(2, 3, 4, 8),
    activations=(8, None),
    weight_grids=_ALL_GRIDS,
    activation_grids=("affine", "signed"),
    per_channel=_LAYERS,
    storage="int8",
    saturates=True,
    unsigned=False,
    opset=25,
    alone=_ALONE,
    lowered=True,
)

TARGETS = {
    target.name: target for target in (ORT_CPU, ORT_CPU_AVX2, OPENVINO, TENSORRT, QNN, PORTABLE)
}


def target_for(name: str | None, *, saturates: bool) -> Target:
    """The target called `name`; None: what runs exactly on this processor.

    Args:
        name: as on the command line, or None.
        saturates: whether sums of products with signed 8-bit weights saturate here.

    Raises:
        RecipeError: there is no such target.
    """
    return _exact(saturates=saturates) if name is None else target_by_name(name)


def target_by_name(name: str) -> Target:
    """The target called `name`.

    Raises:
        RecipeError: there is none.
    """
    if name not in TARGETS:
        raise RecipeError(f"target = {name!r}: choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def run_here(target: Target, *, saturates: bool) -> Target:
    """The target whose models onnxruntime runs on this processor as `target`'s runtime does there.

    That is `target` itself where it is onnxruntime's; else one that takes the same decisions, and
    stores weights so that sums are exact here.
    """
    if target in (ORT_CPU, ORT_CPU_AVX2):
        return target
    exact = _exact(saturates=saturates)
    return replace(
        target,
        storage=exact.storage,
        unsigned=exact.unsigned,
        opset=exact.opset,
        narrowest=exact.narrowest,
        moved=exact.moved,
        alone=exact.alone,
        packed_products=exact.packed_products,
        lowered=False,
    )


def any_file(*, saturates: bool) -> Target:
    """What stands here for the runtime of another tool's file, of which nothing is known."""
    return replace(_exact(saturates=saturates), activations=(8, 16, None))


def _exact(*, saturates: bool) -> Target:
    return ORT_CPU_AVX2 if saturates else ORT_CPU


def permit(target: Target, recipe: Recipe) -> None:
    """Refuses a recipe that asks for what the target does not take.

    Raises:
        RecipeError: names the decision, and what may be chosen instead.
    """
    activations = recipe.activations
    # An edge layer's data has first_last bits as well, but not beside 16-bit activations.
    edges = activations is not None and activations <= 8
    first_last = [] if recipe.first_last is None else [recipe.first_last]
    pins = [(f"pinned {name!r}", bits) for name, bits in recipe.pinned.items() if bits is not None]
    asked: list[tuple[str, int | None, Sequence[int | None]]] = [
        *([] if recipe.mixed else [("weights", recipe.weights, target.weights)]),
        ("activations", activations, target.activations),
        *(("first_last", bits, target.weights) for bits in first_last),
        *(("first_last", bits, target.activations) for bits in first_last if edges),
        *((key, bits, target.weights) for key, bits in pins),
    ]
    for key, bits, allowed in asked:
        if bits not in allowed:
            raise RecipeError(
                f"{key} = {_told(bits)}: target {target.name} takes "
                f"{' or '.join(_told(bits) for bits in allowed)} here: {target.computes}"
            )
    _permit_blocks(target, recipe)


def _permit_blocks(target: Target, recipe: Recipe) -> None:
    """Refuses blocks of weights of which the target has no kernel."""
    size = recipe.block_size
    if size is None:
        return
    if not target.blocks:
        known = " or ".join(other.name for other in TARGETS.values() if other.blocks)
        raise RecipeError(
            f"block_size = {size}: target {target.name} has no kernel for weights with a scale for "
            f"each block of inputs; leave it out, or choose target {known}"
        )
    wanted = [("offered", bits) for bits in recipe.offered] if recipe.mixed else []
    wanted += [] if recipe.mixed else [("weights", recipe.weights)]
    wanted += [] if recipe.first_last is None else [("first_last", recipe.first_last)]
    for key, bits in wanted:
        if size not in target.blocks.get(bits, ()):
            raise RecipeError(
                f"block_size = {size}: with {key} = {bits} target {target.name} takes "
                f"{' or '.join(map(str, target.blocks.get(bits, ())))}: its kernels are slow else"
            )


def refusal(target: Target, quant: TensorQuant, op: str | None) -> str | None:
    """Why the target does not take a decision; None: it does.

    Args:
        target: the runtime.
        quant: the decision.
        op: the operator whose weight it is; None: it is an activation.
    """
    if op is not None and op not in (*_LAYERS, *target.alone):
        return f"target {target.name} takes no quantized weight of a {op}"
    bits, grid = quant.qtype.bits, quant.qtype.grid
    kind = "activation" if op is None else "weight"
    allowed = target.activations if op is None else target.weights
    if bits not in allowed:
        return f"{bits}-bit {kind}s cannot be written for target {target.name}: {target.computes}"
    if op is None:
        fits = grid in target.activation_grids and (grid == "affine" or bits == 8)
    else:
        fits = grid == "signed" if bits == 8 else grid in target.weight_grids
    size = quant.block_size
    if size is not None and size not in target.blocks.get(bits, ()):
        return (
            f"{bits}-bit weights with a scale for each block of {size} inputs cannot be written "
            f"for target {target.name}"
        )
    if not fits:
        return (
            f"the {grid} grid of {bits}-bit {kind}s cannot be written for target {target.name}: "
            f"{target.computes}"
        )
    if op in _LAYERS and quant.axis is not None and op not in target.per_channel:
        return f"target {target.name} takes one scale for the weight of a {op}, not one per channel"
    return None


def _told(bits: int | None) -> str:
    return "float" if bits is None else str(bits)
