"""How the command line ends on spoilt files: a count of every end, and each fault once.

    .venv/bin/python tests/benchmarks/fuzz.py --count 10000 --out FOLDER

Unlike the test (tests/robustness/test_fuzz.py), it goes on after a fault. Each kind of fault is
kept in FOLDER with its files: `cd FOLDER/N/inner` and repeat the command that it tells.
"""

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "robustness"))

from children import Children
from trials import faults, made, trial


def main() -> None:
    """Runs the trials and prints what came of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    started, ends, kinds = time.monotonic(), Counter[str](), Counter[str]()
    slowest = peak = done = 0.0
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        (Path(folder) / "seeds").mkdir()
        seeds = made(Path(folder) / "seeds", children)
        for number in range(args.seed, args.seed + args.count):
            if time.monotonic() - started > args.seconds:
                break
            source = random.Random(number)
            tried = trial(seeds[number % len(seeds)], source.randrange)
            found, ended = faults(tried, Path(folder) / "trial", children)
            done += 1
            told = ", a crash of native code" if "crashes native code" in ended.err else ""
            ends[f"{tried.commands[-1][0]}: status {ended.status}{told}"] += 1
            slowest, peak = max(slowest, ended.seconds), max(peak, ended.peak_bytes)
            if found:
                kind = f"{'; '.join(found)} {_pattern(ended.err)}"
                kinds[kind] += 1
                if kinds[kind] == 1:
                    print(f"{number} {tried.name}: {'; '.join(found)}\n    {ended.err[-700:]}",
                          flush=True)  # fmt: skip
                    shutil.copytree(Path(folder) / "trial", args.out / str(number))
    print(f"{done:.0f} mutants in {time.monotonic() - started:.0f} s; the slowest run took "
          f"{slowest:.1f} s, the largest {peak / 2**20:.0f} MiB")  # fmt: skip
    for end, count in sorted(ends.items()):
        print(f"{count:6} {end}")
    print(f"{sum(kinds.values())} faults of {len(kinds)} kinds")
    for kind, count in kinds.most_common():
        print(f"{count:6} {kind[:150]}")


def _pattern(text: str) -> str:
    """The text without names and numbers, so that faults of one kind are alike."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", text)[-160:]


if __name__ == "__main__":
    main()
