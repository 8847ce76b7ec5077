"""A standby ends the lock session of a silent leader and replaces it. A healthy leader is never evicted."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest

from controller.demo.process import ControllerProcess, LogLine
from tests.faults.pooler import PROGRAM, Pooler
from tests.faults.proxy import Proxy
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import LOW_BOUNDS, StartReplica, count_for, freeze, terminate, thaw
from tests.support.servers import Server
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_term
from tests.support.waiting import eventually, through

BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}
#: The low bounds' deadline plus a twentieth, one wait before it sees the last statement, and slack for a busy machine.
LOW_BOUND_SECONDS: Final = 3.0
DEFAULT_BOUND_SECONDS: Final = 8.0
#: The server doesn't end a silent session within a test, so only a standby can.
PATIENT: Final = {**LOW_BOUNDS, "BILLING_SESSION_TIMEOUT_SECONDS": "60"}

ROUNDS: Final = pytest.mark.parametrize(
    ("settings", "bound_seconds", "rounds"),
    [(PATIENT, LOW_BOUND_SECONDS, 1), pytest.param({}, DEFAULT_BOUND_SECONDS, 5, marks=pytest.mark.slow)],
    ids=["low", "defaults"],
)


PING_SECONDS: Final = 2.0


def stand_by(database: str, start: StartReplica, ledger: LedgerProbe, **settings: str) -> ControllerProcess:
    standby = start(database, **settings)
    wait_until_standing_by(ledger, standby)
    return standby


def joined(replica: ControllerProcess) -> LogLine:
    """The last line that says the replica stands by."""
    return replica.events("election.joined")[-1]


@ROUNDS
def test_frozen_leader_is_evicted_and_fenced_when_it_thaws(
    *,
    database: str,
    start: StartReplica,
    ledger: LedgerProbe,
    timings: Timings,
    settings: dict[str, str],
    bound_seconds: float,
    rounds: int,
    seed: int,
) -> None:
    """Repeats at random moments between two pings. Each round's leader is the next round's standby."""
    moments = random.Random(seed)
    leader = start(database, **settings)
    leading = leader.wait_for("leader.elected")
    leader.wait_for("cycle.completed")
    standby = stand_by(database, start, ledger, **settings)
    for _ in range(rounds):
        count_for(leader, moments.uniform(0, PING_SECONDS), "leader.deposed")
        frozen_at = freeze(leader)
        evicted = standby.wait_for("leader.evicted", after=joined(standby), holder=leader.instance)
        elected = standby.wait_for("leader.elected", after=evicted)
        thaw(leader)
        leader.wait_for("election.joined", after=leader.wait_for("leader.deposed", after=leading))
        seconds = seconds_to_next_term(ledger, frozen_at)
        timings.record("leader frozen, evicted by a standby", seconds, ledger.judge(), bound=bound_seconds)
        assert evicted["silent_seconds"] >= float(settings.get("BILLING_LEADER_DEADLINE_SECONDS", 5))
        leader, standby, leading = standby, leader, elected
    terms = [line["term"] for replica in (leader, standby) for line in replica.events("leader.elected")]
    assert sorted(terms) == list(range(min(terms), min(terms) + rounds + 1))


@pytest.mark.runs(5, older=1)
@pytest.mark.timeout(240)
def test_leader_frozen_inside_a_batch_is_evicted_and_its_batch_never_commits(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    url = through(database, proxy.port)
    leader = start(url, **BUSY, **PATIENT)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = stand_by(url, start, ledger, **BUSY, **PATIENT)
        with proxy.hold(f"worker {leader.instance}", starts_with("with costed as materialized"), "after") as hold:
            ledger.add(organizations=3)
            hold.wait()
            frozen_at = freeze(leader)
            standby.wait_for("leader.evicted")
            standby.wait_for("cycle.completed")
        thaw(leader)
        leader.wait_for("cycle.deposed")
        seconds = seconds_to_next_term(ledger, frozen_at)
        # the mint waits until the server ends the open transaction after five seconds
        timings.record("leader frozen inside a batch, evicted", seconds, ledger.judge(), bound=7)
        leader.kill()
        leader = standby


@ROUNDS
def test_unplugged_leader_stops_before_it_is_evicted(
    *,
    server: Server,
    database: str,
    start: StartReplica,
    ledger: LedgerProbe,
    timings: Timings,
    settings: dict[str, str],
    bound_seconds: float,
    rounds: int,
    seed: int,
) -> None:
    """As above, with a proxy for each replica."""
    moments = random.Random(seed)
    with Proxy(("127.0.0.1", server.port)) as first, Proxy(("127.0.0.1", server.port)) as second:
        leader = start(through(database, first.port), **settings)
        leading = leader.wait_for("leader.elected")
        leader.wait_for("cycle.completed")
        standby = stand_by(through(database, second.port), start, ledger, **settings)
        cables = {leader: first, standby: second}
        for _ in range(rounds):
            count_for(leader, moments.uniform(0, PING_SECONDS), "leader.deposed")
            since = datetime.now(UTC)
            cables[leader].stall()
            deposed = leader.wait_for("leader.deposed", after=leading)
            evicted = standby.wait_for("leader.evicted", after=joined(standby), holder=leader.instance)
            elected = standby.wait_for("leader.elected", after=evicted)
            assert deposed.read_at < evicted.read_at
            cables[leader].resume()
            leader.wait_for("election.joined", after=deposed)
            seconds = seconds_to_next_term(ledger, since)
            timings.record("leader unplugged, evicted by a standby", seconds, ledger.judge(), bound=bound_seconds)
            leader, standby, leading = standby, leader, elected


def test_no_leader_is_evicted_if_eviction_is_off(
    database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings
) -> None:
    leader = start(database, **LOW_BOUNDS, BILLING_EVICTION="off")
    leader.wait_for("cycle.completed")
    standby = stand_by(database, start, ledger, **LOW_BOUNDS, BILLING_EVICTION="off")
    frozen_at = freeze(leader)
    standby.wait_for("leader.elected")
    thaw(leader)
    leader.wait_for("leader.deposed")
    session_timeout = float(LOW_BOUNDS["BILLING_SESSION_TIMEOUT_SECONDS"])
    ping_interval = float(LOW_BOUNDS["BILLING_PING_INTERVAL_SECONDS"])
    seconds = seconds_to_next_term(ledger, frozen_at)
    timings.record("leader frozen, eviction off", seconds, ledger.judge(), bound=4)
    assert seconds > session_timeout - ping_interval - 0.2
    assert not standby.events("leader.evicted")


def test_two_standbys_that_evict_at_once_leave_the_next_leader_alone(
    database: str, start: StartReplica, ledger: LedgerProbe
) -> None:
    leader = start(database, **PATIENT)
    leader.wait_for("cycle.completed")
    standbys = [stand_by(database, start, ledger, **PATIENT) for _ in range(3)]
    freeze(leader)
    eventually(lambda: sum(len(each.events("leader.elected")) for each in standbys) == 1, "one of them leads")
    thaw(leader)
    leader.wait_for("election.joined", after=leader.wait_for("leader.deposed"))
    (successor,) = [each for each in standbys if each.events("leader.elected")]
    assert count_for(successor, 2.0, "leader.deposed", "session.failed") == 0
    assert sum(len(each.events("leader.elected")) for each in standbys) == 1
    ledger.judge()


@pytest.mark.slow
def test_leader_with_a_longer_deadline_is_not_evicted_by_the_standbys(
    database: str, start: StartReplica, ledger: LedgerProbe
) -> None:
    """As during a rollout that changes the bounds."""
    slow = {
        "BILLING_PING_INTERVAL_SECONDS": "4",
        "BILLING_LEADER_DEADLINE_SECONDS": "8",
        "BILLING_SESSION_TIMEOUT_SECONDS": "10",
    }
    leader = start(database, **slow)
    leader.wait_for("cycle.completed")
    standby = stand_by(database, start, ledger, **LOW_BOUNDS)
    assert count_for(standby, 6.0, "leader.evicted", "leader.elected") == 0
    assert not leader.events("leader.deposed")


@contextmanager
def every_core_busy() -> Iterator[None]:
    """Keeps every core busy with two processes."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_compute, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for process in busy:
        process.start()
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


