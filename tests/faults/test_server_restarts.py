"""The server goes away and comes back: billing goes on by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import psycopg
import pytest

from controller.demo.server import Server, StopMode
from tests.faults.books import Books
from tests.faults.conftest import StartReplica
from tests.faults.proxy import Proxy
from tests.faults.test_sessions_lost import starts_with
from tests.faults.timings import Timings, seconds_to_next_term
from tests.faults.waiting import eventually, through

BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}
BOUND_SECONDS: Final = 3.0


@pytest.fixture
def own_books(own_database: str) -> Books:
    with psycopg.connect(own_database, autocommit=True) as conn:
        made = Books(conn)
        made.add()
    return made


@contextmanager
def reconnected(books: Books, url: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as conn:
        books.conn = conn
        yield


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_idle_replicas_elect_again_after_a_restart(
    *, own_server: Server, own_database: str, start: StartReplica, own_books: Books, timings: Timings, mode: StopMode
) -> None:
    replicas = [start(own_database), start(own_database)]
    eventually(lambda: any(each.events("cycle.completed") for each in replicas), "the first cycle")
    own_server.stop(mode)
    eventually(lambda: all(each.events("session.failed") for each in replicas), "both have noticed")
    own_server.start()
    since = datetime.now(UTC)
    eventually(lambda: sum(len(each.events("leader.elected")) for each in replicas) == 2, "a new leader")
    with reconnected(own_books, own_database):
        seconds = seconds_to_next_term(own_books, since)
        assert timings.record(f"server restarted ({mode}) while idle", seconds, own_books.judge()) < BOUND_SECONDS
    for each in replicas:
        assert len(each.events("session.failed")) == 1, each.tail()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("statement", ["with due as materialized", "COMMIT"])
def test_cycle_cut_short_by_a_restart_is_finished_after_it(
    *,
    own_server: Server,
    own_database: str,
    own_proxy: Proxy,
    start: StartReplica,
    own_books: Books,
    timings: Timings,
    mode: StopMode,
    statement: str,
) -> None:
    with own_proxy.hold(" worker ", starts_with(statement), "after") as hold:
        replica = start(through(own_database, own_proxy.port), **BUSY)
        hold.wait()
        own_server.stop(mode)
    own_server.start()
    since = datetime.now(UTC)
    replica.wait_until(lambda line: line.event == "leader.elected" and line["term"] > 1, "election after the restart")
    with reconnected(own_books, own_database):
        eventually(lambda: own_books.all_billed, "the rest of the cycle")
        finished = replica.wait_for("cycle.completed")
        replica.wait_for("cycle.completed", after=finished)
        seconds = seconds_to_next_term(own_books, since)
        assert timings.record(f"server restarted ({mode}) in a cycle", seconds, own_books.judge()) < BOUND_SECONDS


def test_replica_started_before_its_server_says_so_once_and_leads_when_it_is_there(
    own_server: Server, own_database: str, start: StartReplica, own_books: Books, timings: Timings
) -> None:
    own_server.stop()
    replica = start(own_database)
    told = replica.wait_for("session.failed")
    assert "DATABASE_URL" in told["error"]
    assert replica.count_for(3.0, "session.failed") == 0
    own_server.start()
    since = datetime.now(UTC)
    replica.wait_for("cycle.completed")
    with reconnected(own_books, own_database):
        seconds = seconds_to_next_term(own_books, since)
        assert timings.record("server down at start-up", seconds, own_books.judge()) < BOUND_SECONDS


def test_replica_without_a_server_stops_at_once(own_server: Server, own_database: str, start: StartReplica) -> None:
    own_server.stop()
    try:
        replica = start(own_database)
        replica.wait_for("session.failed")
        assert replica.terminate(within=5) == 0
    finally:
        own_server.start()
