"""The bridge against the node tests that ship with onnx: what a block may hold."""

import warnings

import pytest
from backend_nodes import cases, check, reason

_IN_REACH = [name for name, case in cases().items() if reason(case) is None]
_BEYOND = [name for name, case in cases().items() if reason(case) is not None]


@pytest.mark.parametrize("name", _IN_REACH)
def test_torch_computes_what_onnx_defines(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN and infinity are cast in some cases
        check(cases()[name])


@pytest.mark.parametrize("name", _BEYOND)
def test_what_is_said_to_be_out_of_reach_is(name: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 -- whatever: it must not pass unnoticed
        check(cases()[name])


def test_nearly_all_is_in_reach() -> None:
    assert len(_IN_REACH) > 1300
