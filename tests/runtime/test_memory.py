import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxbrecq.runtime import memory

GiB = 1 << 30
MACHINE = {"/proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"}
V2 = {
    "/proc/self/cgroup": "0::/job\n",
    "/sys/fs/cgroup/job/memory.max": f"{4 * GiB}\n",
    "/sys/fs/cgroup/job/memory.current": f"{3 * GiB}\n",
    "/sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {GiB}\n",
}
V1 = {
    "/proc/self/cgroup": "5:cpu:/a\n4:memory:/job\n",
    "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{GiB}\n",
    "/sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GiB // 2}\n",
}
UNLIMITED = {**V2, "/sys/fs/cgroup/job/memory.max": "max\n"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (MACHINE, 8 * GiB),
        ({**MACHINE, **V2}, 2 * GiB),
        ({**MACHINE, **V1}, GiB // 2),
        ({**MACHINE, **UNLIMITED}, 8 * GiB),
    ],
    ids=["machine", "cgroup-v2", "cgroup-v1", "no-limit"],
)
def test_what_is_free(files: dict[str, str], wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_text", lambda path: files.get(str(path), ""))
    assert memory.available() == wanted


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_text", lambda _: "")
    assert memory.available() > 0
    assert memory.resident() == memory.peak() > 0


def test_resident_memory_grows_with_what_is_held() -> None:
    before = memory.resident()
    held = np.ones(8 << 20)
    assert memory.resident() - before > 0.9 * held.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not tell")
def test_the_peak_is_not_that_of_the_parent() -> None:
    held = np.ones(64 << 20)
    code = "from onnxbrecq.runtime.memory import peak; print(peak())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert 0 < int(told.stdout) < held.nbytes


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert memory._text(tmp_path / "nothing") == ""
