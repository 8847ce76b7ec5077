"""The statements of a cycle as methods: rows in, values out. Decides nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

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
        holder: whose terms it writes under.
        on_fenced: told of each transaction that the fence refuses; returns at once.
    """

    def __init__(
        self,
        connection: psycopg.Connection[dict[str, Any]],
        statements: Mapping[str, str],
        pricing: Pricing,
        holder: str,
        on_fenced: Callable[[], None] = lambda: None,
    ) -> None:
        self.connection = connection
        self._statements = statements
        self._pricing = pricing
        self._holder = holder
        self._on_fenced = on_fenced

    @contextmanager
    def fenced(self, term: int, *, keep: bool = True) -> Iterator[None]:
        """A transaction that commits only while `term` is the newest, and ours.

        Args:
            term: the writer's.
            keep: False rolls back at the end what was done, for a dry run: under anybody's term.

        Raises:
            DeposedError: another term has been minted; nothing has been written.
        """
        with self.connection.transaction(force_rollback=not keep):
            self.connection.execute(_BOUND_TRANSACTION, (list(TRANSACTION_BOUNDS), list(TRANSACTION_BOUNDS.values())))
            if self._row("fence", term=term, holder=self._holder) is None and keep:
                self._on_fenced()
                raise DeposedError(f"term {term} is over: another replica leads")
            yield

    def begin_run(self, term: int) -> Run:
        """Closes what lost leaders left open, and begins. Needs `fenced`."""
        self._execute("close_abandoned_runs", term=term)
        row = self._the_row("begin_run", term=term, holder=self._holder)
        return Run(row["id"], term, row["started_at"])

    def plan(self, run: Run, batch_size: int) -> list[Batch]:
        """The batches in the order of their organizations."""
        rows = self._rows("plan_cycle", as_of=run.as_of, batch_size=batch_size)
        return [Batch(r["first_organization"], r["last_organization"], r["instances"], r["large"]) for r in rows]

    def charge(
        self, run: Run, batch: Batch, after: Position | None, limit: int | None, *, cautious: bool = False
    ) -> Charged:
        """Charges up to `limit` instances of a batch, those after `after`. Needs `fenced`.

        Organizations that are plainly covered take the fast path, all others the ordered one. `cautious` takes the
        ordered one for all, finds out first which rows someone else holds a lock on, and leaves out who they belong to.

        Raises:
            InconsistentError: a row has changed meanwhile.
        """
        step: dict[str, Any] = {
            "as_of": run.as_of,
            "after_created_at": after.created_at if after else None,
            "after_id": after.id if after else None,
            "batch_size": limit,
        }
        if cautious:
            return self._charge_ordered(run, step, self.due_organizations(run, batch), cautious=True)
        covered, left_over = self._charge_covered(run, step, batch)
        return covered + self._charge_ordered(run, step, left_over, cautious=False) if left_over else covered

    def _charge_covered(self, run: Run, step: Mapping[str, Any], batch: Batch) -> tuple[Charged, list[UUID]]:
        row = self._the_row(
            "charge_covered",
            **step,
            **self._origin(run),
            first_organization=batch.first_organization,
            last_organization=batch.last_organization,
            currency=self._pricing.currency,
        )
        wallets: list[UUID] = row["wallets"]
        if wallets:
            paid = self._the_row("charge_wallets", wallets=wallets, amounts=row["amounts"])
            if paid["charged"] != len(wallets):
                raise InconsistentError("a wallet was spent while its batch was being charged")
        return _charged(row), row["left_over"]

    def _charge_ordered(
        self, run: Run, step: Mapping[str, Any], organizations: Sequence[UUID], *, cautious: bool
    ) -> Charged:
        parameters = {**step, "organizations": organizations}
        locked = self._the_row("lock_organizations", **parameters, cautious=cautious)
        parameters["held_by_others"] = locked["held_by_others"]
        if locked["adoptable"]:
            self._execute("adopt_wallets", **parameters)
        row = self._the_row(
            "charge_ordered",
            **parameters,
            **self._origin(run),
            default_monthly_price=self._pricing.default_monthly_price,
            currency=self._pricing.currency,
        )
        return replace(_charged(row), held_by_others=tuple(locked["held_by_others"]))

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
            **self._origin(run),
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
            **self._origin(run),
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

    @staticmethod
    def _origin(run: Run) -> dict[str, Any]:
        """Whence a row comes: what every row that is written for a run says of it."""
        origin = {"controller": "containerstacks-billing", "term": run.term, "run": run.id}
        return {"term": run.term, "run_id": run.id, "origin": Jsonb(origin)}

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


def _charged(row: dict[str, Any]) -> Charged:
    if not row["consistent"]:
        raise InconsistentError("a wallet or an instance changed while its batch was being charged")
    return Charged(
        figures=Figures.from_row(row),
        due=row["due"],
        obstacles=row.get("obstacles", {}),
        priced_by_default=tuple(row.get("priced_by_default", ())),
        last=Position(row["last_created_at"], row["last_id"]) if row["last_id"] else None,
    )
