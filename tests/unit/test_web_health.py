"""A replica is alive while its loops turn, and ready when it could lead; leading has no part in either."""

import pytest

from controller.election import Role
from controller.web.health import CONNECTING_LIVENESS_SECONDS, JOINED_SECONDS, Vitals, why_not_live, why_not_ready

SESSION_TIMEOUT = 10.0


@pytest.mark.parametrize("role", [Role.STANDBY, Role.LEADER])
def test_whoever_has_joined_is_ready_whether_it_leads_or_not(role: Role) -> None:
    vitals = Vitals(role, None, silent_seconds=1.0)
    assert why_not_ready(vitals, SESSION_TIMEOUT) == []
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_replica_that_can_not_join_says_why_in_one_line_and_is_alive() -> None:
    vitals = Vitals(Role.CONNECTING, None, 1.0, trouble="password authentication failed\n for user billing")
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["database: password authentication failed; for user billing"]
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_replica_that_has_just_started_is_not_ready_yet() -> None:
    assert why_not_ready(Vitals(Role.CONNECTING, None, 0.0), SESSION_TIMEOUT) == ["elector: connecting to the database"]


def test_lock_session_silent_for_longer_than_its_timeout_proves_nothing() -> None:
    vitals = Vitals(Role.LEADER, 7, silent_seconds=10.5)
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["database: the lock session has been silent for 10 s"]
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_draining_replica_is_alive_and_not_ready() -> None:
    vitals = Vitals(Role.LEADER, 7, 0.5, draining=True, ended=("biller",))
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["draining: this replica is about to stop"]
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_stopped_elector_is_an_end_and_no_hang() -> None:
    vitals = Vitals(Role.STOPPED, None, silent_seconds=9999.0, draining=True)
    assert why_not_live(vitals, SESSION_TIMEOUT) == []
    assert "elector: stopped" in why_not_ready(vitals, SESSION_TIMEOUT)


def test_elector_that_hangs_is_not_alive() -> None:
    assert why_not_live(Vitals(Role.STANDBY, None, JOINED_SECONDS + 1), SESSION_TIMEOUT) == [
        "elector: its loop has not come round for 61 s"
    ]


def test_connecting_may_take_longer_than_a_round_of_a_joined_elector() -> None:
    assert why_not_live(Vitals(Role.CONNECTING, None, CONNECTING_LIVENESS_SECONDS - 1), SESSION_TIMEOUT) == []
    assert why_not_live(Vitals(Role.CONNECTING, None, CONNECTING_LIVENESS_SECONDS + 1), SESSION_TIMEOUT) != []


def test_long_session_timeout_lengthens_the_patience_with_an_elector() -> None:
    assert why_not_live(Vitals(Role.LEADER, 7, 500.0), session_timeout_seconds=600.0) == []


def test_ended_thread_is_named_by_both_probes() -> None:
    vitals = Vitals(Role.STANDBY, None, 1.0, ended=("biller",))
    assert why_not_live(vitals, SESSION_TIMEOUT) == ["biller: its thread has ended"]
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["biller: its thread has ended"]


def test_workers_address_that_was_never_reached_keeps_a_replica_from_being_ready() -> None:
    reasons = why_not_ready(Vitals(Role.STANDBY, None, 1.0), SESSION_TIMEOUT, unproven="connection refused")
    assert reasons == ["database: not reached yet by the workers' address: connection refused"]
