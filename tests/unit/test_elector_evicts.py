"""A standby evicts a holder that is silent past its own deadline, and no other. The clock is simulated."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from controller.election import Attempt, Holder, LockSessionError, Predecessor, Silence
from tests.unit.elector_script import Session, World, stop


def heard(second: int = 0, *, pid: int = 7, deadline_seconds: float = 5.0) -> Attempt:
    """A failed try which finds that the holder's last statement ended at this second."""
    moment = datetime(2026, 11, 22, 12, 0, second, tzinfo=UTC)
    return Attempt(taken=False, holder=Holder(pid, moment, moment, deadline_seconds, "other-1"))


def test_silent_holder_is_evicted_after_its_deadline_by_the_standbys_clock() -> None:
    world, standby = World(), Session(contend=[heard()] * 10 + [stop])
    with capture_logs() as logs:
        world.run(standby)
    first_seen = world.calls[0][0]
    evicted_at = next(moment for moment, _, call in world.calls if call == "evict")
    assert evicted_at - first_seen == pytest.approx(5.0 * 1.05)
    assert standby.evicted[0] == heard().holder
    (told, *_) = [line for line in logs if line["event"] == "leader.evicted"]
    assert (told["log_level"], told["holder"], told["silent_seconds"]) == ("warning", "other-1", 5.2)
    assert world.evictions == len(standby.evicted)


def test_log_says_that_a_leader_follows_one_that_it_evicted() -> None:
    standby = Session(predecessor=[Predecessor("its-pod-other-1", resigned=False)], wait=[stop])
    standby.script["contend"] = [lambda _world: True if standby.evicted else heard()] * 30
    world = World()
    with capture_logs() as logs:
        world.run(standby)
    (elected,) = [line for line in logs if line["event"] == "leader.elected"]
    assert (elected["predecessor"], elected["predecessor_ended"]) == ("its-pod-other-1", "evicted")


def test_next_wait_is_sent_directly_after_an_eviction() -> None:
    world = World().run(Session(contend=[heard()] * 7 + [True], wait=[stop]))
    assert world.did()[-7:] == ["evict", "contend", "mint", "ping", "wait", "wake", "resign", "close"][-7:]
    evicted_at, waited_at = [at for at, _, call in world.calls if call in {"evict", "contend"}][-2:]
    assert waited_at == evicted_at


def test_no_wait_outlasts_the_holders_deadline() -> None:
    world = World().run(Session(contend=[heard()] * 7 + [stop]))
    moments = [moment for moment, _, call in world.calls if call == "contend"]
    assert [b - a for a, b in pairwise(moments)] == pytest.approx([0.0, *[0.9] * 5, 5.0 * 1.05 - 4.5])


def test_holder_that_pings_is_never_evicted() -> None:
    tries = [heard(number // 5) for number in range(240)]  # a ping every 4.5 seconds: late, but in time
    world = World()
    world.run(Session(contend=[*tries, stop]))
    assert "evict" not in world.did()


@pytest.mark.parametrize("interruption", [Attempt(taken=False), heard(pid=8), heard(second=9)])
def test_seeing_another_holder_restarts_the_silence(interruption: Attempt) -> None:
    world = World().run(Session(contend=[*[heard()] * 5, interruption, *[heard()] * 6, stop]))
    assert "evict" not in world.did()


def test_holder_is_evicted_by_its_own_deadline() -> None:
    """Replicas with different settings don't evict each other during a rollout."""
    world = World().run(Session(contend=[*[heard(deadline_seconds=300.0)] * 300, stop]))
    assert "evict" not in world.did()


def test_holder_that_pings_just_before_its_eviction_is_spared() -> None:
    world = World()
    with capture_logs() as logs:
        world.run(Session(contend=[*[heard()] * 9, stop], evict=[False]))
    assert world.did().count("evict") == 1
    assert world.evictions == 0
    assert not [line for line in logs if line["event"] == "leader.evicted"]


def test_no_holder_is_evicted_when_eviction_is_off() -> None:
    world = World(evicts=False)
    world.run(Session(contend=[*[heard()] * 60, stop]))
    assert "evict" not in world.did()


def test_replica_that_has_stepped_down_evicts_no_holder() -> None:
    world = World()
    world.run(Session(wait=[lambda w: w.elected[0].step_down(60)]), Session(contend=[heard()] * 3, wait=[None] * 61))
    assert world.did(2).count("contend") == 4
    assert "evict" not in world.did(2)


def test_holder_of_another_role_is_logged_once() -> None:
    hidden = Attempt(taken=False, other_role=True)
    with capture_logs() as logs:
        World().run(Session(contend=[hidden, hidden, heard(), hidden, stop]))
    assert [line["log_level"] for line in logs if line["event"] == "eviction.excluded"] == ["info", "info"]


def test_failed_eviction_closes_the_session() -> None:
    world = World().run(Session(contend=[heard()] * 30, evict=[LockSessionError("x")]))
    assert world.did()[-2:] == ["evict", "close"]


@pytest.mark.parametrize("frozen_seconds", [0.0, 5.0, 3600.0])
def test_silence_is_never_longer_than_the_holders_real_silence(frozen_seconds: float) -> None:
    """This holds even if the standby was frozen between the server's answer and reading its clock."""
    now = 100.0
    silence = Silence(lambda: now)
    assert silence.remaining_seconds == math.inf
    now += frozen_seconds
    silence.observe(heard().holder)
    now += 5.15
    silence.observe(heard().holder)
    assert silence.remaining_seconds == pytest.approx(0.1)
    assert silence.expired_holder is None
    now += 0.2
    assert silence.expired_holder == heard().holder
