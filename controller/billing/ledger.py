"""The statements of a cycle as methods. They turn rows into values and decide nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Never
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from controller import sql
from controller.billing import access
from controller.billing.errors import DeposedError, HeartbeatError, InconsistentError, StillCommittingError
from controller.billing.values import (
    Batch,
    BatchResult,
    Cause,
    Outcome,
    Pricing,
    ResumePoint,
    Run,
    TakeoverWait,
    TermStart,
    Totals,
)
from controller.errors import one_line
from controller.generation import GENERATION, refuse_generation_of

#: Marks the rows that this controller writes. `billing_is_ours` (migration 017) recognizes it and its predecessor.
MARKER: Final = "vps-billing"

#: Why a missing heartbeat stops billing.
NO_HEARTBEAT: Final = "without one, the application would bill the same hours"

#: A batch's bounds on the server. The last one ends the open transaction of a frozen worker, because the next leader's
#: mint waits for that transaction.
TRANSACTION_BOUNDS: Final = {
    "lock_timeout": "500ms",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
}


class Ledger:
    """One session's view of the money. Not safe for two threads.

    Args:
        connection: a session in autocommit mode; its rows are mappings.
        holder: id of this replica, which minted the terms that it writes under.
        on_fenced: called for each transaction that the fence refuses. Must not block.
        assume_unsuspended: organizations that a dry run charges although they are suspended.

    Attributes:
        transaction_id: id of the last transaction that passed the fence; None before the first.
    """

    transaction_id: str | None = None

    def __init__(
        self,
        connection: sql.Connection,
        pricing: Pricing,
        holder: str,
        on_fenced: Callable[[], None] = lambda: None,
        assume_unsuspended: Sequence[UUID] = (),
    ) -> None:
        self.connection = connection
        self._pricing = pricing
        self._holder = holder
        self._on_fenced = on_fenced
        self._assume_unsuspended = assume_unsuspended

    @contextmanager
    def fenced(
        self, term: int, *, keep: bool = True, enforce: bool | None = None, needs_heartbeat: bool = False
    ) -> Iterator[None]:
        """A transaction that commits only if `term` is still the newest and this replica minted it.

        Args:
            term: the term that the caller writes under.
            keep: False rolls everything back at the end, and needs no term unless `enforce` is True.
            enforce: True or False overrides whether the term is checked. If it isn't, no lock delays the next mint.
            needs_heartbeat: True also requires that this leader has written a heartbeat in the last 60 minutes.

        Raises:
            DeposedError: another term has been minted. Nothing has been written.
            GenerationError: the database follows the rules of another generation. Nothing has been written.
            HeartbeatError: the heartbeat is missing. Nothing has been written.
        """
        with sql.transaction(self.connection, keep=keep, settings=TRANSACTION_BOUNDS):
            if keep if enforce is None else enforce:
                fence = {"term": term, "holder": self._holder, "generation": GENERATION}
                passed = sql.optional_row(self.connection, "fence", **fence, needs_heartbeat=needs_heartbeat)
                if passed is None:
                    self._refuse(term)
                self.transaction_id = passed["transaction_id"]
            if not keep:
                for organization in self._assume_unsuspended:
                    sql.run(self.connection, "unsuspend_organization", organization_id=organization)
            yield
            if not keep:
                # A real run checks deferred constraints at its commit.
                sql.run(self.connection, "check_constraints_now")

    def _refuse(self, term: int) -> Never:
        """Raises the error that says why the fence refused a transaction."""
        leadership = sql.row(self.connection, "current_term")
        refuse_generation_of(leadership)
        if (leadership["term"], leadership["holder"]) == (term, self._holder):
            raise HeartbeatError(f"this leader has written no heartbeat for 60 minutes; {NO_HEARTBEAT}")
        self._on_fenced()
        raise DeposedError(f"term {term} is over: another replica leads")

    def has_committed(self, transaction_id: str) -> bool:
        """Returns True if a transaction of `fenced` committed, even if its session was lost during the COMMIT.

        Raises:
            StillCommittingError: the server has not finished it.
        """
        status = sql.row(self.connection, "transaction_status", transaction_id=transaction_id)["status"]
        if status == "in progress":
            raise StillCommittingError(
                f"the server is still committing transaction {transaction_id}, whose session was lost; look for a"
                " synchronous standby that does not answer"
            )
        return bool(status == "committed")

    def begin_heartbeat(self, *, require_fresh: bool = True) -> None:
        """Writes this leader's first heartbeat of a cycle. Needs `fenced`, in the transaction that begins the run.

        Args:
            require_fresh: False, for a dry run, accepts an old heartbeat: a real run would begin a takeover first.

        Raises:
            HeartbeatError: it can't be written, or it would be too old because billing is long overdue.
        """
        try:
            row = sql.optional_row(self.connection, "begin_heartbeat", instance_id=self._holder)
        except psycopg.Error as error:
            raise HeartbeatError(f"the heartbeat can't be written: {one_line(error)}; {NO_HEARTBEAT}") from error
        if row is None:
            raise HeartbeatError(
                "the database dropped the heartbeat: look for triggers on billing_daemon_status, and for a row that"
                f" another daemon wrote under the name {self._holder}; {NO_HEARTBEAT}"
            )
        if require_fresh and not row["fresh"]:
            raise HeartbeatError(
                "billing is more than 90 minutes overdue, and the newest heartbeat is older than 60 minutes: billing"
                " returns once the heartbeat is 90 minutes old and a trial has succeeded"
            )

    def begin_run(self, term: int) -> Run:
        """Closes the runs that lost leaders left open, records prices, and begins a run. Needs `fenced`."""
        self.close_abandoned_runs(term)
        sql.run(self.connection, "record_prices")
        return self.record_run(term)

    def close_abandoned_runs(self, term: int) -> None:
        """Closes runs whose end was not recorded. Needs `fenced`, and no run of this leader in progress."""
        sql.run(self.connection, "close_abandoned_runs", term=term)

    def preview_run(self, term: int) -> Run:
        """Returns a run that is never recorded, for transactions that are rolled back."""
        row = sql.row(self.connection, "preview_run")
        return Run(row["id"], term, row["started_at"], row["late_seconds"])

    def record_run(self, term: int) -> Run:
        """Adds the row of a cycle that begins now. It answers any open `trigger`. Needs `fenced`."""
        row = sql.row(self.connection, "begin_run", term=term, holder=self._holder)
        sql.run(self.connection, "take_triggers", run_id=row["id"])
        return Run(row["id"], term, row["started_at"], row["late_seconds"])

    def payable_organizations(self) -> list[UUID]:
        """Returns organizations with debts whose wallet can pay at least one owed hour, up to 1000, in order."""
        rows = sql.rows(self.connection, "payable_organizations", currency=self._pricing.currency)
        return [row["organization_id"] for row in rows]

    def begin_collection(self, term: int) -> Run:
        """Adds the row of a collection. It charges what was due when the last cycle began. Needs `fenced`."""
        row = sql.row(self.connection, "begin_collection", term=term, holder=self._holder)
        return Run(row["id"], term, row["as_of"])

    def begin_waiver(self, term: int, command: int) -> Run:
        """Adds the row of a waiver's run, and links the command to it. Needs `fenced`."""
        row = sql.row(self.connection, "begin_waiver", term=term, holder=self._holder, command_id=command)
        return Run(row["id"], term, row["started_at"])

    def waive(self, run: Run, waiver: Mapping[str, Any], after: UUID | None, limit: int) -> sql.Row:
        """Waives the unpaid hours of up to `limit` instances. Needs `fenced`.

        Args:
            run: the waiver's run.
            waiver: the command's row.
            after: the last instance of the previous transaction; None in the first.
            limit: the most instances.

        Returns:
            The number of instances and hours that it waived, the number of due ones, and the last one's id.

        Raises:
            InconsistentError: a row has changed in the meantime.
        """
        what = {name: waiver[name] for name in ("organization_id", "instance_id", "as_of", "reason", "given_by")}
        what["command_id"] = waiver["id"]
        price = self._pricing.default_monthly_price
        step = {"after_id": after, "batch_size": limit, "default_monthly_price": price}
        row = sql.row(self.connection, "waive", **what, **step, **self._origin(run))
        _require_consistent(row)
        return row

    def check_access(self) -> None:
        """Raises AccessError unless this role sees and may write everything that billing needs."""
        access.check(self.connection, self._pricing.accepted_columns)

    def plan(self, run: Run, batch_size: int) -> list[Batch]:
        """Returns the batches: large ones first, then the others in the order of their organizations."""
        rows = sql.rows(self.connection, "plan_cycle", as_of=run.as_of, batch_size=batch_size)
        return [Batch(**row) for row in rows]

    def record_plan(self, run: Run, planned: int) -> None:
        """Records how many instances the run plans to charge. Needs `fenced`."""
        sql.run(self.connection, "record_plan", run_id=run.id, term=run.term, planned=planned)

    def charge(
        self, run: Run, batch: Batch, after: ResumePoint | None, limit: int | None, *, lock_first: bool = False
    ) -> BatchResult:
        """Charges a batch, or up to `limit` instances of it from `after` on. Needs `fenced`.

        Organizations that plainly can pay take the fast path, all others the ordered one.

        Args:
            run: the cycle's run.
            batch: the organizations to charge.
            after: where the previous step of a large organization ended.
            limit: the most instances to charge; None for no limit.
            lock_first: takes the ordered path for every organization, first locks every row that will be written, and
                leaves out organizations with rows that other sessions have locked.

        Raises:
            InconsistentError: a row has changed in the meantime.
        """
        step: dict[str, Any] = {"as_of": run.as_of, "batch_size": limit, **_after(after), **self._backlog()}
        if lock_first:
            return self._charge_ordered(run, step, self.due_organizations(run, batch), lock_first=True)
        covered = self._charge_covered(run, step, batch)
        result = replace(_result(covered), last=_resume_point(covered))
        if left_over := covered["left_over"]:
            result += self._charge_ordered(run, step, left_over, lock_first=False)
        self._charge_wallets(covered)
        return result

    def _charge_covered(self, run: Run, step: Mapping[str, Any], batch: Batch) -> sql.Row:
        return sql.row(
            self.connection,
            "charge_covered",
            **step,
            **self._origin(run),
            first_organization=batch.first_organization,
            last_organization=batch.last_organization,
            currency=self._pricing.currency,
        )

    def _charge_wallets(self, covered: sql.Row) -> None:
        """Takes the money for what `charge_covered` has written. It comes last, because it locks most wallets."""
        if not covered["wallets"]:
            return
        taken = {name: covered[name] for name in ("wallets", "amounts", "balances")}
        paid = sql.row(self.connection, "charge_wallets", **taken)
        if paid["charged"] != len(taken["wallets"]):
            raise InconsistentError("a wallet was spent while its batch was being charged")
        if paid["moved"]:
            self._correct_balances(paid["moved"], paid["moved_wallets"], paid["differences"])

    def _correct_balances(self, organizations: list[UUID], wallets: list[UUID], differences: list[Decimal]) -> None:
        """Corrects the balances recorded with a charge, after a top-up during its batch."""
        corrected = sql.row(
            self.connection,
            "correct_balances",
            organizations=organizations,
            wallets=wallets,
            differences=differences,
        )
        if corrected["organizations"] != len(organizations):
            raise InconsistentError("a payment's balances could not be corrected")

    def _charge_ordered(
        self, run: Run, step: Mapping[str, Any], organizations: Sequence[UUID], *, lock_first: bool
    ) -> BatchResult:
        parameters = {**step, "organizations": organizations}
        locked = sql.row(self.connection, "lock_organizations", **parameters, lock_first=lock_first)
        parameters["locked_by_others"] = locked["locked_by_others"]
        if locked["adoptable"]:
            sql.run(self.connection, "adopt_wallets", **parameters)
        reckoned = sql.row(
            self.connection,
            "reckon_ordered",
            **parameters,
            default_monthly_price=self._pricing.default_monthly_price,
            currency=self._pricing.currency,
        )
        if reckoned["unmatched_keys"]:
            sql.run(self.connection, "record_unmatched_keys", keys=reckoned["unmatched_keys"])
        settled = self._settle(run, reckoned)
        return replace(
            settled,
            locked_by_others=tuple(locked["locked_by_others"]),
            priced_by_default=tuple(reckoned["priced_by_default"]),
            last=_resume_point(reckoned),
        )

    def _settle(self, run: Run, reckoned: Mapping[str, Any]) -> BatchResult:
        """Writes the segments that `reckon_ordered` has returned."""
        segments, origin = reckoned["segments"], self._origin(run)
        sql.run(self.connection, "clear_open_rows", segments=segments, instances=reckoned["instances"])
        periods = sql.row(
            self.connection,
            "settle_periods",
            segments=segments,
            instances=reckoned["instances"],
            as_of=run.as_of,
            origin=origin["origin"],
        )
        row = sql.row(self.connection, "settle_wallets", segments=segments, term=run.term, run_id=run.id)
        _require_consistent(periods)
        return _result(row)

    def due_organizations(self, run: Run, batch: Batch) -> list[UUID]:
        """Returns the ids of the batch's due organizations, in order."""
        rows = sql.rows(
            self.connection,
            "due_organizations",
            first_organization=batch.first_organization,
            last_organization=batch.last_organization,
            as_of=run.as_of,
        )
        return [row["organization_id"] for row in rows]

    def sample_organizations(
        self, number: int, *, as_of: datetime | None = None, without: UUID | None = None
    ) -> list[UUID]:
        """Returns up to `number` due organizations, spread over the plan, to test whether billing works.

        Args:
            number: the most organizations.
            as_of: the start of the cycle; None for now.
            without: an organization that has failed in this cycle.
        """
        rows = sql.rows(self.connection, "sample_organizations", number=number, as_of=as_of, without=without)
        return [row["organization_id"] for row in rows]

    def take_from_wallet(self, organization: UUID, amount: Decimal) -> None:
        """Takes from a wallet what earlier steps of a dry run have spent, so the next step sees the right balance."""
        sql.run(self.connection, "take_from_wallet", organization_id=organization, amount=amount)

    def record_failed_organization(self, run: Run, batch: Batch, reason: str, error: str) -> Totals:
        """Writes open rows with the reason for each due instance of an organization. Needs `fenced`.

        Args:
            run: the cycle's run.
            batch: holds one organization. Instances up to its resume point are left out.
            reason: one of the reasons in docs/money.md.
            error: one line.
        """
        row = sql.row(
            self.connection,
            "record_failed_organization",
            organization_id=batch.first_organization,
            as_of=run.as_of,
            **_after(batch.after),
            **self._origin(run),
            **self._backlog(),
            reason=reason,
            error=error,
        )
        _require_consistent(row)
        return Totals(failures=row["failures"])

    def count_failed_organization(self, run: Run, batch: Batch, reason: str) -> Totals:
        """Counts the instances that `record_failed_organization` can't record. Needs `fenced`."""
        row = sql.row(
            self.connection,
            "count_failed_organization",
            organization_id=batch.first_organization,
            as_of=run.as_of,
            **_after(batch.after),
            run_id=run.id,
            term=run.term,
            reason=reason,
        )
        return Totals(failures=row["failures"])

    def count_missed(self, run: Run, unrecorded: Sequence[UUID]) -> int:
        """Counts instances that the run should have charged, and that are still due without a recorded reason.

        Args:
            run: a run whose batches have ended.
            unrecorded: organizations whose failures are counted already but could not be recorded.
        """
        return int(sql.row(self.connection, "count_missed", as_of=run.as_of, unrecorded=list(unrecorded))["missed"])

    def record_missed(self, run: Run, missed: int) -> None:
        """Counts instances as failures of this run. Needs `fenced`."""
        sql.run(self.connection, "record_missed", run_id=run.id, term=run.term, missed=missed)

    def finish_run(self, run: Run, outcome: Outcome, error: str | None, cause: Cause | None = None) -> Totals:
        """Ends the run's row with the sum of what its batches committed. Needs `fenced`."""
        return Totals.from_row(
            sql.row(
                self.connection,
                "finish_run",
                run_id=run.id,
                outcome=str(outcome),
                error=error,
                cause=None if cause is None else str(cause),
            )
        )

    def prune(self, retention_days: int) -> None:
        """Deletes the batches of old runs."""
        sql.run(self.connection, "prune_history", retention_days=retention_days)

    def begin_term(self, interval_minutes: float, other_billers: str = "stop") -> TermStart:
        """Records the leader's settings, and returns who billed before. Needs `fenced`.

        Args:
            interval_minutes: time between the starts of two cycles.
            other_billers: `stop` or `warn`, if other programs bill instances.
        """
        row = sql.row(self.connection, "begin_term", interval_minutes=interval_minutes, other_billers=other_billers)
        return TermStart(**row)

    def begin_takeover(self, delay_seconds: float) -> datetime:
        """Writes a heartbeat, which pauses the application's billing, and delays the first cycle. Needs `fenced`.

        Returns:
            The end of the delay, by the database's clock.

        Raises:
            HeartbeatError: the heartbeat can't be written.
        """
        ends_at: datetime = sql.row(self.connection, "begin_takeover", delay_seconds=delay_seconds)["bill_after"]
        self.begin_heartbeat()
        return ends_at

    def takeover_wait(self) -> TakeoverWait | None:
        """Returns how long no organization may be charged because of a takeover. None if there is no such delay."""
        row = sql.optional_row(self.connection, "takeover_wait")
        return None if row is None else TakeoverWait(**row)

    def seconds_until_due(self) -> float:
        """Returns the seconds until the next cycle is due, by the database's clock; negative once it is overdue."""
        return float(sql.row(self.connection, "seconds_until_due")["seconds"])

    def current_term(self) -> int:
        """Returns the newest term."""
        return int(sql.row(self.connection, "current_term")["term"])

    def largest_charges(self, number: int) -> tuple[dict[str, Any], ...]:
        """Returns this transaction's largest charges by instance, for a dry run. Needs `fenced`."""
        return tuple(sql.rows(self.connection, "largest_charges", number=number))

    def bills_others(self) -> bool:
        """Returns True if the database has an instance that was billed too recently to be in backlog."""
        return bool(sql.row(self.connection, "instance_beyond_backlog", **self._backlog())["found"])

    def _backlog(self) -> dict[str, Any]:
        return {"max_backlog_hours": self._pricing.max_backlog_hours}

    @staticmethod
    def _origin(run: Run) -> dict[str, Any]:
        """Provenance stored with every row that a cycle writes."""
        origin = {"controller": MARKER, "term": run.term, "run": run.id}
        return {"term": run.term, "run_id": run.id, "origin": Jsonb(origin)}


def _require_consistent(row: Mapping[str, Any]) -> None:
    """Raises InconsistentError unless the statement wrote every row with the intended values."""
    if not row["consistent"]:
        raise InconsistentError("the database dropped or changed a row of a charge; look for triggers and rules")


def _result(row: Mapping[str, Any]) -> BatchResult:
    _require_consistent(row)
    return BatchResult(
        totals=Totals.from_row(row),
        due=row["due"],
        failures_by_reason=row.get("failures_by_reason", {}),
        rewound=tuple(row.get("rewound", ())),
    )


def _after(point: ResumePoint | None) -> dict[str, Any]:
    """Returns parameters that skip the instances up to a resume point."""
    return {"after_created_at": point.created_at if point else None, "after_id": point.id if point else None}


def _resume_point(row: Mapping[str, Any]) -> ResumePoint | None:
    return ResumePoint(row["last_created_at"], row["last_id"]) if row["last_id"] else None
