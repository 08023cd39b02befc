"""The result as JUnit XML, which continuous integration shows as tests: one for each limit.

The format is that of Ant's JUnit task, in the subset that Jenkins, GitLab and others read.
"""

import re
from pathlib import PurePath
from xml.etree import ElementTree as Xml

from onnxbrecq.report.result import Result

# What XML 1.0 allows besides (its section 2.2); a name in a model may hold anything.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(found: Result) -> str:
    """The XML document: the model runs, and each limit of the gate is kept."""
    missed = sum(not check.met for check in found.gate.checks)
    count = {
        "tests": str(len(found.execution) + len(found.gate.checks)),
        "failures": str(missed),
        "errors": "0",
        "time": f"{found.total_seconds:.3f}",
    }
    root = Xml.Element("testsuites", {"name": "onnxbrecq", **count})
    name = PurePath(found.output.path).name
    suite = Xml.SubElement(root, "testsuite", {"name": _legal(name), **count})
    properties = Xml.SubElement(suite, "properties")
    for key, value in _figures(found).items():
        Xml.SubElement(properties, "property", {"name": key, "value": _legal(value)})
    for execution in found.execution:
        _case(suite, name, f"runs on {execution.provider}")
    for check in found.gate.checks:
        case = _case(suite, name, f"{check.name} {check.asked:g}")
        if not check.met:
            failure = Xml.SubElement(
                case, "failure", {"message": _legal(check.told), "type": check.name}
            )
            failure.text = _legal(check.told)
    Xml.SubElement(suite, "system-out").text = _legal("\n".join(found.notes))
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: Xml.Element, model: str, name: str) -> Xml.Element:
    attributes = {"classname": _legal(f"onnxbrecq.{model}"), "name": _legal(name), "time": "0"}
    return Xml.SubElement(suite, "testcase", attributes)


def _figures(found: Result) -> dict[str, str]:
    """What the properties tell, by the names of the JSON."""
    figures = {
        "output.sha256": found.output.sha256,
        "size.ratio": f"{found.output.size_bytes / found.model.size_bytes:.4f}",
    }
    if found.accuracy is not None:
        figures["accuracy.metric"] = found.accuracy.metric
        figures["accuracy.drop"] = f"{found.accuracy.drop:.4f}"
    if found.fidelity is not None:
        figures["fidelity.sqnr_db"] = f"{found.fidelity.sqnr_db:.3f}"
    for execution in found.execution:
        figures["execution.integer_macs_fraction"] = f"{execution.integer_macs_fraction:.4f}"
        if execution.speedup is not None:
            figures["execution.speedup"] = f"{execution.speedup:.3f}"
    return figures


def _legal(text: str) -> str:
    """`text` with what XML forbids spelt out."""
    return _FORBIDDEN.sub(lambda c: f"\\u{ord(c[0]):04x}", text)
