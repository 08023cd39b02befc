import json
import subprocess
import sys
from importlib import metadata

import onnxruntime as ort
import pytest

from onnxbrecq.runtime import doctor as module
from onnxbrecq.runtime.doctor import decodes_at_load, doctor, environment, newest_opset

CPUINFO = """processor	: 0
model name	: Example 9000
flags		: fpu sse2 avx2 avx512f avx512_vnni
"""


@pytest.fixture(scope="module")
def report() -> dict[str, object]:
    return doctor()


def test_report_is_json_and_names_this_onnxruntime(report: dict[str, object]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["onnxruntime"]["version"] == ort.__version__  # type: ignore[index]
    assert "CPUExecutionProvider" in report["onnxruntime"]["providers"]  # type: ignore[index]
    assert report["packages"]["numpy"] == metadata.version("numpy")  # type: ignore[index]


def test_every_missing_capability_is_a_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "saturation_free", lambda: False)
    monkeypatch.setattr(module, "decodes_at_load", lambda bits: False)
    monkeypatch.setattr(module, "_version", lambda package: None if package == "onnx" else "1")
    problems = doctor()["problems"]
    text = json.dumps(problems)
    assert len(problems) == 4  # type: ignore[arg-type]
    for part in ("pip install onnx", "VNNI", "2-bit", "4-bit"):
        assert part in text
    assert all(problem["do"] for problem in problems)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("torch", "torchvision", "matches"),
    [
        ("2.13.0+cpu", "0.28.0", False),
        ("2.13.0+cpu", "0.28.0+cpu", True),
        ("2.13.0", "0.28.0", True),
        ("2.13.0", None, True),
    ],
)
def test_torchvision_of_another_build_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str | None, matches: bool
) -> None:
    versions = {"torch": torch, "torchvision": torchvision}
    monkeypatch.setattr(module, "_version", lambda package: versions.get(package, "1"))
    text = json.dumps(doctor()["problems"])
    assert ("different builds" not in text) == matches


@pytest.mark.parametrize("bits", [4, 2])
def test_packed_weights_decode_at_load(bits: int) -> None:
    assert decodes_at_load(bits)


def test_newest_opset_reads_what_emission_writes() -> None:
    assert newest_opset() >= 25


def test_processor_is_read_from_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpuinfo", lambda: CPUINFO)
    assert module.processor_name() == "Example 9000"
    assert module.processor_features() == ("avx2", "avx512f", "avx512_vnni")


def test_processor_without_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpuinfo", lambda: "")
    assert module.processor_name()
    assert module.processor_features() == ()


def test_environment_is_flat_text() -> None:
    found = environment()
    assert found["onnxruntime"] == ort.__version__
    assert all(isinstance(value, str) for value in found.values())


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from onnxbrecq.runtime.doctor import doctor; doctor(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
