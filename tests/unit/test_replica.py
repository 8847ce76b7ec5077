"""A replica announces what its elector reports: after the fact, and nothing else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest

from controller import replica as replicas
from controller import settings
from controller.app import Application, instance_id
from controller.election import Attempt, Holder, LockSession, LockSessionError, Ping
from controller.lifecycle.signals import Signals
from controller.replica import Replica


class Announcements:
    """Stands in for the announcer and keeps what it is told."""

    made: list[str]

    def __init__(self, *_arguments: object, **_options: object) -> None:
        Announcements.made = []

    def elected(self, term: int) -> None:
        self.made.append(f"elected in {term}")

    def deposed(self, term: int, reason: str) -> None:
        self.made.append(f"deposed in {term}: {reason}")

    def resigned(self, term: int) -> None:
        self.made.append(f"resigned from {term}")

    def billing_halted(self, message: str | None) -> None: ...

    def drain_started(self, reason: str) -> None: ...

    def run(self) -> None: ...

    def stop(self) -> None: ...


@dataclasses.dataclass
class Session:
    """A lock session that wins term 7, and does what the test says when the elector waits for the next ping."""

    during_wait: Callable[[], None]
    announced_before_release: list[str] = dataclasses.field(default_factory=list)

    def contend(self, wait_seconds: float) -> Attempt:
        assert wait_seconds == 0
        return Attempt(taken=True)

    def evict(self, holder: Holder) -> bool:
        raise AssertionError(holder)

    def mint(self) -> int:
        return 7

    def predecessor(self) -> None:
        return None

    def ping(self) -> Ping:
        return Ping(held=True)

    def wait(self, timeout_seconds: float) -> None:
        assert timeout_seconds > 0
        self.during_wait()

    def wake(self) -> None: ...

    def resign(self) -> None: ...

    def close(self) -> None:
        self.announced_before_release = list(Announcements.made)


class Program(Application):
    """An application whose lock session is scripted; it needs no database."""

    session: Session

    def open_lock_session(self) -> LockSession:
        return self.session


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(replicas, "Announcer", Announcements)
    for name, value in {
        "DATABASE_URL": "postgresql://user@127.0.0.1:1/nowhere",
        "BILLING_CONTROL_SOCKET": "none",
        "BILLING_HTTP_ADDRESS": "none",
        "BILLING_PAGE_ADDRESS": "none",
        "BILLING_KUBERNETES": "off",
    }.items():
        monkeypatch.setenv(name, value)
    return Program(settings.load())


def test_resignation_is_announced_once_the_lock_is_released(program: Program, signals: Signals) -> None:
    replica = Replica(program, signals)

    def step_down() -> None:
        leadership = replica._biller._leadership
        assert leadership is not None
        leadership.step_down(0)
        replica._elector.stop()

    program.session = Session(step_down)
    replica._elector.run()
    assert program.session.announced_before_release == ["elected in 7"]
    assert Announcements.made == ["elected in 7", "resigned from 7"]


def test_deposed_leader_is_announced_with_the_reason(program: Program, signals: Signals) -> None:
    replica = Replica(program, signals)

    def lose_the_session() -> None:
        replica._elector.stop()
        raise LockSessionError("connection reset")

    program.session = Session(lose_the_session)
    replica._elector.run()
    assert program.session.announced_before_release == ["elected in 7"]
    assert Announcements.made == ["elected in 7", "deposed in 7: connection reset"]


def test_instance_id_names_the_pod_and_differs_between_two_starts_of_its_container() -> None:
    program = (
        "from controller.app import instance_id; print(instance_id('billing-7d4-x2'), instance_id('billing-7d4-x2'))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [len(set(ids)) for ids in found] == [1, 1], "one process has one id"
    first, second = found[0][0], found[1][0]
    assert first.partition(":")[0] == second.partition(":")[0] == "billing-7d4-x2"
    assert first != second


@pytest.mark.parametrize("name", ["a" * 253, None])
def test_instance_id_fits_its_column(name: str | None) -> None:
    assert len(instance_id(name)) <= 255
