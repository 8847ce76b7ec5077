"""The statements of a cycle as methods: rows in, values out. Decides nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import psycopg

from controller.billing.errors import DeposedError, InconsistentError
from controller.billing.values import Batch, Charged, Figures, Outcome, Position, Pricing, Run

#: A batch's bounds on the server. A frozen worker's transaction ends after the last of them, so that the next leader's
#: mint waits no longer for it.
TRANSACTION_BOUNDS: Final = {
    "lock_timeout": "500ms",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
}

_BOUND_TRANSACTION: Final = (
    b"select set_config(name, value, true) from unnest(%s::text[], %s::text[]) as s (name, value)"
)


class Ledger:
    """One session's view of the money. Not safe for two threads.

    Args:
        connection: in autocommit mode; its rows are mappings.
        statements: by name, from `postgres/sql`.
        on_fenced: told of each transaction that the fence refuses; returns at once.
    """

    def __init__(
        self,
        connection: psycopg.Connection[dict[str, Any]],
        statements: Mapping[str, str],
        pricing: Pricing,
        on_fenced: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection = connection
        self._statements = statements
        self._pricing = pricing
        self._on_fenced = on_fenced

    @contextmanager
    def fenced(self, term: int, *, keep: bool = True) -> Iterator[None]:
        """A transaction that commits only while `term` is the newest.

        Args:
            term: the writer's.
            keep: False rolls back at the end what was done, for a dry run.

        Raises:
            DeposedError: a newer term has been minted; nothing has been written.
        """
        with self.connection.transaction(force_rollback=not keep):
            self.connection.execute(_BOUND_TRANSACTION, (list(TRANSACTION_BOUNDS), list(TRANSACTION_BOUNDS.values())))
            if self._row("fence", term=term) is None:
                self._on_fenced()
                raise DeposedError(f"term {term} is over: another replica leads")
            yield

    def begin_run(self, term: int, holder: str) -> Run:
        """Closes what lost leaders left open, and begins. Needs `fenced`."""
        self._execute("close_abandoned_runs", term=term)
        row = self._the_row("begin_run", term=term, holder=holder)
        return Run(row["id"], term, row["started_at"])

    def plan(self, run: Run, batch_size: int) -> list[Batch]:
        """The batches in the order of their organizations."""
        rows = self._rows("plan_cycle", as_of=run.as_of, batch_size=batch_size)
        return [Batch(r["first_organization"], r["last_organization"], r["instances"], r["large"]) for r in rows]

    def charge(
        self, run: Run, batch: Batch, after: Position | None, limit: int | None, *, cautious: bool = False
    ) -> Charged:
        """Charges up to `limit` instances of a batch, those after `after`. Needs `fenced`.

        `cautious` finds out first which instances someone else holds a lock on, and leaves their organizations out.

        Raises:
            InconsistentError: a locked row has changed all the same.
        """
        parameters: dict[str, Any] = {
            "first_organization": batch.first_organization,
            "last_organization": batch.last_organization,
            "as_of": run.as_of,
            "after_created_at": after.created_at if after else None,
            "after_id": after.id if after else None,
            "batch_size": limit,
        }
        locked = self._the_row("lock_batch", **parameters, cautious=cautious)
        held: Sequence[UUID] = locked["held_by_others"]
        parameters["held_by_others"] = held
        if locked["adoptable"]:
            self._execute("adopt_wallets", **parameters)
        row = self._the_row(
            "charge_batch",
            **parameters,
            term=run.term,
            run_id=run.id,
            default_monthly_price=self._pricing.default_monthly_price,
            currency=self._pricing.currency,
        )
        if not row["consistent"]:
            raise InconsistentError("a wallet or an instance changed while its batch was being charged")
        return Charged(
            figures=Figures.from_row(row),
            due=row["due"],
            held_by_others=tuple(held),
            obstacles=row["obstacles"],
            priced_by_default=tuple(row["priced_by_default"]),
            last=Position(row["last_created_at"], row["last_id"]) if row["last_id"] else None,
        )

    def due_organizations(self, run: Run, batch: Batch) -> list[UUID]:
        """In order."""
        rows = self._rows(
            "due_organizations",
            first_organization=batch.first_organization,
            last_organization=batch.last_organization,
            as_of=run.as_of,
        )
        return [row["organization_id"] for row in rows]

    def record_failed_organization(self, run: Run, organization: UUID, reason: str, error: str) -> Figures:
        """Leaves an open row with the reason for each due instance. Needs `fenced`."""
        row = self._the_row(
            "record_failed_organization",
            organization_id=organization,
            as_of=run.as_of,
            term=run.term,
            run_id=run.id,
            reason=reason,
            error=error,
        )
        return Figures(failures=row["failures"])

    def count_failed_organization(self, run: Run, organization: UUID) -> Figures:
        """Counts its due instances as failures, without writing to any row of it. Needs `fenced`."""
        row = self._the_row(
            "count_failed_organization",
            organization_id=organization,
            as_of=run.as_of,
            term=run.term,
            run_id=run.id,
        )
        return Figures(failures=row["failures"])

    def finish_run(self, run: Run, outcome: Outcome, error: str | None) -> Figures:
        """Ends the run's row with the sum of what its batches committed. Needs `fenced`."""
        return Figures.from_row(
            self._the_row("finish_run", run_id=run.id, term=run.term, outcome=str(outcome), error=error)
        )

    def prune(self, retention_days: int) -> None:
        """Removes the batches of old runs."""
        self._execute("prune_history", retention_days=retention_days)

    def begin_takeover(self, term: int, delay_seconds: float) -> bool:
        """Puts the first cycle off by `delay_seconds` if the application's own billing may be at work; whether so."""
        return self._row("begin_takeover", term=term, delay_seconds=delay_seconds) is not None

    def seconds_until_due(self, interval_minutes: float) -> float:
        """Until the next cycle, by the database's clock; negative when overdue."""
        return float(self._the_row("schedule", interval_minutes=interval_minutes)["seconds_until_due"])

    def current_term(self) -> int:
        """The newest term."""
        return int(self._the_row("current_term")["term"])

    def _execute(self, name: str, **parameters: Any) -> psycopg.Cursor[dict[str, Any]]:  # noqa: ANN401
        return self.connection.execute(self._statements[name].encode(), parameters)

    def _rows(self, name: str, **parameters: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        return self._execute(name, **parameters).fetchall()

    def _row(self, name: str, **parameters: Any) -> dict[str, Any] | None:  # noqa: ANN401
        return self._execute(name, **parameters).fetchone()

    def _the_row(self, name: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        row = self._row(name, **parameters)
        if row is None:
            raise InconsistentError(f"{name} gave no row; run `containerstacks-billing migrate --check`")
        return row
