"""A small ContainerStacks database for tests, and a leader that bills it with the real statements on a real server."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Self
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from controller import sql
from controller.billing.audit import AuditReport, audit
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.ledger import Ledger
from controller.billing.values import Cause, CycleResult, Outcome, Pricing, Run
from controller.generation import GENERATION
from controller.lifecycle.stop import StopToken
from controller.postgres.connections import FOREGROUND, WORKER, Database, SessionSettings
from tests.model import DEFAULT_PRICE, HOUR, NOON
from tests.support.waiting import eventually

TABLES: Final = (
    "organizations",
    "wallets",
    "vps_plans",
    "vps_instances",
    "payment_transactions",
    "vps_billing_cycles",
    "billing_daemon_status",
    "billing_leadership",
    "billing_terms",
    "billing_runs",
    "billing_batches",
    "billing_wallet_baselines",
    "billing_suspensions",
    "billing_prices",
    "billing_price_check",
    "billing_guard",
    "billing_daemon_sightings",
    "billing_foreign_periods",
    "billing_commands",
    "billing_wallet_differences",
    "billing_corrections",
    "billing_accepted_backlogs",
    "billing_schema_migrations",
)
#: The tables that billing writes and that a cycle with nothing due leaves unchanged.
MONEY: Final = ("wallets", "vps_instances", "payment_transactions", "vps_billing_cycles", "billing_wallet_baselines")


@dataclass
class Term:
    """A leadership that a test controls: `leads` decides whether it still holds."""

    term: int
    leads: Callable[[], bool] = field(default=lambda: True)

    def still_leads(self) -> bool:
        return self.leads()


class ScriptedStop(StopToken):
    """A stop token that asks the test before each batch, and calls the test instead of waiting."""

    def __init__(
        self,
        *,
        may_start_batch: Callable[[], bool] = lambda: True,
        may_start_cycle: Callable[[], bool] = lambda: True,
        wait: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        super().__init__()
        self._may_start_batch = may_start_batch
        self._may_start_cycle = may_start_cycle
        self._wait = wait

    def may_start_batch(self) -> bool:
        return self._may_start_batch()

    def may_start_cycle(self) -> bool:
        return self._may_start_cycle()

    def wait(self, seconds: float) -> None:
        self._wait(seconds)


class LedgerAt(Ledger):
    """A ledger whose runs begin at a chosen moment, or now if `as_of` is None."""

    as_of: datetime | None = None

    def begin_run(self, term: int) -> Run:
        """Begins a run, and moves its start."""
        run = super().begin_run(term)
        if self.as_of is None:
            return run
        # A price that this cycle sees first applies from the start of the cycle, so it moves too. It takes the place of
        # a price that an earlier cycle saw at the same moment.
        self.connection.execute(
            "delete from billing_prices old using billing_prices new where new.key = old.key and old.valid_from = %s"
            " and old.recorded_at < now() and new.recorded_at = now() and new.valid_from > '-infinity'",
            (self.as_of,),
        )
        self.connection.execute(
            "update billing_prices set valid_from = %s where recorded_at = now() and valid_from > '-infinity'",
            (self.as_of,),
        )
        self.connection.execute("update billing_runs set started_at = %s where id = %s", (self.as_of, run.id))
        return replace(run, as_of=self.as_of)

    def preview_run(self, term: int) -> Run:
        """Returns a run, and moves its start."""
        run = super().preview_run(term)
        return run if self.as_of is None else replace(run, as_of=self.as_of)


def got_through(result: CycleResult) -> bool:
    """True if each due instance was charged, or the reason why not was recorded."""
    completed = result.outcome in {Outcome.COMPLETED, Outcome.COMPLETED_WITH_FAILURES}
    return completed or result.cause is Cause.ORGANIZATIONS


class World:
    """A database with organizations, plans and instances in it, and a leader that bills them."""

    def __init__(self, url: str, ledger_class: type[LedgerAt] = LedgerAt) -> None:
        self.url = url
        self.database = Database(lambda: url, "DATABASE_URL", "test-1")
        self.conn = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self.pricing = Pricing(DEFAULT_PRICE, "USD")
        self.ledger_class = ledger_class
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.conn.close()

    # --- reading

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        """Executes a query and returns its rows."""
        return self.conn.execute(query.encode(), parameters).fetchall()

    def one(self, query: str, *parameters: object) -> Any:  # noqa: ANN401 - whatever the query gives
        """The first column of the only row."""
        (row,) = self.rows(query, *parameters)
        return next(iter(row.values()))

    def run(self, statement: str, *parameters: object) -> None:
        """Executes a statement and ignores its result."""
        self.conn.execute(statement.encode(), parameters)

    def balance(self, organization: UUID) -> Decimal:
        """The balance of the organization's only wallet."""
        return Decimal(self.one("select balance from wallets where organization_id = %s", organization))

    def billed(self, instance: UUID) -> list[tuple[datetime, int, Decimal]]:
        """Start, hours and amount of each billed period, oldest first."""
        rows = self.rows(
            "select billing_period_start as s, (metadata ->> 'hours')::int as h, total_amount as a"
            " from vps_billing_cycles where vps_instance_id = %s and status = 'billed' order by 1",
            instance,
        )
        return [(row["s"], row["h"], row["a"]) for row in rows]

    def open_row(self, instance: UUID) -> dict[str, Any] | None:
        """The instance's only open row, or None."""
        rows = self.rows(
            "select *, metadata ->> 'reason' as reason, (metadata ->> 'hours')::int as hours,"
            " (metadata ->> 'owed')::numeric as owed"
            " from vps_billing_cycles where vps_instance_id = %s and status = 'failed'"
            " and billing_is_ours(metadata)",
            instance,
        )
        assert len(rows) <= 1, f"{len(rows)} open rows"
        return rows[0] if rows else None

    def open_segments(self, instance: UUID) -> list[tuple[datetime, int, Decimal | None]]:
        """Start, hours and recorded monthly price of each open row, oldest first."""
        rows = self.rows(
            "select billing_period_start as s, (metadata ->> 'hours')::int as h,"
            " (metadata ->> 'monthly_price')::numeric as p"
            " from vps_billing_cycles where vps_instance_id = %s and status = 'failed' and billing_is_ours(metadata)"
            " order by 1",
            instance,
        )
        return [(row["s"], row["h"], row["p"]) for row in rows]

    def reason(self, instance: UUID) -> str | None:
        """The failure reason in the instance's open row."""
        row = self.open_row(instance)
        return row["reason"] if row else None

    def last_billed_at(self, instance: UUID) -> datetime | None:
        moment: datetime | None = self.one("select last_billed_at from vps_instances where id = %s", instance)
        return moment

    def dump(self, *tables: str) -> dict[str, list[str]]:
        """Every row of every table, as text."""
        return {
            table: sorted(row["t"] for row in self.rows(f"select t::text as t from {table} as t"))  # noqa: S608 - ours
            for table in tables or TABLES
        }

    def wait_for_lock(self, pid: int) -> None:
        """Blocks until this session waits for a lock."""
        waiting = "select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        eventually(lambda: bool(self.rows(waiting, pid)), f"session {pid} waits for a lock")

    # --- creating

    def organization(self, balance: str | None = "1000.00", currency: str | None = "USD") -> UUID:
        """Creates an organization, with a wallet unless the balance is None. Later organizations have larger ids."""
        number = next(self._numbers)
        organization = UUID(int=(number << 64) | uuid4().int >> 64)
        self.run(
            "insert into users (email, password_hash) values ('owner@example.com', '!') on conflict do nothing",
        )
        self.run(
            "insert into organizations (id, name, slug, owner_id) select %s, 'Org', %s, id from users limit 1",
            organization,
            f"org-{number}",
        )
        if balance is not None:
            self.wallet(organization, balance, currency)
        return organization

    def wallet(self, organization: UUID, balance: str | None, currency: str | None = "USD") -> UUID:
        """Creates a wallet, even if the organization has one already."""
        wallet: UUID = self.one(
            "insert into wallets (organization_id, balance, currency) values (%s, %s, %s) returning id",
            organization,
            balance,
            currency,
        )
        return wallet

    def plan(
        self, base: str | None = "5.00", markup: str | None = "0.00", provider: str = "p", *, active: bool | None = True
    ) -> UUID:
        """Creates a plan. Each has a later creation time than the one before."""
        plan: UUID = self.one(
            "insert into vps_plans (name, provider_plan_id, base_price, markup_price, active, created_at)"
            " values ('Plan', %s, %s, %s, %s, %s) returning id",
            provider,
            base,
            markup,
            active,
            NOON - timedelta(days=400) + next(self._numbers) * HOUR,
        )
        return plan

    def instance(
        self,
        organization: UUID,
        plan: UUID | str | None,
        created_at: datetime | str | None,
        last_billed_at: datetime | str | None = None,
        label: str | None = "vps-1",
    ) -> UUID:
        """Creates an instance."""
        instance: UUID = self.one(
            "insert into vps_instances (organization_id, plan_id, created_at, last_billed_at, label)"
            " values (%s, %s, %s, %s, %s) returning id",
            organization,
            None if plan is None else str(plan),
            created_at,
            last_billed_at,
            label,
        )
        return instance

    def top_up(self, organization: UUID, amount: str) -> None:
        """Changes the wallet and writes a completed transaction, as the application does."""
        with self.conn.transaction():
            self.run(
                "update wallets set balance = balance + %s::numeric where organization_id = %s", amount, organization
            )
            self.run(
                "insert into payment_transactions (organization_id, amount, status, payment_method)"
                " values (%s, %s, 'completed', 'card')",
                organization,
                amount,
            )

    # --- billing

    def ledger(self, settings: SessionSettings = FOREGROUND, as_of: datetime | None = None) -> LedgerAt:
        """Opens a ledger on a new session."""
        ledger = self.ledger_class(self.database.connect(settings), self.pricing, self.database.instance_id)
        ledger.as_of = as_of
        return ledger

    def lead(self, holder: str = "test-1") -> Term:
        """Mints a term as the election does."""
        with self.conn.transaction():
            sql.run(self.conn, "close_leadership")
            return Term(
                sql.row(self.conn, "mint_term", holder=holder, lock_name="test", generation=GENERATION, pod=None)[
                    "term"
                ]
            )

    def term(self) -> Term:
        """The newest term, minted by any replica."""
        return Term(self.one("select term from billing_leadership"))

    def cycle(
        self,
        as_of: datetime | None = None,
        *,
        workers: int = 1,
        batch_size: int = 2000,
        may_start_batch: Callable[[], bool] = lambda: True,
        pause: Callable[[float], None] = lambda _seconds: None,
    ) -> Cycle:
        """A real cycle on the sessions that a replica opens. It calls `pause` instead of waiting."""
        return Cycle(
            lambda: self.ledger(FOREGROUND, as_of),
            lambda: self.ledger(WORKER, as_of),
            CycleSettings(workers, batch_size),
            ScriptedStop(may_start_batch=may_start_batch, wait=pause),
        )

    def bill(self, as_of: datetime | None = None, leadership: Term | None = None, **settings: Any) -> CycleResult:  # noqa: ANN401
        """One whole cycle that has to get through its plan, under a new term if no leadership is given."""
        result = self.cycle(as_of, **settings).run(leadership or self.lead())
        assert got_through(result), result.error
        return result

    def audit(self) -> AuditReport:
        """Runs the audit as the command does."""
        with self.database.connect() as connection:
            return audit(connection)

    def violations(self) -> dict[str, tuple[str, ...]]:
        """Examples of the audit's violations, by invariant, and of wallets that differ from their transactions.

        Such a wallet isn't a violation, because the application may change wallets. In these tests no application did.
        """
        return {
            each.invariant: each.examples or each.exempt_examples
            for each in self.audit().findings
            if each.violations or (each.exempt and each.invariant == "wallet_balance")
        }
