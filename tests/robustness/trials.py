"""A trial: the command line on spoilt files, and what may come of it.

Success, or one clear line and status 1 or 2; within bounds of time and memory; no file but those
that were asked for.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from children import Children, Ended
from corpus import Seed, seeds
from mutants import Choose, spoilt_bytes, spoilt_model

SECONDS = 60  # a run; the slowest that is not stuck takes five, on a busy machine
MEMORY = 1 << 30  # bytes resident; torch and onnxruntime take a third of it
LONGEST = 1000  # characters of the line

_QUANTIZE = ("quantize", "model.onnx", "-q", "--effort", "fast", "--threads", "1")


@dataclass(frozen=True)
class Trial:
    """A spoilt file among those of a seed, and the commands that read it."""

    name: str
    files: Mapping[str, bytes]
    commands: tuple[tuple[str, ...], ...]
    output: str = "model.quant.onnx"


def made(folder: Path, children: Children) -> list[Seed]:
    """The seeds, each with its quantized model and its plan too; `folder` is empty."""
    found = []
    for seed in seeds(folder):
        place = folder / seed.name
        ended = children.run(*_QUANTIZE, "--plan", "model.plan", folder=place)
        assert ended.status == 0, (seed.name, ended)
        found.append(Seed(seed.name, {path.name: path.read_bytes() for path in place.iterdir()}))
    return found


def trial(seed: Seed, choose: Choose) -> Trial:
    """One of the seed's files spoilt."""
    sources = {name: data for name, data in seed.files.items() if name != "model.quant.onnx"}
    match choose(8):
        case 0:
            return _other(seed, choose, "model.plan", ("emit", "model.onnx", "model.plan", "-q"))
        case 1:
            command = ("validate", "model.quant.onnx", "--reference", "model.onnx", "-q")
            return _other(seed, choose, "model.quant.onnx", command)
        case 2:
            return _other(seed, choose, "model.calib.npz", _QUANTIZE)
        case kind:
            how = spoilt_bytes if kind == 3 else spoilt_model
            sources["model.onnx"] = how(sources["model.onnx"], choose)
            return Trial(f"{seed.name}: model.onnx by {how.__name__}", sources,
                         (("inspect", "model.onnx"), _QUANTIZE))  # fmt: skip


def _other(seed: Seed, choose: Choose, name: str, command: tuple[str, ...]) -> Trial:
    """A file beside the model spoilt."""
    how = spoilt_model if name.endswith(".onnx") and choose(4) else spoilt_bytes
    files = {**seed.files, name: how(seed.files[name], choose)}
    output = "none" if command[0] == "validate" else "model.quant.onnx"
    if output == "model.quant.onnx":
        del files["model.quant.onnx"]
    return Trial(f"{seed.name}: {name} by {how.__name__}", files, (command,), output)


def faults(tried: Trial, folder: Path, children: Children) -> tuple[list[str], Ended]:
    """What went wrong with the trial in `folder`, which it empties; and its last run."""
    shutil.rmtree(folder, ignore_errors=True)
    place = folder / "inner"
    place.mkdir(parents=True)
    for name, data in tried.files.items():
        (place / name).write_bytes(data)
    found: list[str] = []
    for command in tried.commands:
        before = listing(folder)
        ended = children.run(*command, folder=place, seconds=SECONDS)
        found += [f"{command[0]}: {fault}" for fault in _faults(ended)]
        allowed = before | {f"inner/{tried.output}"} if ended.status == 0 else before
        left = {name for name in listing(folder) - allowed if f"{tried.output}.work" not in name}
        if left:
            found.append(f"{command[0]}: left {sorted(left)}")
        if ended.status != 0:
            break
    return found, ended


def _faults(ended: Ended) -> list[str]:
    """What is wrong with the end of a run."""
    if ended.timed_out:
        return [f"no end after {ended.seconds:.0f} s"]
    found = []
    if ended.status not in (0, 1, 2):
        found.append(f"status {ended.status}")
    lines = ended.err.split("\n")[:-1]
    if lines and "crashes native code" in lines[-1]:
        lines = lines[-1:]  # in front of it are the native code's own last words
    if len(lines) != (ended.status != 0) or not all(line.isprintable() for line in lines):
        found.append("not one line")
    if "internal error" in ended.err or "Traceback" in ended.err:
        found.append("an error of ours")
    if len(ended.err) > LONGEST:
        found.append(f"a line of {len(ended.err)} characters")
    if ended.peak_bytes > MEMORY:
        found.append(f"{ended.peak_bytes >> 20} MiB")
    return found


def listing(folder: Path) -> set[str]:
    """The paths of all that is in the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
