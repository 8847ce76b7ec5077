"""Replicas that reach for the lock in the same instant: one leads, each term has one holder, no hour is doubled."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest

from tests.faults.books import Books
from tests.faults.conftest import StartReplica
from tests.faults.proxy import Proxy
from tests.faults.test_sessions_lost import starts_with
from tests.faults.waiting import eventually, through


@pytest.mark.parametrize("runs", [6, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_two_replicas_started_at_the_same_instant(
    database: str, proxy: Proxy, start: StartReplica, books: Books, runs: int
) -> None:
    terms: Counter[int] = Counter()
    url = through(database, proxy.port)
    settings = {"BILLING_INTERVAL_MINUTES": "0.003", "BILLING_BATCH_SIZE": "3"}
    for _ in range(runs):
        books.add(organizations=2)
        with ExitStack() as stack:
            holds = [stack.enter_context(proxy.hold(" elector ", starts_with("select pg_try"))) for _ in range(2)]
            replicas = [start(url, **settings), start(url, **settings)]
            for hold in holds:
                hold.wait()
        eventually(lambda: books.all_billed, "everything is billed")
        assert [replica.terminate() for replica in replicas] == [0, 0]
        for replica in replicas:
            terms.update(line["term"] for line in replica.events("leader.elected"))
            replica.remove()
        books.judge()
    assert set(terms.values()) == {1}, f"two leaders at one term: {terms}"
