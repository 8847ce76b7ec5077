"""The primary is lost and its standby promoted. Synchronous replication loses nothing. Asynchronous replication loses
whole transactions; their hours are billed again, and the books agree with each other.

The replicas use one URL with two hosts. Each run's promoted server is the next run's primary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import psycopg
import pytest

from controller.demo.process import ControllerProcess, LogLine
from controller.demo.server import Installation
from tests.faults.proxy import Proxy
from tests.faults.standby import StandbyServer
from tests.faults.test_server_restarts import reconnected
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe, assert_audit_clean
from tests.support.processes import BUSY, StartReplica, terminate
from tests.support.servers import Server, create_template
from tests.support.sessions import end_sessions
from tests.support.timings import Timings, seconds_to_next_term
from tests.support.waiting import eventually

#: The promotion, and a retry after 0.5 to 1.5 s.
PROMOTED_SECONDS: Final = 4.0
DATABASE: Final = "billed"


@dataclass
class Pair:
    """A primary and its standby behind two proxies with fixed ports. Their roles change."""

    primary: Server
    stack: ExitStack
    doors: list[Proxy] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _ in range(2):
            self.doors.append(self.stack.enter_context(Proxy(("127.0.0.1", self.primary.port))))
        self.doors[1].refuse()

    @property
    def url(self) -> str:
        """A URL with both hosts that connects to the writable one."""
        hosts = ",".join(f"127.0.0.1:{door.port}" for door in self.doors)
        return f"postgresql://postgres@{hosts}/{DATABASE}?target_session_attrs=read-write"

    @property
    def front(self) -> Proxy:
        """The proxy in front of the primary."""
        return self.doors[0]

    def add_standby(self) -> StandbyServer:
        """Starts a standby behind the other proxy."""
        standby = StandbyServer(self.primary)
        self.stack.enter_context(standby)
        self.doors[1].target = ("127.0.0.1", standby.port)
        self.doors[1].accept()
        return standby

    def lose_primary(self) -> None:
        """Crashes the primary for good."""
        self.primary.stop("immediate")
        self.front.refuse()

    def promote(self, standby: StandbyServer) -> None:
        """Promotes the standby. It is the primary from now on."""
        standby.promote()
        self.primary.remove()
        self.primary = standby
        self.doors.reverse()


@pytest.fixture
def pair(fault_installation: Installation) -> Iterator[Pair]:
    with ExitStack() as stack:
        primary = stack.enter_context(Server(fault_installation))
        primary.create_database(DATABASE, create_template(primary))
        yield Pair(primary, stack)


@pytest.fixture
def ledger(pair: Pair) -> LedgerProbe:
    with psycopg.connect(pair.primary.url(DATABASE), autocommit=True) as conn:
        made = LedgerProbe(conn)
        made.add()
    return made


@pytest.mark.runs(20, older=2)
@pytest.mark.timeout(300)
def test_promoted_synchronous_standby_loses_nothing(
    *, pair: Pair, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    replicas = [start(pair.url, **BUSY), start(pair.url, **BUSY)]
    for run in range(1, runs + 1):
        _wait_for_cycle(replicas, pair, ledger)
        standby = pair.add_standby()
        standby.replicate_synchronously()
        with pair.front.hold(" worker ", starts_with("COMMIT"), "after") as hold:
            with reconnected(ledger, pair.primary.url(DATABASE)):
                ledger.add(organizations=3)
                hold.wait()
                committed = ledger.one("select count(*) from billing_batches")
                assert ledger.one("select term from billing_leadership") == run
            pair.lose_primary()
        since = datetime.now(UTC)
        pair.promote(standby)
        with reconnected(ledger, pair.primary.url(DATABASE)):
            assert ledger.one("select count(*) from billing_batches") >= committed
            eventually(lambda: ledger.all_billed, "the rest of the cycle")
            assert ledger.one("select max(term) from billing_terms") == run + 1
            seconds = seconds_to_next_term(ledger, since)
            timings.record("primary lost: synchronous standby", seconds, ledger.judge(), bound=PROMOTED_SECONDS)


@pytest.mark.runs(20, short=1, older=2)
@pytest.mark.timeout(300)
def test_cycle_lost_with_its_primary_is_billed_again_and_the_ledger_agrees(
    *, pair: Pair, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    """The log mentions a cycle that the database lacks. No audit can find this, because the database is consistent."""
    replicas = [start(pair.url, **BUSY), start(pair.url, **BUSY)]
    for _ in range(runs):
        _wait_for_cycle(replicas, pair, ledger)
        standby = pair.add_standby()
        told_before = _told(replicas)
        with pair.front.hold(" worker ", starts_with("BEGIN")) as hold:
            with reconnected(ledger, pair.primary.url(DATABASE)):
                ledger.add(organizations=3)
                hold.wait()
                # these hours must be due after the last completed cycle
                ledger.conn.execute(
                    "update billing_runs set started_at = started_at - interval '6 hours' where outcome <> 'running'"
                )
            standby.wait_until_caught_up()
            standby.link.stall()
        with reconnected(ledger, pair.primary.url(DATABASE)):
            eventually(lambda: len(_told(replicas)) > len(told_before), "a cycle of nine instances has ended")  # noqa: B023
            (told,) = (line for line in _told(replicas) if line not in told_before)
            assert ledger.rows("select from billing_runs where id = %s and instances = 9", told["cycle"])
        for door in pair.doors:
            door.refuse()  # no cycle must run before the test has looked
        pair.lose_primary()
        for door in pair.doors:
            door.cut()
        pair.promote(standby)
        with reconnected(ledger, pair.primary.url(DATABASE)):
            assert ledger.one("select count(*) from vps_instances where last_billed_at is null") == 9, (
                "it vanished whole"
            )
            assert not ledger.rows("select from billing_runs where id = %s and instances = 9", told["cycle"])
            assert ledger.verdict().hours_lost == 9 * 5
            assert_audit_clean(ledger.conn)
            since = datetime.now(UTC)
            pair.front.accept()
            eventually(lambda: ledger.all_billed, "the hours are billed again")
            seconds = seconds_to_next_term(ledger, since)
            timings.record("primary lost: asynchronous standby", seconds, ledger.judge(), bound=PROMOTED_SECONDS)


@pytest.mark.slow
def test_leader_of_the_old_primary_writes_nothing_under_a_term_that_another_holds(
    pair: Pair, start: StartReplica, ledger: LedgerProbe
) -> None:
    """The worst case of asynchronous replication: the old primary still runs. Its leader holds the lock there, but its
    other sessions reach the promoted server, where another replica has the same term.
    """
    left_behind = start(pair.url, **BUSY)
    first = left_behind.wait_for("leader.elected")
    left_behind.wait_for("cycle.completed")
    standby = pair.add_standby()
    standby.wait_until_caught_up()
    standby.link.stall()
    with reconnected(ledger, pair.primary.url(DATABASE)):
        end_sessions(ledger, "elector", left_behind)
        term = left_behind.wait_for("leader.elected", after=first)["term"]
    standby.promote()
    namesake = start(standby.url(DATABASE), **BUSY)
    assert namesake.wait_for("leader.elected")["term"] == term == 2
    pair.front.refuse()  # the old primary keeps its connections and accepts no new ones
    with reconnected(ledger, standby.url(DATABASE)):
        ledger.add(organizations=6)
        left_behind.wait_for("leader.contradicted")
        left_behind.wait_for("leader.resigned")
        eventually(lambda: ledger.all_billed, "the leader of this server bills")
        assert (
            ledger.one("select string_agg(distinct holder, ' ') from billing_runs where term = 2") == namesake.instance
        )
        ledger.judge()
        namesake.kill()
        ledger.add(organizations=6)
        eventually(lambda: ledger.all_billed, "the old primary's leader now leads on this server")
        ledger.judge()
    assert terminate(left_behind) == 0


def _wait_for_cycle(replicas: list[ControllerProcess], pair: Pair, ledger: LedgerProbe) -> None:
    with reconnected(ledger, pair.primary.url(DATABASE)):
        eventually(lambda: ledger.all_billed, "everything is billed")
    eventually(lambda: any(each.events("cycle.completed") for each in replicas), "a cycle's end")


def _told(replicas: list[ControllerProcess]) -> list[LogLine]:
    """The log lines of cycles with nine instances."""
    done = [line for each in replicas for line in each.events("cycle.completed")]
    return [line for line in done if line["instances"] == 9]
