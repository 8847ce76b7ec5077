"""The price clock in SQL agrees with the model in whole numbers to the cent."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model import EPOCH, HOUR, NOON, Owed, charge_of, clock_cents, settle, whole_hours

Connection = psycopg.Connection[Any]

PRICES = st.one_of(
    st.decimals("0", "500", places=2),
    st.decimals("0", "99999999.99", places=2),
    st.sampled_from([Decimal(p) for p in ("0.01", "3.00", "3.65", "5.00", "7.30", "19.71", "19.7100", "1e-6")]),
)
MOMENTS = st.one_of(
    st.integers(0, 4 * 10**15).map(lambda us: EPOCH + timedelta(microseconds=us)),
    st.integers(0, 10**6).map(lambda hours: EPOCH + timedelta(hours=hours)),
)
#: Many examples may share the fixtures, because the tests only read them.
MANY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def column(conn: Connection, query: str, *parameters: object) -> list[Any]:
    return [row[0] for row in conn.execute(query.encode(), parameters).fetchall()]


@MANY
@given(cases=st.lists(st.tuples(PRICES, MOMENTS), min_size=50, max_size=200))
def test_clock_equals_the_model(conn: Connection, cases: list[tuple[Decimal, datetime]]) -> None:
    shown = column(
        conn,
        "select billing_price_clock(price, moment) * 100"
        " from unnest(%s::numeric[], %s::timestamptz[]) with ordinality as c (price, moment, place) order by place",
        [price for price, _ in cases],
        [moment for _, moment in cases],
    )
    assert shown == [clock_cents(price, moment) for price, moment in cases]


@MANY
@given(cases=st.lists(st.tuples(PRICES, MOMENTS, st.integers(0, 50_000)), min_size=50, max_size=200))
def test_charge_equals_the_model(conn: Connection, cases: list[tuple[Decimal, datetime, int]]) -> None:
    prices, starts, hours = zip(*cases, strict=True)
    charges = column(
        conn,
        "select billing_charge(price, moment, hours)"
        " from unnest(%s::numeric[], %s::timestamptz[], %s::bigint[])"
        " with ordinality as c (price, moment, hours, place) order by place",
        list(prices),
        list(starts),
        list(hours),
    )
    assert charges == [charge_of(*case) for case in cases]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_clock_does_not_depend_on_the_sessions_time_zone(conn: Connection, zone: str) -> None:
    conn.execute("select set_config('timezone', %s, false)", (zone,))
    year = [datetime(2024, 1, 1, tzinfo=UTC) + n * 7 * HOUR for n in range(1250)]
    shown = column(
        conn,
        "select billing_charge(19.99, m, 7) from unnest(%s::timestamptz[]) with ordinality as c (m, n) order by n",
        year,
    )
    assert shown == [charge_of(Decimal("19.99"), moment, 7) for moment in year]


@pytest.mark.parametrize("cadence", [1, 2, 5, 24, 73, 365, 730])
def test_any_730_hours_cost_exactly_the_price_at_every_cadence(conn: Connection, cadence: int) -> None:
    """Periods start at any microsecond and have `cadence` hours. The last one may be shorter."""
    start = datetime(2025, 3, 1, 12, 34, 56, 789013, tzinfo=UTC)
    for price in ("0.01", "3.00", "5.00", "6.00", "9.99", "19.71", "29.37", "96.00", "99999999.99"):
        pieces = column(
            conn,
            "select billing_charge(%s::numeric, %s::timestamptz + n * interval '1 hour', least(%s, 730 - n))"
            " from generate_series(0, 729, %s) as n order by n",
            price,
            start,
            cadence,
            cadence,
        )
        assert sum(pieces) == Decimal(price)
        assert all(piece >= 0 for piece in pieces)


def test_hours_of_a_five_dollar_plan_are_the_expected_cents(conn: Connection) -> None:
    """An hour costs 0.685 cents. From the epoch on, each boundary is rounded half up."""
    hourly = column(
        conn, "select billing_charge(5, 'epoch'::timestamptz + n * interval '1 h', 1) from generate_series(0, 9) n"
    )
    assert [str(each) for each in hourly] == [
        "0.01",
        "0.00",
        "0.01",
        "0.01",
        "0.00",
        "0.01",
        "0.01",
        "0.00",
        "0.01",
        "0.01",
    ]
    assert column(conn, "select billing_charge(3.65, 'epoch', 1)") == [Decimal("0.01")]  # half a cent, up
    assert column(conn, "select billing_charge(3.64, 'epoch', 1)") == [Decimal("0.00")]


@MANY
@given(
    balance=st.one_of(st.decimals("-5", "60", places=2), st.decimals("0", "0.30", places=2)),
    owed=st.lists(
        st.builds(
            Owed,
            st.one_of(
                st.decimals("0", "100", places=2), st.sampled_from([Decimal("7.30"), Decimal("0.00"), Decimal("3.65")])
            ),
            MOMENTS,
            st.integers(1, 400),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_affordable_hours_equal_a_brute_force_search(conn: Connection, balance: Decimal, owed: list[Owed]) -> None:
    assert affordable(conn, balance, owed) == settle(balance, owed)


@pytest.mark.parametrize("cents", [0, 1, 2, 3, 50, 67, 68, 69, 499, 500])
def test_affordable_hours_are_exact_at_each_boundary(conn: Connection, cents: int) -> None:
    """Starts at which the exact cost is half a cent, or just below or above it."""
    balance = Decimal(cents).scaleb(-2)
    for price in ("3.65", "7.30", "5.00", "0.01", "730.00"):
        for microseconds in (-1, 0, 1):
            owed = [Owed(Decimal(price), EPOCH + HOUR + timedelta(microseconds=microseconds), 900)]
            assert affordable(conn, balance, owed) == settle(balance, owed), (price, microseconds)


@MANY
@given(
    cases=st.lists(
        st.tuples(MOMENTS, st.one_of(st.integers(0, 10**13), st.sampled_from([3_600_000_000, 3_599_999_999]))),
        min_size=50,
        max_size=100,
    )
)
def test_hours_are_whole_to_the_microsecond(conn: Connection, cases: list[tuple[datetime, int]]) -> None:
    spans = [(since, since + timedelta(microseconds=length)) for since, length in cases]
    hours = column(
        conn,
        "select billing_whole_hours(since, until)"
        " from unnest(%s::timestamptz[], %s::timestamptz[]) with ordinality as c (since, until, n) order by n",
        [since for since, _ in spans],
        [until for _, until in spans],
    )
    assert hours == [whole_hours(*span) for span in spans]


def test_due_means_a_whole_unbilled_hour(conn: Connection) -> None:
    def due(last_billed_at: datetime | None, created_at: datetime | None) -> bool:
        (is_due,) = column(conn, "select billing_due(%s, %s, %s)", last_billed_at, created_at, NOON)
        return bool(is_due)

    short = timedelta(microseconds=1)
    assert due(NOON - HOUR, None)
    assert not due(NOON - HOUR + short, NOON - 99 * HOUR)
    assert due(None, NOON - HOUR)
    assert not due(None, NOON - HOUR + short)
    assert not due(NOON + HOUR, NOON - 99 * HOUR)
    assert due(None, None), "an instance without any start must be reported"


def test_new_ids_are_version_7_and_in_the_order_of_time(conn: Connection) -> None:
    moments = [
        datetime(1971, 1, 1, tzinfo=UTC),
        NOON,
        NOON + timedelta(microseconds=1),
        NOON + timedelta(microseconds=999),
        NOON + timedelta(milliseconds=1),
        datetime(2999, 1, 1, tzinfo=UTC),
    ]
    ids = column(conn, "select billing_time_ordered_uuid(m) from unnest(%s::timestamptz[]) as m", moments)
    assert ids == sorted(ids)
    assert {each.version for each in ids} == {7}
    assert len(set(column(conn, "select billing_time_ordered_uuid(now()) from generate_series(1, 1000)"))) == 1000


def affordable(conn: Connection, balance: Decimal, owed: Sequence[Owed]) -> list[int]:
    (hours,) = column(
        conn,
        "select billing_affordable_segments(%s, %s::uuid[], %s::numeric[], %s::timestamptz[], %s::bigint[])",
        balance,
        [UUID(int=number) for number in range(len(owed))],
        [each.monthly_price for each in owed],
        [each.start for each in owed],
        [each.hours for each in owed],
    )
    return [int(each) for each in hours]
