"""The program `onnxbrecq` with a guard: whatever ends it, somebody is left to say so in one line.

A file from anywhere may crash native code (onnx 1.23 aborts on a Slice of a negative dimension),
and a system short of memory kills without asking. So the work is done in a child, and its parent,
which has loaded nothing, waits: it hands signals on, and tells of a death that the child could not.
"""

import ctypes
import os
import signal
import sys
import warnings

from .command import FAILED, INTERRUPTED, say
from .main import main as program

_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main() -> int:
    """The exit status of the program, run with the arguments of the process."""
    if not sys.warnoptions:  # -W and PYTHONWARNINGS show them
        warnings.simplefilter("ignore")  # libraries warn programmers, in lines of their own
    if sys.platform != "linux":
        return program()
    parent = os.getpid()
    awaited = {signal.SIGCHLD, *(n for n in _HANDED_ON if signal.getsignal(n) != signal.SIG_IGN)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # until somebody can take them
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may have it ignored: none comes
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return FAILED if os.getppid() != parent else program()
    return _told(_status(child, awaited))


def _status(child: int, awaited: set[signal.Signals]) -> int:
    """The exit status of the child, negative for a signal; the signals until then are handed on.

    They stay blocked and are waited for: a handler's would be lost between two instructions,
    where one comes just before the wait for the child.
    """
    while True:
        received = signal.sigwait(awaited)
        if received != signal.SIGCHLD:
            os.kill(child, received)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)  # none: it was stopped, or goes on
        if ended:
            return os.waitstatus_to_exitcode(status)


def _told(status: int) -> int:
    """The exit status after the child's; negative: what killed it, which is told."""
    if status >= 0:
        return status
    if -status in _HANDED_ON:
        say("interrupted")
        return INTERRUPTED
    if -status == signal.SIGKILL:
        say(
            "killed, by the system for want of memory or by somebody: --max-memory and fewer "
            "samples take less; what was finished is kept, the same command goes on from there"
        )
    else:
        say(
            f"the model crashes native code of onnx, onnxruntime or torch "
            f"({signal.Signals(-status).name}); export it again, or report it with the model"
        )
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
