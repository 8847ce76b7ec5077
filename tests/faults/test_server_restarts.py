"""The server goes away and comes back. Billing resumes without help."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Final

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, StartReplica, count_for, terminate
from tests.support.servers import Server, StopMode
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually, through

#: A replica retries a lost server after 0.5 to 1.5 s, then mints a term and charges a batch.
BOUND_SECONDS: Final = 3.0
#: A server that restarts refuses with several messages; each is logged once.
MOST_REASONS: Final = 4


@pytest.fixture
def own_ledger(own_database: str) -> LedgerProbe:
    with psycopg.connect(own_database, autocommit=True) as conn:
        made = LedgerProbe(conn)
        made.add()
    return made


@contextmanager
def reconnected(ledger: LedgerProbe, url: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as conn:
        ledger.conn = conn
        yield


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_idle_replicas_elect_again_after_a_restart(
    *,
    own_server: Server,
    own_database: str,
    start: StartReplica,
    own_ledger: LedgerProbe,
    timings: Timings,
    mode: StopMode,
) -> None:
    replicas = [start(own_database), start(own_database)]
    eventually(lambda: any(each.events("cycle.completed") for each in replicas), "the first cycle")
    own_server.stop(mode)
    eventually(lambda: all(each.events("session.failed") for each in replicas), "both have noticed")
    own_server.start()
    since = datetime.now(UTC)
    eventually(lambda: sum(len(each.events("leader.elected")) for each in replicas) == 2, "a new leader")
    with reconnected(own_ledger, own_database):
        seconds = seconds_to_next_term(own_ledger, since)
        timings.record(f"server restarted: {mode}", seconds, own_ledger.judge(), bound=BOUND_SECONDS)
    for each in replicas:
        assert len(each.events("session.failed")) == 1, each.tail()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.runs(20, short=2)
@pytest.mark.timeout(240)
def test_cycle_cut_short_by_a_restart_is_finished_after_it(
    *,
    own_server: Server,
    own_database: str,
    own_proxy: Proxy,
    start: StartReplica,
    own_ledger: LedgerProbe,
    timings: Timings,
    mode: StopMode,
    runs: int,
) -> None:
    replica = start(through(own_database, own_proxy.port), **BUSY)
    elected = replica.wait_for("leader.elected")
    for statement in islice(cycle(["COMMIT", "with costed as materialized"]), runs):
        replica.wait_for("cycle.completed", after=elected)
        with own_proxy.hold(" worker ", starts_with(statement), "after") as hold:
            with reconnected(own_ledger, own_database):
                own_ledger.add(organizations=3)
            hold.wait()
            own_server.stop(mode)
        own_server.start()
        since = datetime.now(UTC)
        elected = replica.wait_for("leader.elected", after=elected)
        with reconnected(own_ledger, own_database):
            eventually(lambda: own_ledger.all_billed, "the rest of the cycle")
            replica.wait_for("cycle.completed", after=replica.wait_for("cycle.completed", after=elected))
            seconds = seconds_to_next_term(own_ledger, since)
            timings.record(f"server restarted: {mode}", seconds, own_ledger.judge(), bound=BOUND_SECONDS)


@pytest.mark.runs(6, older=0)
@pytest.mark.timeout(300)
def test_server_away_for_a_minute_in_the_middle_of_a_cycle_and_as_another_replica_starts(
    *,
    own_server: Server,
    own_database: str,
    own_proxy: Proxy,
    start: StartReplica,
    own_ledger: LedgerProbe,
    timings: Timings,
    runs: int,
) -> None:
    url = through(own_database, own_proxy.port)
    leader = start(url, **BUSY)
    leader.wait_for("cycle.completed")
    for seconds_away in [*[2.0] * (runs - 1), 60.0]:
        with own_proxy.hold(f"worker {leader.instance}", starts_with("with costed as"), "after") as hold:
            with reconnected(own_ledger, own_database):
                own_ledger.add(organizations=3)
            hold.wait()
            own_server.stop("immediate")
            own_proxy.refuse()  # the server refuses connections too
        newcomer = start(url, **BUSY)
        newcomer.wait_for("session.failed")
        count_for(newcomer, seconds_away)
        own_server.start()
        own_proxy.accept()
        since, began = datetime.now(UTC), time.monotonic()
        joined = newcomer.wait_until(lambda line: line.event in {"election.joined", "leader.elected"}, "its part")
        reasons = [line["error"] for line in newcomer.events("session.failed")]
        assert len(reasons) == len(set(reasons)) <= MOST_REASONS, reasons
        with reconnected(own_ledger, own_database):
            eventually(lambda: own_ledger.all_billed, "the rest of the cycle")
            seconds = seconds_to_next_charge(own_ledger, since)
            verdict = own_ledger.judge()
        timings.record("server away: in the middle of a cycle", seconds, verdict, bound=BOUND_SECONDS)
        timings.record("server away: at start-up", joined.read_at - began, verdict, bound=BOUND_SECONDS)
        leader.kill()
        leader = newcomer
        leader.wait_for("cycle.completed")


def test_replica_started_before_its_server_warns_once_and_leads_once_the_server_runs(
    own_server: Server, own_database: str, start: StartReplica, own_ledger: LedgerProbe, timings: Timings
) -> None:
    own_server.stop()
    replica = start(own_database)
    told = replica.wait_for("session.failed")
    assert "DATABASE_URL" in told["error"]
    assert count_for(replica, 3.0, "session.failed") == 0
    own_server.start()
    since = datetime.now(UTC)
    replica.wait_for("cycle.completed")
    with reconnected(own_ledger, own_database):
        seconds = seconds_to_next_term(own_ledger, since)
        timings.record("server away: at start-up", seconds, own_ledger.judge(), bound=BOUND_SECONDS)


def test_replica_without_a_server_stops_at_once(own_server: Server, own_database: str, start: StartReplica) -> None:
    own_server.stop()
    try:
        replica = start(own_database)
        replica.wait_for("session.failed")
        assert terminate(replica, within=5) == 0
    finally:
        own_server.start()
