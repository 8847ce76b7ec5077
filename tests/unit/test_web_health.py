"""A replica is live while its loops turn, and ready if it could lead. Leadership plays no part in either."""

import pytest

from controller.election import Role
from controller.web.health import CONNECTING_LIVENESS_SECONDS, JOINED_SECONDS, Vitals, why_not_live, why_not_ready

SESSION_TIMEOUT = 10.0


@pytest.mark.parametrize("role", [Role.STANDBY, Role.LEADER])
def test_joined_replica_is_ready_whether_it_leads_or_not(role: Role) -> None:
    vitals = Vitals(role, None, silent_seconds=1.0)
    assert why_not_ready(vitals, SESSION_TIMEOUT) == []
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_replica_that_cannot_join_is_live_and_not_ready_and_says_why() -> None:
    vitals = Vitals(Role.CONNECTING, None, 1.0, connect_error="password authentication failed\n for user billing")
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["database: password authentication failed; for user billing"]
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_replica_that_has_just_started_is_not_ready() -> None:
    assert why_not_ready(Vitals(Role.CONNECTING, None, 0.0), SESSION_TIMEOUT) == ["elector: connecting to the database"]


def test_replica_whose_lock_session_is_silent_too_long_is_not_ready() -> None:
    vitals = Vitals(Role.LEADER, 7, silent_seconds=10.5)
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["database: the lock session has been silent for 10 s"]
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


@pytest.mark.parametrize("role", [Role.LEADER, Role.CONNECTING, Role.STOPPED])
def test_draining_replica_is_live_and_ready_to_its_end(role: Role) -> None:
    """A failed readiness probe would add a warning to each planned stop."""
    vitals = Vitals(role, None, 200.0 if role is Role.CONNECTING else 9.0, draining=True, ended_threads=("biller",))
    assert why_not_ready(vitals, SESSION_TIMEOUT, workers_unreachable="timeout") == []
    assert why_not_live(vitals, SESSION_TIMEOUT) == []


def test_stopped_elector_is_live_and_not_ready() -> None:
    vitals = Vitals(Role.STOPPED, None, silent_seconds=9999.0)
    assert why_not_live(vitals, SESSION_TIMEOUT) == []
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["elector: stopped"]


def test_replica_whose_elector_hangs_is_not_live() -> None:
    assert why_not_live(Vitals(Role.STANDBY, None, JOINED_SECONDS + 1), SESSION_TIMEOUT) == [
        "elector: its loop has not turned for 61 s"
    ]


def test_connecting_elector_may_take_longer_than_a_joined_one() -> None:
    assert why_not_live(Vitals(Role.CONNECTING, None, CONNECTING_LIVENESS_SECONDS - 1), SESSION_TIMEOUT) == []
    assert why_not_live(Vitals(Role.CONNECTING, None, CONNECTING_LIVENESS_SECONDS + 1), SESSION_TIMEOUT) != []


def test_elector_with_a_long_session_timeout_may_take_longer() -> None:
    assert why_not_live(Vitals(Role.LEADER, 7, 500.0), session_timeout_seconds=600.0) == []


def test_both_probes_name_an_ended_thread() -> None:
    vitals = Vitals(Role.STANDBY, None, 1.0, ended_threads=("biller",))
    assert why_not_live(vitals, SESSION_TIMEOUT) == ["biller: its thread has ended"]
    assert why_not_ready(vitals, SESSION_TIMEOUT) == ["biller: its thread has ended"]


def test_replica_whose_workers_cannot_connect_is_not_ready() -> None:
    reasons = why_not_ready(Vitals(Role.STANDBY, None, 1.0), SESSION_TIMEOUT, workers_unreachable="connection refused")
    assert reasons == ["database: not yet reached through DATABASE_URL: connection refused"]
