"""What continuous integration reads: JUnit XML, Markdown."""

from dataclasses import replace
from xml.etree import ElementTree as Xml

import pytest

from onnxbrecq.report.junit import as_junit
from onnxbrecq.report.markdown import as_markdown
from onnxbrecq.report.result import Accuracy, Check, Execution, Fidelity, FileFacts, Gate, Result

HOSTILE = "conv <script>alert(1)</script> | **b** [x](https://e.org) @all `c` \x00\x1b ]]> &amp; é"


@pytest.fixture
def found() -> Result:
    told = f"top-1 falls by 2.00 points, {HOSTILE}; at most 1 was asked for"
    checks = (
        Check("max_drop", 1.0, 2.0, False, told),
        Check("max_size", 3e6, 5e5, True, "the quantized model takes 500,000 bytes"),
    )
    return Result(
        tool_version="0.1.0",
        model=FileFacts("a.onnx", "ab", 4_000_000, 17),
        output=FileFacts("out/a.quant.onnx", "cd", 500_000, 21),
        weights_mean_bits=4.25,
        activations_mean_bits=8.0,
        layers=(),
        blocks=(),
        accuracy=Accuracy("top-1", 91.0, 89.0, 2.0, (0.5, 3.5), 1000, 30, 10, 0.002),
        fidelity=Fidelity(98.5, 21.25, 1000),
        execution=(Execution("CPUExecutionProvider", True, 0.995, (), 2.0, 3.0, 1.5),),
        parity=None,
        gate=Gate({"max_drop": 1.0, "max_size": 3e6}, False, told, checks),
        total_seconds=12.34,
        stages={},
        peak_bytes=1,
        environment={},
        notes=(f"note of {HOSTILE}",),
    )


def test_each_limit_is_a_test(found: Result) -> None:
    suite = Xml.fromstring(as_junit(found))[0]
    cases = {case.attrib["name"]: case.find("failure") for case in suite.iter("testcase")}
    assert list(cases) == ["runs on CPUExecutionProvider", "max_drop 1", "max_size 3e+06"]
    failure = cases.pop("max_drop 1")
    assert failure is not None
    assert "falls by 2.00 points" in failure.attrib["message"]
    assert set(cases.values()) == {None}
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("3", "1")


def test_names_do_not_break_the_xml(found: Result) -> None:
    text = "".join(Xml.fromstring(as_junit(found)).itertext())
    assert "<script>alert(1)</script>" in text
    assert r"\u0000\u001b ]]> &amp; é" in text


def test_without_a_gate_it_only_runs(found: Result) -> None:
    suite = Xml.fromstring(as_junit(replace(found, gate=Gate({}, None, None))))[0]
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("1", "0")


def test_the_summary_says_what_a_person_asks(found: Result) -> None:
    text = as_markdown(found)
    first = text.splitlines()[0]
    assert first.startswith("### ❌")
    assert "gate not met" in first
    for part in ("4.00 MB | 500.00 kB | 12.5 %", "91.00 % | 89.00 % | drop 2.00 points (95 %: 0.50",
                 "McNemar p = 0.002", "1.50x as fast", "99.5 %"):  # fmt: skip
        assert part in text
    assert as_markdown(replace(found, gate=Gate({}, None, None))).startswith("### ℹ️")


def test_names_in_the_summary_stay_text(found: Result) -> None:
    text = as_markdown(found)
    for part in ("<script", "**b**", "](", "https:", "@all", "`c`", "\x1b", "]]>"):
        assert part not in text
    assert all(line.count("|") in (0, 5) for line in text.splitlines())
