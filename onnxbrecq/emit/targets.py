"""Runtimes as data: what a target can load and runs in integer kernels."""

from dataclasses import dataclass

from onnxbrecq.errors import RecipeError


@dataclass(frozen=True)
class Target:
    """What emission must respect.

    Attributes:
        name: as on the command line.
        packed: weights below 8 bits are stored packed and decoded when the model is loaded.
        unsigned: weights of 8 bits are stored as UINT8 with zero point 128.
        opset: the newest default-domain version the target reads.
    """

    name: str
    packed: bool
    unsigned: bool
    opset: int


# onnxruntime 1.23 reads opset 25 (INT2) with a warning-free release from 1.24 on; decoding at load
# is its constant folding: tests/emit/test_storage.py opens each form and looks at the kernels.
ORT_CPU = Target("ort-cpu", packed=True, unsigned=False, opset=25)

# Without VNNI, x86 kernels for signed weights add two products in 16 bits, where 2 * 255 * 127 does
# not fit: MobileNetV2 at 8 bits falls from 22 dB to 8 dB. Those for unsigned weights are exact, and
# take 1.12 to 1.17 of the time of a network (1.32, AVX2); weights below 8 bits cannot saturate.
ORT_CPU_AVX2 = Target("ort-cpu-avx2", packed=True, unsigned=True, opset=25)

_TARGETS = {target.name: target for target in (ORT_CPU, ORT_CPU_AVX2)}


def target_for(name: str | None, *, saturates: bool) -> Target:
    """The target called `name`; None: what runs exactly on this processor.

    Args:
        name: as on the command line, or None.
        saturates: whether sums of products with signed 8-bit weights saturate here.

    Raises:
        RecipeError: there is no such target.
    """
    if name is None:
        return ORT_CPU_AVX2 if saturates else ORT_CPU
    return target_by_name(name)


def target_by_name(name: str) -> Target:
    """The target called `name`.

    Raises:
        RecipeError: there is none.
    """
    if name not in _TARGETS:
        raise RecipeError(f"target = {name!r}: choose one of {', '.join(sorted(_TARGETS))}")
    return _TARGETS[name]
