"""Whether `--max-memory` is kept: the peak resident memory of `quantize`, measured from without.

    .venv/bin/python tests/benchmarks/memory.py mobilenetv2.onnx --images 1000 --limits 1 2 4

Samples are random: memory does not depend on their values. Each limit is a process of its own.
"""

import argparse
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx

GIB = 1 << 30


def main() -> None:
    """Prints a row for each limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--limits", type=float, nargs="+", default=[1, 2, 4], metavar="GIB")
    parser.add_argument("--effort", default="fast")
    args = parser.parse_args()
    print("| --max-memory | peak | of the limit | seconds |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        data = Path(folder) / "images.npz"
        writing = get_context("spawn").Process(target=_write, args=(data, args.model, args.images))
        writing.start()
        writing.join()
        for limit in args.limits:
            output = Path(folder) / f"{limit}.onnx"
            size = int(limit * GIB)
            command = [
                sys.executable, "-m", "onnxbrecq_cli.main", "quantize", str(args.model), "-q",
                "-d", str(data), "-o", str(output), "--effort", args.effort, "--threads", "1",
                "--max-memory", str(size),
            ]  # fmt: skip
            peak, seconds = _peak(command)
            print(f"| {limit:g} GiB | {peak / GIB:.2f} GiB | {peak / size:.0%} | {seconds:.0f} |",
                  flush=True)  # fmt: skip


def _write(path: Path, model: Path, count: int) -> None:
    """Random samples for the model's only input."""
    value = onnx.load(model, load_external_data=False).graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    random = np.random.default_rng(0)
    np.savez(path, **{value.name: random.normal(size=(count, *shape)).astype(np.float32)})


def _peak(command: list[str]) -> tuple[int, float]:
    """The most memory that the command held, and how long it took.

    At least what this process holds: Linux counts that for its child. So it stays small.
    """
    started = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, time.perf_counter() - started


if __name__ == "__main__":
    main()
