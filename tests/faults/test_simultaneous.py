"""Replicas try the lock at the same instant. One leads, each term has one holder, and no hour is billed twice."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

import pytest

from tests.faults.proxy import Proxy
from tests.faults.test_sessions_lost import contains
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import StartReplica, terminate
from tests.support.timings import Timings, seconds_to_next_charge
from tests.support.waiting import eventually, through

#: One replica gets the lock at once, then mints its term and starts.
BOUND_SECONDS: Final = 2.0


@pytest.mark.runs(50, short=2)
@pytest.mark.timeout(900)
def test_two_replicas_started_at_the_same_instant_and_stopped_again(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    terms: Counter[int] = Counter()
    url = through(database, proxy.port)
    settings = {"BILLING_INTERVAL_MINUTES": "0.003", "BILLING_BATCH_SIZE": "3"}
    for _ in range(runs):
        ledger.add(organizations=2)
        with ExitStack() as stack:
            holds = [stack.enter_context(proxy.hold(" elector ", contains("billing_contend"))) for _ in range(2)]
            replicas = [start(url, **settings), start(url, **settings)]
            for hold in holds:
                hold.wait()
            since = datetime.now(UTC)
        eventually(lambda: ledger.all_billed, "everything is billed")
        seconds = seconds_to_next_charge(ledger, since)
        assert [terminate(replica) for replica in replicas] == [0, 0]
        for replica in replicas:
            terms.update(line["term"] for line in replica.events("leader.elected"))
            replica.remove()
        timings.record("started at one instant, and stopped", seconds, ledger.judge(), bound=BOUND_SECONDS)
    assert set(terms.values()) == {1}, f"two leaders at one term: {terms}"
