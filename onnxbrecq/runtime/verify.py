#!/usr/bin/env python3
"""Replays a bundle on this machine: files, provider, outputs, integer kernels. Says what differs.

    python verify.py [DIR] [--provider NAME]

needs onnxruntime and numpy only; it lies in every bundle that onnxbrecq makes. Nothing is unpickled
or executed but the model, and that only if its hash is the manifest's. Exit status: 0 the bundle
holds, 3 it does not, 2 wrong usage.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

FORMAT = "onnxbrecq-bundle-1"
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
FAILED = 3

_CPU = "CPUExecutionProvider"
_INTEGER = frozenset(
    {
        "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16",
        "MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QLinearConv", "QLinearMatMul",
    }
)  # fmt: skip
# What onnxruntime appends to the name of a node that it fuses or lays out anew.
_APPENDED = re.compile(r"(_token_\d+|/MatMulAddFusion)+$")
_CHUNK = 1 << 20


class Check(NamedTuple):
    """Something that was looked at: what, whether it holds, and the figure in words."""

    what: str
    met: bool
    told: str


def verify(folder: Path, provider: str | None = None) -> list[Check]:
    """Everything that was looked at; what needs something that does not hold is left out.

    Args:
        folder: the bundle.
        provider: onnxruntime's execution provider; None: the one that the manifest names.
    """
    checks: list[Check] = []
    try:
        checks.extend(_checks(folder, provider))
    except Exception as error:  # onnxruntime's have no common base
        told = f"{type(error).__name__}: {_line(error)}"
        checks.append(Check("run", False, f"onnxruntime {ort.__version__}: {told}"))
    return checks


def _checks(folder: Path, provider: str | None) -> Iterator[Check]:
    """One after another, as long as they allow to go on."""
    read, manifest = _manifest(folder)
    yield read
    if manifest is None:
        return
    sound = True
    for check in _files(folder, manifest):
        yield check
        sound &= check.met
    wanted = provider or manifest["provider"]
    available = ort.get_available_providers()
    if wanted not in available:
        here = ", ".join(available)
        yield Check("provider", False, f"{wanted} is missing here; this onnxruntime has {here}")
        return
    yield Check("provider", True, f"{wanted} is here")
    if sound:
        yield from _replayed(folder, manifest, wanted)


def main(arguments: list[str] | None = None) -> int:
    """The exit status of the program."""
    parser = argparse.ArgumentParser(description="Replays a bundle on this machine.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--provider", help="onnxruntime's; default: the manifest's")
    given = parser.parse_args(arguments)
    checks = verify(given.folder, given.provider)
    for check in checks:
        sys.stdout.write(f"{'ok  ' if check.met else 'FAIL'} {check.what}: {_line(check.told)}\n")
    missed = [check for check in checks if not check.met]
    sys.stdout.write(
        "the bundle holds\n" if not missed else f"{len(missed)} of {len(checks)} fail\n"
    )
    return FAILED if missed else 0


def _manifest(folder: Path) -> tuple[Check, dict[str, Any] | None]:
    """Whether the manifest is the one that was bundled, and it if so."""
    try:
        text = (folder / MANIFEST).read_bytes()
        found = json.loads(text)
        sums = _sums((folder / SUMS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        return Check(MANIFEST, False, f"cannot be read: {_line(error)}"), None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return Check(MANIFEST, False, f"is no {FORMAT}"), None
    if hashlib.sha256(text).hexdigest() != sums.get(MANIFEST):
        return Check(MANIFEST, False, f"was changed: {SUMS} has another hash"), None
    return Check(MANIFEST, True, f"made by onnxbrecq {found['tool']['version']}"), found


def _sums(text: str) -> dict[str, str]:
    """File → hash, from lines as sha256sum writes them."""
    pairs = (line.split("  ", 1) for line in text.splitlines() if "  " in line)
    return {name: digest for digest, name in pairs}


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[Check]:
    """Whether each file is the one that was bundled."""
    for name, facts in manifest["files"].items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            yield Check(name, False, "lies outside of the bundle")
            continue
        path = folder / parts
        if not path.is_file():
            yield Check(name, False, "is missing")
            continue
        size = path.stat().st_size
        if size != facts["size_bytes"]:
            yield Check(
                name, False, f"is another file: {size} bytes, bundled were {facts['size_bytes']}"
            )
            continue
        digest = _sha256(path)
        same = digest == facts["sha256"]
        told = f"sha256 {digest[:12]}"
        yield Check(
            name, same, told if same else f"was changed: {told}, bundled was {facts['sha256'][:12]}"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def _replayed(folder: Path, manifest: dict[str, Any], provider: str) -> Iterator[Check]:
    """Whether the model opens on the provider, gives what it gave, and runs in integers."""
    samples = manifest["samples"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        np.load(folder / samples["file"], allow_pickle=False) as arrays,
    ):
        session = _session(folder / manifest["model"]["file"], provider, Path(scratch))
        used = session.get_providers()[0]
        yield Check("session", used == provider, f"onnxruntime {ort.__version__} runs it on {used}")
        feed = {item["name"]: arrays[item["array"]] for item in samples["inputs"]}
        names = [value.name for value in session.get_inputs()]
        if sorted(names) != sorted(feed):
            yield Check("inputs", False, f"are {names}, bundled were {sorted(feed)}")
            return
        made = _run(session, feed, samples["batch"])
        for item in samples["outputs"]:
            yield _compared(item, arrays[item["array"]], made.get(item["name"]))
        profile = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    if provider == _CPU:
        yield _coverage(manifest["integer"], profile)


def _session(model: Path, provider: str, scratch: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    return ort.InferenceSession(str(model), options, providers=[provider])


def _run(session: ort.InferenceSession, feed: dict[str, Any], batch: int) -> dict[str, Any]:
    """Every output of all samples, `batch` at a time."""
    names = [value.name for value in session.get_outputs()]
    count = len(next(iter(feed.values())))
    parts = [
        session.run(names, {name: array[i : i + batch] for name, array in feed.items()})
        for i in range(0, count, batch)
    ]
    return {name: [part[i] for part in parts] for i, name in enumerate(names)}


def _compared(item: dict[str, Any], expected: Any, made: list[Any] | None) -> Check:
    """An output beside the one that was bundled, in steps."""
    what = f"output {item['name']}"
    if made is None:
        return Check(what, False, "the model has no such output")
    if item["tolerance_steps"] is None:
        return Check(what, True, f"not compared: {item['note']}")
    found = np.concatenate(made)
    if found.shape != expected.shape:
        return Check(
            what, False, f"has shape {list(found.shape)}, bundled was {list(expected.shape)}"
        )
    known = np.isfinite(expected.astype(np.float64))
    with np.errstate(all="ignore"):
        steps = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / item["step"]
    steps = np.where(known, np.where(np.isfinite(steps), steps, np.inf), 0)
    worst = np.unravel_index(int(np.argmax(steps)), steps.shape) if steps.size else ()
    most = float(steps[worst]) if steps.size else 0.0
    allowed, step = item["tolerance_steps"], item["step"]
    told = f"at most {most:.2f} steps off, {allowed:g} are allowed (a step is {step:.4g})"
    if most > allowed:
        place = [int(i) for i in worst]
        told += f"; at {place} it is {found[worst]:.6g}, bundled was {expected[worst]:.6g}"
    return Check(what, bool(most <= allowed), told)


def _coverage(promised: dict[str, Any], events: list[dict[str, Any]]) -> Check:
    """The share of the multiply-accumulates in integer kernels, by onnxruntime's profile."""
    kernels: dict[str, set[str]] = {}
    layers = promised["layers"]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            written = name if name in layers else _APPENDED.sub("", name)
            kernels.setdefault(written, set()).add(event["args"]["op_name"])
    integer = [n for n in layers if len(kernels.get(n, ())) == 1 and kernels[n] <= _INTEGER]
    total = sum(layers.values())
    share = sum(layers[name] for name in integer) / total if total else 0.0
    told = f"{share:.4f} of the multiply-accumulates, promised are {promised['macs_fraction']:.4f}"
    met = share >= promised["macs_fraction"] - 1e-6
    if not met:
        lost = [n for n in layers if n not in integer and n not in promised["float_layers"]]
        told += f"; in float: {', '.join(lost[:8])}"
    return Check("integer kernels", met, told)


def _line(told: object) -> str:
    """One line, whatever it holds, with nothing that a terminal would obey."""
    text = " ".join(str(told).split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
