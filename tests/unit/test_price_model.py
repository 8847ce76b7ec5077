"""The model of money that the integration tests use agrees with amounts worked out by hand."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model import EPOCH, HOUR, NOON, Owed, charge_of, clock_cents, settle, whole_hours

PRICES = st.decimals("0", "99999.99", places=2)
MOMENTS = st.integers(0, 4 * 10**15).map(lambda us: EPOCH + timedelta(microseconds=us))


@pytest.mark.parametrize(
    ("price", "hours", "cents"),
    [
        ("5.00", 0, 0),
        ("5.00", 1, 1),  # 0.68 of a cent
        ("5.00", 2, 1),  # 1.37
        ("5.00", 3, 2),  # 2.05
        ("7.30", 1, 1),  # a cent an hour, exactly
        ("3.65", 1, 1),  # half a cent is rounded up
        ("3.00", 1, 0),  # 0.41
        ("3.00", 730, 300),
        ("80.00", 73, 800),
        ("0.01", 364, 0),
        ("0.01", 365, 1),
        ("0.00", 999999, 0),
    ],
)
def test_clock_shows_the_figures_calculated_by_hand(price: str, hours: int, cents: int) -> None:
    assert clock_cents(Decimal(price), EPOCH + hours * HOUR) == cents


@given(price=PRICES, start=MOMENTS)
def test_any_730_hours_cost_the_price(price: Decimal, start: datetime) -> None:
    assert charge_of(price, start, 730) == price


@given(price=PRICES, start=MOMENTS, hours=st.integers(0, 9999))
def test_no_charge_is_off_by_a_cent(price: Decimal, start: datetime, hours: int) -> None:
    exact = price * hours / 730
    assert abs(charge_of(price, start, hours) - exact) < Decimal("0.01")


def test_charge_does_not_depend_on_how_it_is_cut() -> None:
    price, pieces = Decimal("19.99"), (1, 24, 168, 7, 530)
    start, parts = NOON, []
    for hours in pieces:
        parts.append(charge_of(price, start, hours))
        start += hours * HOUR
    assert sum(parts) == price


def test_settling_pays_the_first_in_full_before_the_next() -> None:
    owed = [Owed(Decimal("7.30"), EPOCH, 3), Owed(Decimal("7.30"), EPOCH, 3), Owed(Decimal("0.00"), EPOCH, 3)]
    assert settle(Decimal("0.04"), owed) == [3, 1, 3]
    assert settle(Decimal("-1.00"), owed) == [0, 0, 3]
    assert settle(Decimal("0.06"), owed) == [3, 3, 3]


def test_balance_too_small_for_one_instance_pays_the_next() -> None:
    dear, cheap = Owed(Decimal("73.00"), EPOCH, 2), Owed(Decimal("7.30"), EPOCH, 9)
    assert settle(Decimal("0.15"), [dear, cheap]) == [1, 5]


def test_hour_is_whole_to_the_microsecond() -> None:
    assert whole_hours(NOON, NOON + HOUR) == 1
    assert whole_hours(NOON, NOON + HOUR - timedelta(microseconds=1)) == 0
