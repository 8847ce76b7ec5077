"""The elector follows its specification, the docstring of `controller.election`. The clock is simulated."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.election import Attempt, Bounds, LockSessionError, Ping, Predecessor, Role
from tests.unit.elector_script import HELD, NOT_HELD, Session, World, later, stop


def test_first_replica_leads_and_resigns_when_stopped() -> None:
    world = World().run(Session(wait=[None, stop]))
    assert world.did() == ["contend", "mint", "ping", "wait", "ping", "wait", "wake", "resign", "close"]
    assert [leadership.term for leadership in world.elected] == [1]
    assert world.led_when_elected == [True]
    assert not world.elected[0].still_leads()
    assert world.ended == [(1, None)]
    assert world.elector.role is Role.STOPPED


def test_leader_reports_each_new_command_once() -> None:
    world, reported = World(), list[float]()
    world.elector._on_command = lambda: reported.append(world.now)
    pings = [Ping(held=True, newest_command=number) for number in (None, 4, 4, 5)]
    world.run(Session(ping=pings, wait=[None, None, None, stop]))
    assert len(reported) == 2


def test_standby_waits_again_at_once_and_never_resigns() -> None:
    world = World().run(Session(contend=[False, False, False, stop]))
    assert world.did() == ["contend", "contend", "contend", "contend", "wake", "close"]
    assert world.elected == []


def test_first_try_takes_no_time_and_each_later_wait_is_less_than_a_second() -> None:
    world = World().run(Session(contend=[False, False, False, stop]))
    moments = [moment for moment, _, call in world.calls if call == "contend"]
    assert [later - earlier for earlier, later in pairwise(moments)] == pytest.approx([0.0, 0.9, 0.9])


def test_standby_stopped_in_its_wait_mints_nothing_even_if_it_was_handed_the_lock() -> None:
    def granted_and_stopped(world: World) -> bool:
        stop(world)
        return True

    with capture_logs() as logs:
        world = World().run(Session(contend=[False, granted_and_stopped]))
    assert world.did() == ["contend", "contend", "wake", "close"]
    assert [line["event"] for line in logs] == ["election.joined"]


def test_roles_follow_the_states() -> None:
    seen: list[Role] = []

    def look(world: World) -> bool:
        seen.append(world.elector.role)
        return True

    def look_and_stop(world: World) -> None:
        look(world)
        stop(world)

    World().run(Session(contend=[False, look], wait=[look, look_and_stop]))
    assert seen == [Role.STANDBY, Role.LEADER, Role.LEADER]


def test_deadline_counts_from_before_the_lock_was_requested() -> None:
    moments: list[float] = []

    def look(world: World) -> Ping:
        moments.append(world.elected[0].deadline - world.now)
        return HELD

    World().run(Session(contend=[later(1.0, True)], mint=[later(2.0, 1)], ping=[look]))
    assert moments == [pytest.approx(5.0 - 3.0)]


def test_leadership_ends_at_its_deadline_while_a_ping_is_unanswered() -> None:
    believed: list[tuple[float, bool]] = []

    def slow(world: World) -> Ping:
        for _ in range(7):
            world.now += 1
            believed.append((world.now, world.elected[0].still_leads()))
        return HELD

    world = World().run(Session(ping=[HELD, slow], wait=[None]))
    sent_at = world.calls[2][0]  # the first ping, which was good
    assert believed == [(moment, moment < sent_at + 5) for moment, _ in believed]
    assert world.ended == [(1, "the last ping came back after the deadline")]


def test_ping_answered_after_the_deadline_deposes_the_leader() -> None:
    world = World().run(Session(ping=[later(5.0)]))
    assert world.did() == ["contend", "mint", "ping", "close"]
    assert len(world.deposed) == 1


def test_ping_answered_in_time_counts_from_when_it_was_sent() -> None:
    remaining: list[float] = []

    def look(world: World) -> None:
        remaining.append(world.elected[0].deadline - world.now)
        stop(world)

    World().run(Session(ping=[later(4.0)], wait=[look]))
    assert remaining == [pytest.approx(5.0 - 4.0 - 2.0)]


def test_pings_are_an_interval_apart() -> None:
    world = World().run(Session(wait=[None, None, stop]))
    pings = [moment for moment, _, call in world.calls if call == "ping"]
    assert [later - earlier for earlier, later in pairwise(pings)] == [2.0, 2.0]


def test_wait_past_the_deadline_deposes_the_leader_without_another_ping() -> None:
    world = World().run(Session(wait=[later(10.0)]))
    assert world.did() == ["contend", "mint", "ping", "wait", "close"]
    assert len(world.deposed) == 1


@pytest.mark.parametrize("freeze_at", range(1, 40))
def test_leadership_that_is_over_never_resumes(freeze_at: int) -> None:
    """A process may be frozen at any point, even between reading the clock and sending the next ping."""
    world = World(freeze_at=freeze_at).run(Session(wait=[None] * 4 + [stop]), Session(wait=[None, stop]))
    for leadership in world.elected:
        states = [led for term, led in world.seen if term == leadership.term]
        assert states == sorted(states, reverse=True), "it led again after another thread had seen its end"


def test_mint_past_the_deadline_elects_no_leader() -> None:
    """Its work would stop before it started, and would never start again."""
    world = World().run(Session(mint=[later(7.0, 1)], wait=[None, None]), Session())
    assert world.did(1)[-1] == "close"
    assert 1 not in [term for term, _ in world.ended]
    assert 1 not in [leadership.term for leadership in world.elected]
    assert all(world.led_when_elected)


@pytest.mark.parametrize(
    "script",
    [
        {"contend": [LockSessionError("x")]},
        {"mint": [LockSessionError("x")]},
        {"ping": [LockSessionError("x")]},
        {"ping": [NOT_HELD]},
        {"wait": [LockSessionError("x")]},
        {"contend": [False, LockSessionError("x")]},
    ],
    ids=["try", "mint", "ping", "lock gone", "leader's wait", "standby's wait"],
)
def test_after_any_error_the_session_is_closed_and_a_new_one_contends(script: dict[str, list[Any]]) -> None:
    world = World().run(Session(**script), Session(wait=[stop]))
    assert world.did(1)[-1] == "close"
    assert world.did(1).count("close") == 1
    assert world.did(1).count("mint") <= 1
    assert world.did(2)[:2] == ["contend", "mint"]
    terms = [leadership.term for leadership in world.elected]
    assert terms == sorted(set(terms))
    assert not any(leadership.still_leads() for leadership in world.elected)


def test_session_never_takes_the_lock_twice() -> None:
    world = World().run(
        Session(ping=[NOT_HELD]), Session(wait=[lambda w: w.elected[-1].step_down(0)]), Session(wait=[stop])
    )
    for session in (1, 2, 3):
        assert world.did(session).count("mint") <= 1
        taken = world.did(session).index("mint")
        assert "contend" not in world.did(session)[taken:]


def test_unexpected_exception_ends_the_leadership_and_the_session() -> None:
    world = World()
    with pytest.raises(ZeroDivisionError):
        world.run(Session(ping=[HELD, ZeroDivisionError()], wait=[None]))
    assert world.did()[-1] == "close"
    assert not world.elected[0].still_leads()
    assert world.deposed == [1]


def test_session_is_closed_even_if_resigning_fails() -> None:
    world = World().run(Session(wait=[stop], resign=[LockSessionError("gone")]))
    assert world.did()[-1] == "close"
    assert world.ended == [(1, None)]


def test_replica_that_steps_down_resigns_and_backs_off() -> None:
    world = World()
    world.run(Session(wait=[lambda w: w.elected[-1].step_down(60)]), Session(wait=[None] * 200))
    assert world.did(1)[-3:] == ["wake", "resign", "close"]
    stepped_down_at = next(moment for moment, _, call in world.calls if call == "resign")
    tried_again_at = next(moment for moment, number, call in world.calls if number > 1 and call == "contend")
    assert 60 <= tried_again_at - stepped_down_at <= 62
    assert world.ended[0] == (1, None)


def test_lock_session_is_never_silent_for_the_session_timeout() -> None:
    world = World()
    world.run(Session(wait=[lambda w: w.elected[-1].step_down(60)]), Session(wait=[None] * 100))
    spoken = [moment for moment, _, call in world.calls if call in {"contend", "mint", "ping", "resign"}]
    assert max(b - a for a, b in pairwise(spoken)) < Bounds().session_timeout_seconds


def test_stepping_down_from_an_earlier_term_does_not_end_the_next_one() -> None:
    def step_down_late(world: World) -> bool:
        world.elected[0].step_down(0)
        return True

    world = World()
    world.run(
        Session(ping=[NOT_HELD]),
        Session(contend=[step_down_late], wait=[None, None, stop]),
    )
    assert world.did(2).count("ping") == 3


def test_stopping_twice_ends_a_leadership_once() -> None:
    def stop_twice(world: World) -> None:
        stop(world)
        stop(world)

    assert World().run(Session(wait=[stop_twice])).ended == [(1, None)]


def test_resignation_is_reported_after_the_session_is_closed() -> None:
    world = World().run(Session(wait=[stop]))
    assert world.at_end == [["contend", "mint", "ping", "wait", "wake", "resign", "close"]]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"ping": [NOT_HELD]}, "the lock session no longer holds the lock"),
        ({"ping": [LockSessionError("connection\nreset")]}, "connection; reset"),
        ({"ping": [later(5.0)]}, "the last ping came back after the deadline"),
        ({"wait": [later(10.0)]}, "no good ping before the deadline"),
    ],
)
def test_deposed_leader_is_reported_with_a_reason_after_its_session_is_closed(
    script: dict[str, list[Any]], reason: str
) -> None:
    world = World().run(Session(**script), Session(wait=[stop]))
    assert world.ended == [(1, reason), (2, None)]
    assert world.at_end[0][-1] == "close"


def test_elector_has_a_term_only_until_the_deadline() -> None:
    terms: list[int | None] = []

    def look(world: World) -> None:
        terms.append(world.elector.term)
        world.now += 5.0
        terms.append(world.elector.term)

    def stand_by(world: World) -> bool:
        terms.append(world.elector.term)
        return True

    world = World().run(Session(contend=[False, stand_by], wait=[look]), Session())
    assert terms == [None, 1, None]
    assert world.elector.term is None


def test_elector_stopped_before_it_runs_never_connects() -> None:
    world = World()
    world.elector.stop()
    world.run(Session())
    assert world.opened == 0
    assert world.elector.role is Role.STOPPED


def test_outage_is_one_warning() -> None:
    away = LockSessionError("connection refused")
    with capture_logs() as logs:
        World().run(away, away, Session(mint=[away]), away, Session(wait=[None, away]), away, away)
    told = [(line["log_level"], line["event"]) for line in logs if line.get("error") == "connection refused"]
    assert told.count(("warning", "session.failed")) == 2
    assert {level for level, _ in told} == {"warning", "debug"}


def test_each_reason_of_an_outage_is_a_warning() -> None:
    with capture_logs() as logs:
        World().run(LockSessionError("connection refused"), LockSessionError("migrations not applied"))
    told = [line["error"] for line in logs if line["log_level"] == "warning"]
    assert told[:2] == ["connection refused", "migrations not applied"]


def test_log_shows_each_change_of_state() -> None:
    with capture_logs() as logs:
        World().run(Session(ping=[NOT_HELD]), Session(contend=[False], wait=[stop]))
    events = [line["event"] for line in logs if line["log_level"] != "debug"]
    assert events == ["leader.elected", "leader.deposed", "election.joined", "leader.elected", "leader.resigned"]


def test_log_names_the_term_and_why_it_ended() -> None:
    with capture_logs() as logs:
        World().run(Session(ping=[NOT_HELD]), Session(wait=[stop]))
    told = {line["event"]: line for line in logs}
    terms = [(line["event"], line["term"]) for line in logs if line["event"].startswith("leader.")]
    assert terms == [("leader.elected", 1), ("leader.deposed", 1), ("leader.elected", 2), ("leader.resigned", 2)]
    assert "lock" in told["leader.deposed"]["reason"]


@pytest.mark.parametrize(
    ("predecessor", "told"),
    [
        (None, {}),
        (Predecessor("a-1", resigned=True), {"predecessor": "a-1", "predecessor_ended": "resigned"}),
        (Predecessor("a-1", resigned=False), {"predecessor": "a-1", "predecessor_ended": "gone"}),
    ],
)
def test_log_says_whom_a_leader_follows_and_how_that_leadership_ended(
    predecessor: Predecessor | None, told: dict[str, str]
) -> None:
    with capture_logs() as logs:
        World().run(Session(predecessor=[predecessor], wait=[stop]))
    (elected,) = [line for line in logs if line["event"] == "leader.elected"]
    assert {key: value for key, value in elected.items() if key.startswith("predecessor")} == told


def test_log_says_why_a_holder_of_another_role_is_not_evicted() -> None:
    with capture_logs() as logs:
        World().run(Session(contend=[Attempt(taken=False, other_role=True), stop]))
    (told,) = [line for line in logs if line["event"] == "eviction.excluded"]
    assert told["reason"].startswith("another database role holds the lock")


def test_session_that_keeps_the_lock_without_a_term_is_reported_and_makes_the_replica_unready() -> None:
    seen: list[tuple[Role, str | None]] = []

    def look(attempt: Attempt) -> Any:  # noqa: ANN401 - an answer
        def answer(world: World) -> Attempt:
            seen.append((world.elector.role, world.elector.trouble))
            return attempt

        return answer

    held = Attempt(taken=False, without_term="psql (pid 7, role app)")
    with capture_logs() as logs:
        World().run(Session(contend=[look(held)] * 20 + [look(Attempt(taken=False))] * 2 + [stop]))
    roles = [role for role, _ in seen]
    assert roles[1:6] == [Role.STANDBY] * 5, "a replica that has just been elected has no term either"
    assert (roles[15], roles[21]) == (Role.CONNECTING, Role.STANDBY)
    assert seen[15][1] == (
        "psql (pid 7, role app) holds the billing lock without a term, so no replica can lead; end that session"
    )
    assert [line["log_level"] for line in logs if line["event"] == "lock.held_without_term"] == ["error"] + [
        "debug"
    ] * (roles[1:].count(Role.CONNECTING) - 1)


def test_late_mint_is_reported_as_such() -> None:
    with capture_logs() as logs:
        World().run(Session(mint=[later(7.0, 1)]), Session(wait=[stop]))
    assert "minting the term took longer" in next(line["error"] for line in logs if line["event"] == "session.failed")


def test_replica_that_connects_is_alive_and_says_that_it_connects() -> None:
    seen: list[tuple[Role, bool]] = []

    class Watched(World):
        def connect(self) -> Session:
            seen.append((self.elector.role, self.elector.alive_at == self.now))
            return super().connect()

    world = Watched()
    assert (world.elector.role, world.elector.trouble, world.elector.alive_at) == (Role.CONNECTING, None, world.now)
    world.now += 30.0
    world.run(Session(ping=[NOT_HELD]), LockSessionError("x"), Session(wait=[stop]))
    assert seen == [(Role.CONNECTING, True)] * 3


def test_pause_after_a_failed_connection_is_half_a_second_to_one_and_a_half() -> None:
    class Waits(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            return self.is_set()

    pauses: list[float | None] = []
    world = World(jitter=lambda: 0.25)
    world.elector._stopping = Waits()
    world.run(LockSessionError("x"), Session(wait=[stop]))
    assert pauses == [0.75]
