"""The process's memory and threads while blocks are learned.

glibc returns every large buffer to the kernel when it is freed, and the kernel clears its pages
again at the next step: on a MobileNetV2 block that costs more than the arithmetic (measured: 1.1 to
3.7 times a step). Raised thresholds keep freed buffers in the process. Elsewhere than on glibc this
does nothing.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_KEEP = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
_USUAL = ((_M_MMAP_MAX, 65536), (_M_TRIM_THRESHOLD, 128 << 10), (_M_TOP_PAD, 0))


@contextmanager
def threads_limited(count: int | None) -> Iterator[None]:
    """Within the context torch uses `count` threads (None: as many as before)."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@contextmanager
def buffers_kept() -> Iterator[None]:
    """Within the context freed buffers stay in the process; behind it they are given back."""
    library = _glibc()
    if library is None:
        yield
        return
    for parameter, value in _KEEP:
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL:
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
