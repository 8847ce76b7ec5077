"""Other sessions lock rows that a batch needs. All other organizations are billed, and later the locked ones too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from typing import Final

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from tests.faults.proxy import Proxy
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, StartReplica
from tests.support.servers import migrate_url
from tests.support.timings import Timings, seconds_to_next_charge
from tests.support.waiting import eventually, through

#: Skipped organizations are tried again after 0.25, 0.5, 1 and 2 s.
WALLET_SECONDS: Final = 2.5
#: A batch waits half a second for a lock, and tries again at most 0.6 s later.
LOCK_SECONDS: Final = 2.0
#: Another session's DDL waits for the batch in hand, and the next batch waits for the DDL.
DDL_SECONDS: Final = 2.0

UNBILLED: Final = "from vps_instances i where i.organization_id = w.organization_id and i.last_billed_at is null"
LOCKS: Final = (
    "select from vps_instances where last_billed_at is null limit 1 for update",
    "lock table wallets in access exclusive mode",
    "lock table payment_transactions in share mode",
)
#: Statements of the application's migrations.
DDL: Final = (
    "alter table vps_instances add column {name} text",
    "alter table wallets add column {name} numeric(10,2) default 0",
    "create index {name} on vps_billing_cycles (created_at)",
    "alter table payment_transactions add column {name} jsonb",
    "create index concurrently {name} on payment_transactions (created_at)",
    "alter table vps_plans add column {name} boolean not null default false",
    "alter table vps_billing_cycles alter column hourly_rate type numeric(12,4)",
    "vacuum full vps_instances",
)


def _hold_a_wallet(other: psycopg.Connection, proxy: Proxy, ledger: LedgerProbe) -> None:
    """Locks the wallet of one of three organizations before the first batch that could charge them."""
    with proxy.hold(" worker ", starts_with("BEGIN")) as hold:
        ledger.add_between_cycles(3)
        hold.wait()
        other.execute(f"select from wallets w where exists (select {UNBILLED}) limit 1 for update".encode())


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(180)
def test_wallet_in_an_open_transaction_delays_its_organization_alone(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        with psycopg.connect(database) as other:
            _hold_a_wallet(other, proxy, ledger)
            eventually(lambda: _unbilled(ledger) == 3, "the two others are billed")
            released_at = datetime.now(UTC)
            other.rollback()
        eventually(lambda: ledger.all_billed, "the locked organization is billed too")
        seconds = seconds_to_next_charge(ledger, released_at)
        timings.record("blocked: a wallet", seconds, ledger.judge(), bound=WALLET_SECONDS)
    assert not leader.events("cycle.failed", "customers.affected")


@pytest.mark.runs(5, older=1)
def test_wallet_blocked_for_a_whole_cycle_leaves_a_reason_and_is_billed_by_the_next(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(through(database, proxy.port), **BUSY, LOG_LEVEL="debug")
    told = leader.wait_for("cycle.completed")
    for _ in range(runs):
        with psycopg.connect(database) as other:
            _hold_a_wallet(other, proxy, ledger)
            told = leader.wait_for("organization.failed", reason="locked", after=told)
            assert leader.wait_for("cycle.completed", after=told)["failures"] == 3
            released_at = datetime.now(UTC)
            other.rollback()
        eventually(lambda: ledger.all_billed, "the next cycle bills it")
        seconds = seconds_to_next_charge(ledger, released_at)
        timings.record("blocked: a wallet, for a whole cycle", seconds, ledger.judge(), bound=WALLET_SECONDS)
        assert ledger.one("select count(*) from vps_billing_cycles where status = 'failed'") == 0


@pytest.mark.runs(21)
@pytest.mark.timeout(180)
def test_lock_that_times_out_is_tried_again(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(through(database, proxy.port), **BUSY, LOG_LEVEL="debug")
    last = leader.wait_for("cycle.completed")
    for lock in islice(cycle(LOCKS), runs):
        with psycopg.connect(database) as other:
            with proxy.hold(" worker ", starts_with("BEGIN")) as hold:
                ledger.add_between_cycles(3)
                hold.wait()
                other.execute(lock.encode())
            last = leader.wait_until(
                lambda line: line.event == "batch.retried" and "lock timeout" in line["error"], "a timeout", last
            )
            released_at = datetime.now(UTC)
            other.rollback()
        eventually(lambda: ledger.all_billed, "everyone is billed")
        seconds = seconds_to_next_charge(ledger, released_at)
        timings.record("lock timeout: a row or a table", seconds, ledger.judge(), bound=LOCK_SECONDS)
    assert not leader.events("cycle.failed", "leader.deposed")


@pytest.mark.runs(20, short=2, older=8)
@pytest.mark.timeout(180)
def test_application_changes_its_tables_in_the_middle_of_a_batch(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    def change(number: int, sql: str) -> None:
        with psycopg.connect(database, autocommit=True) as application:
            application.execute(sql.format(name=f"added_{number}").encode())

    changes = [partial(change, number, sql) for number, sql in enumerate(islice(cycle(DDL), runs))]
    leader = start(through(database, proxy.port), **BUSY)
    _bill_during(changes, leader, proxy, ledger, partial(timings.record, "while it bills: the application's DDL"))


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(180)
def test_migration_runs_in_the_middle_of_a_batch(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    def migrate() -> None:
        """Applies all migrations after the status table's again, as an upgrade would."""
        ledger.conn.execute("delete from billing_schema_migrations where name > '013'")
        migrate_url(database)

    leader = start(through(database, proxy.port), **BUSY)
    _bill_during([migrate] * runs, leader, proxy, ledger, partial(timings.record, "while it bills: a migration"))


def _bill_during(
    changes: Sequence[Callable[[], None]],
    leader: ControllerProcess,
    proxy: Proxy,
    ledger: LedgerProbe,
    record: Callable[..., float],
) -> None:
    """Starts each change while a batch is open. All changes end before everything is billed."""
    leader.wait_for("cycle.completed")
    for change in changes:
        failures: list[BaseException] = []
        changing = threading.Thread(target=_caught, args=(change, failures))
        with proxy.hold(" worker ", starts_with("with costed as"), "after") as hold:
            ledger.add_between_cycles(3)
            hold.wait()
            changing.start()
            eventually(lambda: not changing.is_alive() or _someone_waits(ledger), "it waits for the batch")  # noqa: B023
            since = datetime.now(UTC)
        eventually(lambda: ledger.all_billed, "everyone is billed")
        changing.join(30)
        assert not changing.is_alive()
        assert not failures, failures
        record(seconds_to_next_charge(ledger, since), ledger.judge(), bound=DDL_SECONDS)
    assert not leader.events("cycle.failed", "leader.deposed", "customers.affected"), leader.tail()


def _caught(action: Callable[[], None], failures: list[BaseException]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the test's own thread reports it
        failures.append(error)


def _someone_waits(ledger: LedgerProbe) -> bool:
    return bool(ledger.rows("select from pg_locks where not granted"))


def _unbilled(ledger: LedgerProbe) -> int:
    return int(ledger.one("select count(*) from vps_instances where last_billed_at is null"))
