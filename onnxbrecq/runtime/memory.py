"""How much memory this process has, and how much there is to be had."""

import os
import resource
import sys
from pathlib import Path

_CGROUPS = (  # where they are mounted; their limit, use, and the line of memory.stat that is cache
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)  # fmt: skip


def available() -> int:
    """Bytes that could be taken without swapping: of the machine, or of the process's cgroup.

    Where the system does not tell, half of the machine's memory.
    """
    found = [free for free in (_machine(), *_cgroups()) if free is not None]
    if found:
        return min(found)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def resident() -> int:
    """Bytes of memory the process holds; elsewhere than on Linux the most it ever held."""
    words = _text(Path("/proc/self/statm")).split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else peak()


def peak() -> int:
    """The largest resident set this process ever had, in bytes.

    Linux counts what a parent held before it started this program as well in `ru_maxrss`, so that
    is asked only where nothing else tells; it is in bytes on macOS, in KiB elsewhere.
    """
    found = _kibibytes(Path("/proc/self/status"), "VmHWM")
    if found is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _machine() -> int | None:
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable")


def _kibibytes(path: Path, key: str) -> int | None:
    """Bytes of the line `key: N kB`, if there is one."""
    for line in _text(path).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroups() -> list[int]:
    """What is left in each cgroup that limits the process; the kernel takes cache back itself."""
    lines = [line.split(":", 2) for line in _text(Path("/proc/self/cgroup")).splitlines()]
    places = {w[2].strip("/") for w in lines if w[1] == "" or "memory" in w[1].split(",")} | {""}
    found = []
    for root, limit, use, cache in _CGROUPS:
        for place in places:
            most, used = (_text(root / place / name).strip() for name in (limit, use))
            if most.isdigit() and used.isdigit():
                stat = dict(s.split() for s in _text(root / place / "memory.stat").splitlines())
                found.append(max(0, int(most) - int(used) + int(stat.get(cache, 0))))
    return found


def _text(path: Path) -> str:
    """What the file says; nothing where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
