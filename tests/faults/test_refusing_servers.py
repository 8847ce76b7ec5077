"""The server runs and refuses: its disk is full, it has no session left, or it is a standby."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from controller.demo.server import Installation
from tests.faults.disk import Disk, own, small_disk
from tests.faults.proxy import Proxy
from tests.faults.test_server_restarts import reconnected
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, StartReplica
from tests.support.servers import Server, create_template, temporary_database
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually, through

#: A failed cycle is retried after 5 s.
BACK_OFF_SECONDS: Final = 7.0
#: A lost server is retried after 0.5 to 1.5 s.
RETRY_SECONDS: Final = 3.0
#: Enough organizations that their rows need new pages.
MANY: Final = 60


@pytest.fixture
def disk() -> Iterator[Disk]:
    with small_disk(96) as mounted:
        yield mounted


@pytest.mark.runs(5, older=1)
def test_full_disk_fails_cycles_until_there_is_room(
    *, server: Server, template: str, disk: Disk, start: StartReplica, timings: Timings, runs: int
) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(("127.0.0.1", server.port)))
        administrator = stack.enter_context(psycopg.connect(server.url(), autocommit=True))
        administrator.execute(f"create tablespace small location '{disk.path}'".encode())
        stack.callback(administrator.execute, b"drop tablespace small")
        url = stack.enter_context(temporary_database(server, template))
        name = url.rpartition("/")[2]
        administrator.execute(f'alter database "{name}" set tablespace small'.encode())
        ledger = LedgerProbe(stack.enter_context(psycopg.connect(url, autocommit=True)))
        ledger.add()
        leader = start(through(url, proxy.port), BILLING_INTERVAL_MINUTES="0.003")
        last, told = leader.wait_for("cycle.completed"), 0
        for _ in range(runs):
            with proxy.hold(" worker ", starts_with("BEGIN")) as hold:
                ledger.add_between_cycles(MANY)
                hold.wait()
                disk.fill()
            last = leader.wait_for("cycle.failed", after=last)
            assert "No space left on device" in last["error"]
            told, told_before = len(leader.events("customers.affected")), told
            # a few organizations may fit into pages that have room; then the others' failures count as their own
            assert told == told_before or last["instances"] > 0, leader.tail()
            freed_at = datetime.now(UTC)
            disk.free()
            eventually(lambda: ledger.all_billed, "everything is billed")
            seconds = seconds_to_next_charge(ledger, freed_at)
            timings.record("disk full: the data's", seconds, ledger.judge(), bound=BACK_OFF_SECONDS)
            last = leader.wait_for("cycle.completed", after=last)
        assert not leader.events("leader.deposed")


@pytest.mark.runs(5, older=1)
@pytest.mark.timeout(180)
def test_full_disk_of_the_write_ahead_log_costs_nothing(
    *, fault_installation: Installation, disk: Disk, start: StartReplica, timings: Timings, runs: int
) -> None:
    """The server panics, and can't recover until there is room."""
    with Server(fault_installation, {"max_wal_size": "32MB", "min_wal_size": "32MB"}) as server, ExitStack() as stack:
        url = server.create_database("billed", create_template(server))
        server.stop()
        log = server.folder / "data" / "pg_wal"
        shutil.copytree(log, disk.path / "pg_wal")
        shutil.rmtree(log)
        log.symlink_to(disk.path / "pg_wal")
        own(server._account, disk.path)
        server.start()
        proxy = stack.enter_context(Proxy(("127.0.0.1", server.port)))
        with psycopg.connect(url, autocommit=True) as conn:
            ledger = LedgerProbe(conn)
            ledger.add()
        leader = start(through(url, proxy.port), **BUSY)
        elected = None
        for _ in range(runs):
            elected = leader.wait_for("leader.elected", after=elected)
            leader.wait_for("cycle.completed", after=elected)
            with proxy.hold(" worker ", starts_with("COMMIT")) as hold:
                with reconnected(ledger, url):
                    ledger.add(organizations=3)
                hold.wait()
                disk.fill()
                _write_until_it_panics(url)
            eventually(lambda: not server.running, "the server has given up")
            disk.free()
            server.start()
            since = datetime.now(UTC)
            with reconnected(ledger, url):
                eventually(lambda: ledger.all_billed, "everything is billed")
                seconds = seconds_to_next_term(ledger, since)
                timings.record("disk full: the log's", seconds, ledger.judge(), bound=RETRY_SECONDS)


