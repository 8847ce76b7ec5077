"""The leader is frozen with SIGSTOP. The server ends its lock session, and its open transaction can't commit.

No standby evicts it here; test_evicted.py covers that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

from tests.faults.proxy import Proxy
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import LOW_BOUNDS, StartReplica, freeze, thaw
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually, through

BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}
UNEVICTED: Final = {"BILLING_EVICTION": "off"}
#: The low bounds' session timeout, and the five seconds after which the server ends an open transaction.
LOW_BOUND_SECONDS: Final = 7.0
DEFAULT_BOUND_SECONDS: Final = 12.0


@pytest.mark.parametrize("statement", ["with costed as materialized", pytest.param("COMMIT", marks=pytest.mark.slow)])
def test_leader_frozen_inside_a_batch_is_replaced_and_cannot_commit_when_it_thaws(
    *,
    database: str,
    proxy: Proxy,
    start: StartReplica,
    ledger: LedgerProbe,
    timings: Timings,
    statement: str,
) -> None:
    leader = start(through(database, proxy.port), **BUSY, **LOW_BOUNDS, **UNEVICTED)
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY, **LOW_BOUNDS, **UNEVICTED)
    wait_until_standing_by(ledger, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with(statement), "after") as hold:
        ledger.add(organizations=3)
        hold.wait()
        frozen_at = freeze(leader)
        term = standby.wait_for("leader.elected")["term"]
        standby.wait_for("cycle.completed")
    seconds = seconds_to_next_term(ledger, frozen_at)
    thaw(leader)
    leader.wait_for("leader.deposed")
    leader.wait_for("cycle.deposed")
    leader.wait_for("election.joined", after=leader.events("leader.deposed")[0])
    assert not [line for line in leader.events("leader.elected") if line["term"] >= term]
    fault = "leader frozen inside a batch, no eviction, low bounds"
    timings.record(fault, seconds, ledger.judge(), bound=LOW_BOUND_SECONDS)
    assert seconds_to_next_charge(ledger, frozen_at, term - 1) < LOW_BOUND_SECONDS + 1


@pytest.mark.runs(5, older=1)
@pytest.mark.timeout(240)
def test_leader_frozen_inside_a_batch_with_the_default_bounds_is_replaced_in_twelve_seconds(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    for _ in range(runs):
        leader = start(through(database, proxy.port), **BUSY, **UNEVICTED)
        leader.wait_for("leader.elected")
        ledger.add(organizations=1)
        eventually(lambda: ledger.all_billed, "its first cycle")
        standby = start(database, **BUSY, **UNEVICTED)
        wait_until_standing_by(ledger, standby)
        with proxy.hold(f"worker {leader.instance}", starts_with("with costed as materialized"), "after") as hold:
            ledger.add(organizations=3)
            hold.wait()
            frozen_at = freeze(leader)
            standby.wait_for("leader.elected")
            eventually(lambda: ledger.all_billed, "the successor's cycle")
        seconds = seconds_to_next_term(ledger, frozen_at)
        thaw(leader)
        leader.wait_for("cycle.deposed")
        fault = "leader frozen inside a batch, no eviction"
        timings.record(fault, seconds, ledger.judge(), bound=DEFAULT_BOUND_SECONDS)
        for replica in (leader, standby):
            replica.remove()


def test_idle_leader_frozen_is_replaced_and_knows_it_when_it_thaws(
    database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings
) -> None:
    seconds = _freeze_and_thaw(database, start, ledger, {**LOW_BOUNDS, **UNEVICTED})
    timings.record("leader frozen, no eviction, low bounds", seconds, ledger.judge(), bound=4)


@pytest.mark.runs(5, older=1)
@pytest.mark.timeout(240)
def test_idle_leader_frozen_with_the_default_bounds_is_replaced_in_twelve_seconds(
    *, database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    for _ in range(runs):
        seconds = _freeze_and_thaw(database, start, ledger, UNEVICTED)
        timings.record("leader frozen, no eviction", seconds, ledger.judge(), bound=DEFAULT_BOUND_SECONDS)


def _freeze_and_thaw(database: str, start: StartReplica, ledger: LedgerProbe, settings: Mapping[str, str]) -> float:
    """Freezes a leader, and returns the seconds to the next term. Both replicas have ended then."""
    leader = start(database, **settings)
    leader.wait_for("leader.elected")
    eventually(lambda: ledger.all_billed, "everything due is billed")
    standby = start(database, **settings)
    wait_until_standing_by(ledger, standby)
    frozen_at = freeze(leader)
    standby.wait_for("leader.elected")
    thaw(leader)
    leader.wait_for("leader.deposed")
    for replica in (leader, standby):
        replica.remove()
    return seconds_to_next_term(ledger, frozen_at)


def test_leader_frozen_for_less_than_its_deadline_still_leads(
    database: str, start: StartReplica, ledger: LedgerProbe
) -> None:
    leader = start(database, **BUSY)
    leader.wait_for("cycle.completed")
    freeze(leader)
    ledger.add(organizations=3)
    thaw(leader)
    leader.wait_until(lambda line: line.fields.get("instances") == 9, "the cycle of nine")
    assert not leader.events("leader.deposed")
    ledger.judge()
