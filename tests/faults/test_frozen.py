"""The leader is stopped with SIGSTOP: the server ends its lock session, and what it left open can't commit any more.

No standby evicts it here; that is test_evicted.py.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.faults.books import Books
from tests.faults.conftest import StartReplica
from tests.faults.proxy import Proxy
from tests.faults.replica import LOW_BOUNDS
from tests.faults.standing import wait_until_standing_by
from tests.faults.test_sessions_lost import starts_with
from tests.faults.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.faults.waiting import through

BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}
UNEVICTED: Final = {"BILLING_EVICTION": "off"}
#: Of the low bounds' server session timeout, a poll, and the five seconds after which an open transaction is ended.
LOW_BOUND_SECONDS: Final = 7.0
DEFAULT_BOUND_SECONDS: Final = 12.0


@pytest.mark.parametrize(
    ("settings", "bound_seconds"),
    [
        ({**LOW_BOUNDS, **UNEVICTED}, LOW_BOUND_SECONDS),
        pytest.param(UNEVICTED, DEFAULT_BOUND_SECONDS, marks=pytest.mark.slow),
    ],
    ids=["low", "defaults"],
)
@pytest.mark.parametrize("statement", ["with due as materialized", pytest.param("COMMIT", marks=pytest.mark.slow)])
def test_leader_frozen_inside_a_batch_is_replaced_and_cannot_commit_when_it_goes_on(
    *,
    database: str,
    proxy: Proxy,
    start: StartReplica,
    books: Books,
    timings: Timings,
    settings: dict[str, str],
    bound_seconds: float,
    statement: str,
) -> None:
    leader = start(through(database, proxy.port), **BUSY, **settings)
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY, **settings)
    wait_until_standing_by(books, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with(statement), "after") as hold:
        books.add(organizations=3)
        hold.wait()
        frozen_at = leader.freeze()
        term = standby.wait_for("leader.elected")["term"]
        standby.wait_for("cycle.completed")
    seconds = seconds_to_next_term(books, frozen_at)
    leader.thaw()
    leader.wait_for("leader.deposed")
    leader.wait_for("cycle.deposed")
    leader.wait_for("election.joined", after=leader.events("leader.deposed")[0])
    assert not [line for line in leader.events("leader.elected") if line["term"] >= term]
    assert timings.record("frozen inside a batch", seconds, books.judge()) < bound_seconds
    assert seconds_to_next_charge(books, frozen_at, term - 1) < bound_seconds + 1


@pytest.mark.parametrize(
    ("settings", "bound_seconds"),
    [
        ({**LOW_BOUNDS, **UNEVICTED}, 4.0),
        pytest.param(UNEVICTED, DEFAULT_BOUND_SECONDS, marks=pytest.mark.slow),
    ],
    ids=["low", "defaults"],
)
def test_idle_leader_frozen_is_replaced_and_knows_it_when_it_goes_on(
    *,
    database: str,
    start: StartReplica,
    books: Books,
    timings: Timings,
    settings: dict[str, str],
    bound_seconds: float,
) -> None:
    leader = start(database, **settings)
    leader.wait_for("cycle.completed")
    standby = start(database, **settings)
    wait_until_standing_by(books, standby)
    frozen_at = leader.freeze()
    standby.wait_for("leader.elected")
    leader.thaw()
    leader.wait_for("leader.deposed")
    seconds = seconds_to_next_term(books, frozen_at)
    assert timings.record("frozen while idle", seconds, books.judge()) < bound_seconds


def test_leader_frozen_for_less_than_its_deadline_goes_on_leading(
    database: str, start: StartReplica, books: Books
) -> None:
    leader = start(database, **BUSY)
    leader.wait_for("cycle.completed")
    leader.freeze()
    books.add(organizations=3)
    leader.thaw()
    leader.wait_until(lambda line: line.fields.get("instances") == 9, "the cycle of nine")
    assert not leader.events("leader.deposed")
    books.judge()