@pytest.mark.runs(5, older=1)
def test_leader_of_a_server_without_free_sessions_bills_once_one_is_free(
    *, fault_installation: Installation, start: StartReplica, timings: Timings, runs: int
) -> None:
    with Server(fault_installation, {"max_connections": "14", "superuser_reserved_connections": "0"}) as server:
        url = server.create_database("billed", create_template(server))
        with psycopg.connect(url, autocommit=True) as conn:
            ledger = LedgerProbe(conn)
            ledger.add()
            leader = start(url, **BUSY)
            leader.wait_for("cycle.completed")
            standby = start(url, **BUSY)
            wait_until_standing_by(ledger, standby)
            for _ in range(runs):
                said = _refusals(leader)
                with ExitStack() as others:
                    eventually(lambda: _is_full(server, others) and _refusals(leader) > said, "a cycle fails")  # noqa: B023
                    ledger.add(organizations=3)
                    freed_at = datetime.now(UTC)
                eventually(lambda: ledger.all_billed, "everything is billed")
                seconds = seconds_to_next_charge(ledger, freed_at)
                timings.record("too many connections", seconds, ledger.judge(), bound=BACK_OFF_SECONDS)
            assert not leader.events("leader.deposed")
            assert not standby.events("leader.elected")


@pytest.mark.runs(20, older=2)
@pytest.mark.timeout(240)
def test_server_that_becomes_a_standby_is_left_alone_until_it_is_promoted(
    *, own_server: Server, own_database: str, start: StartReplica, timings: Timings, runs: int
) -> None:
    with psycopg.connect(own_database, autocommit=True) as conn:
        ledger = LedgerProbe(conn)
        ledger.add()
    replicas = [start(own_database, **BUSY), start(own_database, **BUSY)]
    for number in range(runs):
        eventually(lambda: all(map(_takes_part, replicas)), "one of them leads, the other stands by")
        with reconnected(ledger, own_database):
            eventually(lambda: ledger.all_billed, "everything is billed")
            ledger.add(organizations=3)
        own_server.stop()
        (own_server.folder / "data" / "standby.signal").touch()
        said = [len(each.events("session.failed")) for each in replicas]
        own_server.start()
        for each, before in zip(replicas, said, strict=True):
            each.wait_until(
                lambda line: "recovery" in str(line.fields.get("error")),
                "refusal to lead in recovery",
                each.events("session.failed")[before - 1] if before else None,
            )
        with psycopg.connect(own_server.url(), autocommit=True) as conn:
            since = datetime.now(UTC)
            assert conn.execute("select pg_promote(true, 20)").fetchone() == (True,)
        eventually(lambda: len(_elections(replicas)) == number + 2, "one of them leads again")  # noqa: B023 - now
        with reconnected(ledger, own_database):
            eventually(lambda: ledger.all_billed, "everything is billed")
            seconds = seconds_to_next_term(ledger, since)
            timings.record("server is a standby for a while", seconds, ledger.judge(), bound=RETRY_SECONDS)


def _elections(replicas: list[ControllerProcess]) -> list[int]:
    return [line["term"] for each in replicas for line in each.events("leader.elected")]


def _takes_part(replica: ControllerProcess) -> bool:
    """True if the replica has joined the election since it last lost its session."""
    events = replica.events("session.failed", "leader.deposed", "election.joined", "leader.elected")
    return bool(events) and events[-1].event in {"election.joined", "leader.elected"}


def _refusals(replica: ControllerProcess) -> int:
    """How often the replica logged that no session was left."""
    return sum("too many" in str(line.fields.get("error")) for line in replica.events())


def _is_full(server: Server, others: ExitStack) -> bool:
    """Opens sessions. Returns True once the server has none left."""
    try:
        while True:
            others.enter_context(psycopg.connect(server.url()))
    except psycopg.OperationalError:
        return True


def _write_until_it_panics(url: str) -> None:
    waste = b"select pg_logical_emit_message(false, 'waste', repeat('-', 1000000)) from generate_series(1, 200)"
    with pytest.raises(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as conn:
        conn.execute(waste)
