"""No packet passes between leader and server, and neither gets a FIN or RST. Each stops by its own bound.

No standby evicts the leader where the server's bound is measured; test_evicted.py covers eviction.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

import pytest

from tests.faults.proxy import Proxy, Way
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import LOW_BOUNDS, StartReplica
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually, through

BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}
UNEVICTED: Final = {"BILLING_EVICTION": "off"}
LOW_DEADLINE_SECONDS: Final = 1.0
#: Slack for a thread to react on a busy machine.
SLACK_SECONDS: Final = 0.5


@pytest.mark.parametrize(
    "ways",
    [
        ("up", "down"),
        pytest.param(("up",), marks=pytest.mark.slow),
        pytest.param(("down",), marks=pytest.mark.slow),
    ],
    ids=["both ways", "up", "down"],
)
def test_unplugged_leader_stops_by_its_deadline_and_before_its_successor_starts(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, ways: tuple[Way, ...]
) -> None:
    leader = start(through(database, proxy.port), **LOW_BOUNDS, **UNEVICTED)
    leader.wait_for("cycle.completed")
    standby = start(database, **LOW_BOUNDS, **UNEVICTED)
    wait_until_standing_by(ledger, standby)
    since, began = datetime.now(UTC), time.monotonic()
    proxy.stall(*ways)
    deposed = leader.wait_for("leader.deposed")
    elected = standby.wait_for("leader.elected")
    assert deposed.read_at - began < LOW_DEADLINE_SECONDS + SLACK_SECONDS
    assert deposed.read_at < elected.read_at
    seconds = seconds_to_next_term(ledger, since)
    timings.record("leader unplugged, no eviction, low bounds", seconds, ledger.judge(), bound=4)
    proxy.resume()


@pytest.mark.runs(5, older=1)
@pytest.mark.timeout(240)
def test_leader_unplugged_with_the_default_bounds_is_replaced_in_twelve_seconds(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    for _ in range(runs):
        leader = start(through(database, proxy.port), **UNEVICTED)
        leader.wait_for("leader.elected")
        eventually(lambda: ledger.all_billed, "everything due is billed")
        standby = start(database, **UNEVICTED)
        wait_until_standing_by(ledger, standby)
        since, began = datetime.now(UTC), time.monotonic()
        proxy.stall()
        deposed = leader.wait_for("leader.deposed")
        standby.wait_for("leader.elected")
        assert deposed.read_at - began < 6 + SLACK_SECONDS
        timings.record("leader unplugged, no eviction", seconds_to_next_term(ledger, since), ledger.judge(), bound=12)
        proxy.resume()
        for replica in (leader, standby):
            replica.remove()


@pytest.mark.parametrize("statement", [pytest.param("with costed as materialized", marks=pytest.mark.slow), "COMMIT"])
def test_leader_unplugged_inside_a_batch_loses_and_doubles_nothing(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, statement: str
) -> None:
    leader = start(through(database, proxy.port), **BUSY, **LOW_BOUNDS, **UNEVICTED)
    term = leader.wait_for("leader.elected")["term"]
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY, **LOW_BOUNDS, **UNEVICTED)
    wait_until_standing_by(ledger, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with(statement)) as hold:
        ledger.add(organizations=3)
        hold.wait()
        since = datetime.now(UTC)
        proxy.stall()
    standby.wait_for("cycle.completed")
    seconds = seconds_to_next_charge(ledger, since, term)
    proxy.resume()  # delayed packets arrive, the batch's next statement among them
    leader.wait_for("election.joined", after=leader.wait_for("leader.deposed"))
    timings.record("leader unplugged inside a batch, no eviction, low bounds", seconds, ledger.judge(), bound=8)


def test_replica_with_silent_old_connections_bills_again_over_new_ones(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    """A proxy or sidecar may keep dead connections open forever: it acknowledges packets and nothing answers."""
    replica = start(through(database, proxy.port), **BUSY, **LOW_BOUNDS)
    replica.wait_for("cycle.completed")
    with proxy.hold(f"cycle {replica.instance}", starts_with("with due as")) as hold:
        ledger.add(organizations=3)
        hold.wait()
        proxy.stall_present()
        again = replica.wait_for("leader.elected", after=replica.wait_for("leader.deposed"))
        replica.wait_for("cycle.completed", after=again, within=20)
    ledger.judge()
