"""systemd hears from a controller while its loops turn, and only then. The notify socket is a real one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controller import settings
from controller.app import Application
from controller.lifecycle.signals import Signals
from controller.lifecycle.systemd import Watchdog, notify
from controller.replica import Replica

PATIENCE_SECONDS = 15.0


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that stands for systemd's; `getsockname()` is its address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE_SECONDS)
        yield listener


def heard(systemd: socket.socket) -> list[bytes]:
    """The states that have arrived."""
    systemd.setblocking(False)
    found = []
    try:
        while True:
            found.append(systemd.recv(100))
    except BlockingIOError:
        return found


def test_state_reaches_a_named_and_an_abstract_socket(systemd: socket.socket) -> None:
    notify(systemd.getsockname(), "READY=1")
    assert systemd.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind("\0containerstacks-billing-test")
        notify("@containerstacks-billing-test", "STOPPING=1")
        assert abstract.recv(100) == b"STOPPING=1"


def test_missing_socket_is_no_error(tmp_path: Path) -> None:
    notify(str(tmp_path / "nobody-listens"), "READY=1")
    notify(None, "READY=1")


def test_watchdog_sends_signs_until_it_is_stopped(systemd: socket.socket) -> None:
    watchdog = Watchdog(systemd.getsockname(), 0.03, list)
    thread = threading.Thread(target=watchdog.run)
    thread.start()
    try:
        assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    finally:
        watchdog.stop()
        thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_watchdog_starves_while_a_check_of_livez_fails_and_says_why_once(systemd: socket.socket) -> None:
    reasons = ["elector: its loop has not turned for 61 s"]
    watchdog = Watchdog(systemd.getsockname(), 30.0, lambda: reasons)
    with capture_logs() as logs:
        assert [watchdog.feed(), watchdog.feed()] == [False, False]
    assert heard(systemd) == []
    assert [(line["log_level"], line["reason"]) for line in logs] == [("error", reasons[0]), ("debug", reasons[0])]
    reasons.clear()
    assert watchdog.feed()
    assert heard(systemd) == [b"WATCHDOG=1"]


def test_replica_feeds_its_watchdog_only_while_the_elector_turns(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql://user@127.0.0.1:1/nowhere",
        "BILLING_CONTROL_SOCKET": "none",
        "BILLING_HTTP_ADDRESS": "none",
        "BILLING_PAGE_ADDRESS": "none",
        "BILLING_KUBERNETES": "off",
        "NOTIFY_SOCKET": systemd.getsockname(),
        "WATCHDOG_USEC": "30000000",
    }.items():
        monkeypatch.setenv(name, value)
    signals = Signals()
    try:
        replica = Replica(Application(settings.load(None)), signals)
    finally:
        signals.restore()
    assert replica._watchdog is not None
    assert replica._watchdog.feed()
    replica._elector.alive_at -= 301
    assert not replica._watchdog.feed()
    assert heard(systemd) == [b"WATCHDOG=1"]
