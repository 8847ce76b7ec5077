"""PgBouncer between replicas and server: session mode works, and transaction mode is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from controller.demo.process import run_command
from tests.faults.pooler import PROGRAM, Pooler
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, StartReplica, terminate
from tests.support.servers import Server
from tests.support.sessions import lock_holders, wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_term
from tests.support.waiting import eventually, through

KILLED_SECONDS: Final = 2.0
#: Time for five processes to start, detect the pooler and exit.
REFUSED_SECONDS: Final = 10.0

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no PgBouncer here: apt-get install pgbouncer")


@pytest.fixture
def by_transaction(server: Server, database: str) -> Iterator[str]:
    with Pooler(server, "transaction") as pooler:
        yield through(database, pooler.port)


@pytest.fixture
def by_session(server: Server, database: str) -> Iterator[str]:
    with Pooler(server, "session") as pooler:
        yield through(database, pooler.port)


def test_transaction_mode_is_refused_with_the_remedy(
    by_transaction: str, start: StartReplica, ledger: LedgerProbe, timings: Timings
) -> None:
    began = time.monotonic()
    replicas = [start(by_transaction) for _ in range(5)]
    for replica in replicas:
        assert replica.wait() == 2
        (told,) = [line for line in replica.events() if line["level"] == "error"]
        assert "DATABASE_DIRECT_URL" in told["error"]
        assert "exception" not in told.fields
        assert not replica.events("leader.elected")
        timings.record("PgBouncer, transaction mode: refused", told.read_at - began, bound=REFUSED_SECONDS)
    assert lock_holders(ledger) == 0
    assert ledger.billed_instances == 0


def test_bill_through_transaction_mode_is_refused_with_the_remedy(by_transaction: str, tmp_path: Path) -> None:
    done = run_command("bill", folder=tmp_path, DATABASE_URL=by_transaction)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "DATABASE_DIRECT_URL" in done.stderr
    examined = run_command("doctor", folder=tmp_path, DATABASE_URL=by_transaction).stdout
    assert "FAILURE  pooler " in examined
    assert "remedy: set DATABASE_DIRECT_URL to PostgreSQL itself, or use session pooling" in examined


@pytest.mark.runs(5, short=1, older=1)
def test_direct_url_bypasses_the_pooler_while_workers_use_it(
    *, by_transaction: str, database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(by_transaction, DATABASE_DIRECT_URL=database)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(by_transaction, DATABASE_DIRECT_URL=database)
        wait_until_standing_by(ledger, standby)
        assert lock_holders(ledger) == 1
        killed_at = leader.kill()
        standby.wait_for("leader.elected")
        seconds = seconds_to_next_term(ledger, killed_at)
        fault = "PgBouncer, transaction mode, and a direct URL: leader killed"
        timings.record(fault, seconds, ledger.judge(), bound=KILLED_SECONDS)
        leader = standby


@pytest.mark.runs(20, short=1, older=2)
@pytest.mark.timeout(240)
def test_session_mode_elects_bills_and_fails_over(
    *, by_session: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(by_session, **BUSY)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(by_session, **BUSY)
        wait_until_standing_by(ledger, standby)
        ledger.add(organizations=2)
        killed_at = leader.kill()
        standby.wait_for("cycle.completed")
        eventually(lambda: ledger.all_billed, "everything is billed")
        seconds = seconds_to_next_term(ledger, killed_at)
        timings.record("PgBouncer, session mode: leader killed", seconds, ledger.judge(), bound=KILLED_SECONDS)
        leader = standby
    assert terminate(leader) == 0
    assert lock_holders(ledger) == 0
