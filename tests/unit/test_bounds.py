"""The three bounds keep their order, and a leadership ends at its deadline, counted from when a ping was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.election import Bounds, BoundsError, Leadership

seconds = st.floats(0.1, 700, allow_nan=False)


def test_default_bounds_are_two_five_and_ten_seconds() -> None:
    bounds = Bounds()
    assert (bounds.ping_interval_seconds, bounds.leader_deadline_seconds, bounds.session_timeout_seconds) == (2, 5, 10)


@pytest.mark.parametrize(
    "bounds",
    [(3.0, 6.0, 10.0), (2.0, 9.0, 10.0), (0.1, 1.01, 10.0)],
    ids=["twice the ping", "a second less", "just longer than a wait and a ping interval"],
)
def test_bounds_with_just_enough_room_are_accepted(bounds: tuple[float, float, float]) -> None:
    assert Bounds(*bounds).leader_deadline_seconds == bounds[1]


@given(seconds, seconds, seconds)
def test_accepted_bounds_keep_their_order_with_room_in_between(ping: float, deadline: float, timeout: float) -> None:
    try:
        Bounds(ping, deadline, timeout)
    except BoundsError:
        assert ping * 2 > deadline or ping + 0.9 >= deadline or deadline + 1 > timeout
    else:
        assert 2 * ping <= deadline <= timeout - 1
        assert ping + 0.9 < deadline


@pytest.mark.parametrize(
    ("bounds", "wrong", "other"),
    [
        ((4.0, 6.0, 10.0), "BILLING_LEADER_DEADLINE_SECONDS=6", "BILLING_PING_INTERVAL_SECONDS=4"),
        ((0.3, 1.2, 10.0), "BILLING_LEADER_DEADLINE_SECONDS=1.2", "BILLING_PING_INTERVAL_SECONDS=0.3"),
        ((2.0, 9.5, 10.0), "BILLING_SESSION_TIMEOUT_SECONDS=10", "BILLING_LEADER_DEADLINE_SECONDS=9.5"),
        ((2.0, 6.0, 6.0), "BILLING_SESSION_TIMEOUT_SECONDS=6", "BILLING_LEADER_DEADLINE_SECONDS=6"),
    ],
)
def test_wrong_order_is_refused_in_one_line_that_names_both_settings(
    bounds: tuple[float, float, float], wrong: str, other: str
) -> None:
    with pytest.raises(BoundsError) as refused:
        Bounds(*bounds)
    assert str(refused.value).startswith(wrong)
    assert other in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_status == 2


def test_leadership_is_over_at_its_deadline_and_not_before() -> None:
    now = [105.999]
    leadership = Leadership(1, lambda: now[0], 6.0, since=100.0)
    assert leadership.still_leads()
    now[0] = 106.0
    assert not leadership.still_leads()


def test_deadline_counts_from_when_the_ping_was_sent() -> None:
    leadership = Leadership(1, lambda: 103.0, 6.0, since=100.0)
    assert leadership.extend(101.0), "sent at 101, back at 103"
    assert leadership.deadline == 107.0


def test_older_ping_does_not_shorten_the_deadline() -> None:
    leadership = Leadership(1, lambda: 100.0, 6.0, since=100.0)
    leadership.extend(90.0)
    assert leadership.deadline == 106.0


def test_leadership_seen_to_be_over_stays_over() -> None:
    now = [106.0]
    leadership = Leadership(1, lambda: now[0], 6.0, since=100.0)
    assert not leadership.still_leads()
    now[0] = 101.0
    assert not leadership.still_leads()
    assert not leadership.extend(101.0)
