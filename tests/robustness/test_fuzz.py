"""No file ends in more than one clear line: 300 mutants, and 10 000 with --long.

tests/benchmarks/fuzz.py counts how they end, and does not stop at the first fault.
"""

from pathlib import Path

from children import Children
from corpus import SEEDS, Seed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trials import faults, made, trial

_MUTANTS, _MANY = 300, 10_000


def test_a_spoilt_file_ends_in_success_or_one_line(
    tmp_path: Path, children: Children, long: bool
) -> None:
    (tmp_path / "seeds").mkdir()
    seeds = made(tmp_path / "seeds", children)
    assert [seed.name for seed in seeds] == list(SEEDS)

    @settings(
        max_examples=_MANY if long else _MUTANTS, derandomize=not long, database=None,
        deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(seeds), st.data())
    def check(seed: Seed, data: st.DataObject) -> None:
        tried = trial(seed, lambda below: data.draw(st.integers(0, below - 1)))
        found, ended = faults(tried, tmp_path / "trial", children)
        assert not found, (tried.name, found, ended.err)

    check()
