"""The guard tells of deaths that the program could not tell of, and hands signals on."""

import signal
import subprocess
import sys

import pytest

_CODE = """
import os, signal, sys, time
from onnxbrecq_cli import guard
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
def program():
    {body}
guard.program = program
sys.exit(guard.main())
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a guard on Linux only")


def _ended(body: str, *options: str) -> tuple[int, str]:
    command = [sys.executable, *options, "-c", _CODE.format(body=body)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_status_is_handed_on() -> None:
    assert _ended("return 3") == (3, "")


def test_warnings_of_libraries_are_shown_to_who_asks() -> None:
    body = "import warnings; warnings.warn('for programmers', UserWarning); return 0"
    assert _ended(body) == (0, "")
    assert "for programmers" in _ended(body, "-W", "default")[1]


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGFPE"])
def test_a_crash_of_native_code_is_one_line(name: str) -> None:
    status, err = _ended(f"os.kill(os.getpid(), signal.{name})")
    assert status == 1
    assert err.count("\n") == 1
    assert "crashes native code" in err
    assert name in err


def test_a_process_that_the_system_kills_leaves_a_line() -> None:
    status, err = _ended("os.kill(os.getpid(), signal.SIGKILL)")
    assert status == 1
    assert "want of memory" in err
    assert err.count("\n") == 1


def test_the_end_is_seen_where_children_are_ignored() -> None:
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    started = "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", ignoring + started, _CODE.format(body="return 3")],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_handed_on(number: int) -> None:
    body = (
        f"signal.signal({int(number)}, lambda *_: os._exit(42)); print(flush=True); "
        "[time.sleep(0.05) for _ in range(1000)]"  # one that comes just before a sleep waits for it
    )
    with subprocess.Popen(
        [sys.executable, "-c", _CODE.format(body=body)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(60) == 42


def test_who_dies_takes_the_program_along() -> None:
    """Else it would hold the work-dir's lock."""
    body = "print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", _CODE.format(body=body)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        assert process.stdout.read() == b""  # ends once the program, which has it open, has ended