def _compute() -> None:
    while True:
        sum(range(10_000))


@pytest.mark.runs(20, older=0)
@pytest.mark.timeout(600)
def test_healthy_leader_is_never_evicted_with_every_core_at_its_limit(
    database: str, start: StartReplica, ledger: LedgerProbe, runs: int
) -> None:
    """The deadline is one second."""
    with every_core_busy():
        for _ in range(runs):
            leader = start(database, **BUSY, **LOW_BOUNDS)
            leader.wait_for("leader.elected")
            standby = start(database, **BUSY, **LOW_BOUNDS)
            standby.wait_for("election.joined")
            began = time.monotonic()
            while time.monotonic() < began + 4:
                ledger.add(organizations=2)
                eventually(lambda: ledger.all_billed, "everything is billed")
            assert not standby.events("leader.evicted"), leader.tail()
            for replica in (standby, leader):
                assert terminate(replica) == 0
                replica.remove()
    ledger.judge()


@pytest.fixture
def role(conn: psycopg.Connection[Any], database: str) -> Iterator[str]:
    """The URL for another role, which may bill and nothing else."""
    conn.execute("create role other_billing login")
    conn.execute("grant all on all tables in schema public to other_billing")
    conn.execute("grant all on all sequences in schema public to other_billing")
    yield database.replace("//postgres@", "//other_billing@")
    conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'other_billing'")
    conn.execute("drop owned by other_billing")
    conn.execute("drop role other_billing")


@pytest.mark.parametrize("superuser_leads", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_session_of_another_role_is_left_to_the_server(
    database: str, role: str, start: StartReplica, ledger: LedgerProbe, *, superuser_leads: bool
) -> None:
    first, second = (database, role) if superuser_leads else (role, database)
    leader = start(first, **LOW_BOUNDS)
    leader.wait_for("cycle.completed")
    standby = stand_by(second, start, ledger, **LOW_BOUNDS)
    standby.wait_for("eviction.excluded")
    freeze(leader)
    standby.wait_for("leader.elected")
    assert not standby.events("leader.evicted")
    assert len(standby.events("eviction.excluded")) == 1
    thaw(leader)
    leader.wait_for("leader.deposed")
    ledger.judge()


@pytest.mark.runs(5, older=1)
@pytest.mark.skipif(PROGRAM is None, reason="no PgBouncer here: apt-get install pgbouncer")
def test_leader_behind_a_session_pooler_is_evicted_too(
    *, server: Server, database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    fault = "leader frozen behind a session pooler, evicted"
    with Pooler(server, "session") as pooler:
        url = through(database, pooler.port)
        leader = start(url, **PATIENT)
        leader.wait_for("cycle.completed")
        for _ in range(runs):
            standby = stand_by(url, start, ledger, **PATIENT)
            frozen_at = freeze(leader)
            standby.wait_for("leader.elected", after=standby.wait_for("leader.evicted"))
            thaw(leader)
            leader.wait_for("leader.deposed")
            seconds = seconds_to_next_term(ledger, frozen_at)
            timings.record(fault, seconds, ledger.judge(), bound=LOW_BOUND_SECONDS)
            leader.kill()
            leader = standby
