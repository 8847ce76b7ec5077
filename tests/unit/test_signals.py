"""Signals are caught from the start of the process, kept in order, and restored for commands that simply end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from controller.lifecycle.signals import Signals
from controller.readable import readable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")

#: Reports when the signals are caught and before anything heavy is imported, so that a test can act in between.
MARKED_START = """
import os, sys
from controller.lifecycle import signals
kept = signals.Signals
def marked():
    made = kept()
    os.write(1, b"caught\\n")
    return made
signals.Signals = marked
import controller.__main__ as entry
entry.Signals = marked
sys.argv = ["containerstacks-billing", "run"]
entry.main()
"""


#: Sends a signal after the interpreter has restored its default handlers, while it destroys the last objects.
SIGNALLED_AT_THE_END = """
import os, signal, sys
from controller.lifecycle.signals import Signals
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=int(sys.argv[1])):
        kill(pid, number)
last = Last()
Signals().ignore()
"""


def test_signal_ends_the_wait_and_is_returned(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.wait(10) == [signal.SIGTERM]


def test_signals_are_kept_in_order_until_they_are_read(signals: Signals) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert signals.wait(None) == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]
    assert signals.wait(0) == []


def test_wait_without_a_signal_times_out(signals: Signals) -> None:
    assert signals.wait(0.01) == []


def test_another_thread_ends_the_wait(signals: Signals) -> None:
    waker = threading.Thread(target=signals.wake)
    waker.start()
    assert signals.wait(10) == []
    waker.join(10)


def test_many_wakes_neither_block_nor_hide_a_signal(signals: Signals) -> None:
    signal.raise_signal(signal.SIGTERM)
    for _ in range(5000):
        signals.wake()
    assert signals.wait(10) == [signal.SIGTERM]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_signal_interrupts_a_one_off_command(signals: Signals, name: str) -> None:
    number = signal.Signals[name]
    signals.restore()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals.interrupted_by == number


def test_hangup_and_quit_drain_and_user_signals_do_nothing(signals: Signals) -> None:
    for name in ("SIGUSR1", "SIGHUP", "SIGUSR2", "SIGQUIT"):
        signal.raise_signal(signal.Signals[name])
    assert signals.wait(10) == [signal.SIGHUP, signal.SIGQUIT]


def test_hangup_that_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        made = Signals()
        signal.raise_signal(signal.SIGHUP)
        assert made.wait(0) == []
        made.restore()
        made._reader.close()
        made._writer.close()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_more_than_1024_descriptors_do_not_stop_a_wait(signals: Signals) -> None:
    import resource  # noqa: PLC0415 - not on Windows

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 1200:
        pytest.skip("no more than 1,024 descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, limits[1]))
    taken = []
    try:
        while (descriptor := os.dup(0)) < 1100:
            taken.append(descriptor)
        taken.append(descriptor)
        high = os.dup(signals._reader.fileno())
        taken.append(high)
        assert high > 1024
        os.kill(os.getpid(), signal.SIGTERM)
        assert readable([high], 10) == {high}
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert signals.wait(10) == [signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_exit_does_not_change_the_status(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED_AT_THE_END, str(int(number))], check=False, timeout=30)
    assert done.returncode == 0


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "BILLING_", "DATABASE_"))}
    return {
        **kept,
        "DATABASE_URL": "postgresql://user@127.0.0.1:1/nowhere",
        "BILLING_CONTROL_SOCKET": "none",
        "BILLING_HTTP_ADDRESS": "none",
        "BILLING_PAGE_ADDRESS": "none",
        "BILLING_KUBERNETES": "off",
        "LOG_FORMAT": "json",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_imports_drains(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MARKED_START], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"caught\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b""), out
    assert b"drain.completed" in out
    assert b"controller.stopped" in out


@pytest.mark.parametrize("attempt", range(12))
def test_signal_at_any_moment_after_exec_ends_a_replica_cleanly(attempt: int) -> None:
    """Before Python has started, no program can catch a signal. Only then may the signal itself end the process."""
    delay_seconds = random.Random(attempt).uniform(0.0, 0.6)
    never = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-m", "controller", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        never.wait(delay_seconds)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert err == b"", f"after {delay_seconds:.3f} s"
    if process.returncode == -signal.SIGTERM:
        assert out == b"", f"after {delay_seconds:.3f} s it had started"
    else:
        assert process.returncode == 0, f"after {delay_seconds:.3f} s: {out!r}"
        assert b"controller.stopped" in out


def test_signal_ends_a_command_that_waits_as_pid_1() -> None:
    """The kernel doesn't apply a signal's default action to PID 1."""
    unshare = shutil.which("unshare")
    namespace = [unshare or "", "--user", "--map-root-user", "--pid", "--fork"]
    if not unshare or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no rights to create a PID namespace")
    with subprocess.Popen(
        [*namespace, sys.executable, "-m", "controller", "migrate", "--wait", "60"],
        stderr=subprocess.PIPE,
        env=environment(),
    ) as outside:
        assert outside.stderr is not None
        assert b"waiting for up to 60 s" in outside.stderr.readline()
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text("ascii")
        os.kill(int(children), signal.SIGTERM)
        assert outside.wait(10) == 128 + signal.SIGTERM
