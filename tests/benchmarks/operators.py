"""Writes docs/operators.md: which ONNX backend node tests the bridge into torch passes.

python tests/benchmarks/operators.py
"""

import sys
from collections import defaultdict
from pathlib import Path

import onnx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "recon"))

from backend_nodes import cases, check, reason  # noqa: E402 -- found through the line above

_HEAD = f"""# Operators in torch

Blocks are learned in torch. This is what of the node tests of onnx {onnx.__version__} passes there,
each case held against its expected output; an operator that ONNX defines by others is counted with
its expanded form too. What does not pass is an *island*: it runs in ONNX Runtime between the
blocks. Made by `tests/benchmarks/operators.py`; `tests/recon/test_backend_nodes.py` holds it to
be true.

| operator | passed | of | the others, because |
| --- | --- | --- | --- |
"""


def main() -> None:
    """Runs every case and writes the table."""
    passed: dict[str, int] = defaultdict(int)
    whole: dict[str, int] = defaultdict(int)
    why: dict[str, set[str]] = defaultdict(set)
    for case in cases().values():
        nodes = case.model.graph.node
        name = nodes[0].op_type if len(nodes) == 1 else "(definitions written out)"
        whole[name] += 1
        said = reason(case)
        if said is not None:
            why[name].add(said)
            continue
        check(case)
        passed[name] += 1
    rows = [
        f"| {name} | {passed[name]} | {whole[name]} | {'; '.join(sorted(why[name]))} |"
        for name in sorted(whole)
    ]
    total = f"\nTogether {sum(passed.values())} of {sum(whole.values())} cases.\n"
    (ROOT / "docs" / "operators.md").write_text(_HEAD + "\n".join(rows) + "\n" + total)


if __name__ == "__main__":
    main()
