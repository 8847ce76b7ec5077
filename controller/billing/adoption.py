"""The report at the end of the first migration: what the database held when the controller adopted it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controller import sql
from controller.billing.values import Pricing


@dataclass(frozen=True)
class Adoption:
    """What the migration found. The rows are those of the statements in sql/adoption.sql.

    Attributes:
        wallets: counts by state. `exact` and `drifting` wallets are adopted. Others are left out, and `state` says why.
        balances: sums of the adopted wallets, by currency.
        instances: counts and unbilled hours.
        backlog_amount: what the backlog costs at current prices.
        max_backlog_hours: the limit; None for none.
        daemons: up to five other daemons of the status table.
        periods: periods that other programs billed, by status.
        payments: payments that other programs made, by kind and status.
    """

    wallets: tuple[dict[str, Any], ...]
    balances: tuple[dict[str, Any], ...]
    instances: dict[str, Any]
    backlog_amount: Any
    max_backlog_hours: int | None
    daemons: tuple[dict[str, Any], ...]
    periods: tuple[dict[str, Any], ...]
    payments: tuple[dict[str, Any], ...]

    @property
    def empty(self) -> bool:
        """True if the database has no history."""
        return not (self.wallets or self.instances["instances"] or self.daemons or self.periods or self.payments)


def read_adoption(connection: sql.Connection, pricing: Pricing) -> Adoption:
    """Reads what a database holds, in one snapshot. Writes nothing.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    limit = {"max_backlog_hours": pricing.max_backlog_hours}
    with sql.transaction(connection, isolation="repeatable read", access="read only"):
        instances = sql.row(connection, "adoption_instances", **limit)
        amount = 0
        if instances["backlog"]:
            price = {"default_monthly_price": pricing.default_monthly_price}
            amount = sql.row(connection, "adoption_backlog_amount", **limit, **price)["amount"]
        return Adoption(
            wallets=tuple(sql.rows(connection, "adoption_wallets")),
            balances=tuple(sql.rows(connection, "adoption_balances")),
            instances=instances,
            backlog_amount=amount,
            max_backlog_hours=pricing.max_backlog_hours,
            daemons=tuple(sql.rows(connection, "adoption_daemons")),
            periods=tuple(sql.rows(connection, "adoption_periods")),
            payments=tuple(sql.rows(connection, "adoption_payments")),
        )


def lines(found: Adoption) -> Iterator[str]:
    """Formats the report; no line if there is nothing to report."""
    if found.empty:
        return
    yield "found in this database:"
    for row in found.balances:
        negative = f", {row['negative']} of them negative" if row["negative"] else ""
        yield f"  wallets adopted: {row['wallets']}, holding {row['balance']} {row['currency']}{negative}"
    for row in found.wallets:
        yield f"  {_wallets(row)}"
    yield from _instances(found)
    for row in found.daemons:
        beat = row["heartbeat_at"].isoformat() if row["heartbeat_at"] else "never"
        yield f"  other daemon: {row['daemon_instance_id']}, {row['status']}, last heartbeat {beat}"
    if found.daemons and (more := found.daemons[0]["found"] - len(found.daemons)) > 0:
        yield f"  other daemons: {more} more"
    for row in found.periods:
        yield f"  other programs' periods, {row['status']}: {row['periods']}, {row['amount']}"
    for row in found.payments:
        yield f"  other programs' payments, {row['kind']}, {row['status']}: {row['payments']}, {row['amount'] or 0}"
    yield "nothing was changed; `containerstacks-billing bill --dry-run` shows what the first cycle will charge"


def _wallets(row: dict[str, Any]) -> str:
    named = ", ".join(row["examples"]) + (", ..." if row["wallets"] > len(row["examples"]) else "")
    match row["state"]:
        case "exact":
            return f"wallets that match their transactions: {row['wallets']}"
        case "drifting":
            return (
                f"wallets that differ from their transactions: {row['wallets']}, by {row['amount']} in all;"
                " the differences are their baselines"
            )
        case "wallet_missing":
            return f"left out, wallet_missing: {row['wallets']} organizations with instances ({named})"
    holding = "" if row["amount"] is None else f" holding {row['amount']}"
    return f"left out, {row['state']}: {row['wallets']} wallets{holding} ({named})"


def _instances(found: Adoption) -> Iterator[str]:
    row = found.instances
    yield f"  instances: {row['instances']}, {row['due']} of them with {row['hours']} unbilled hours"
    if row["never_billed"]:
        yield f"  instances never billed: {row['never_billed']}"
    if row["unknown_start"]:
        yield f"  instances without a usable start: {row['unknown_start']}"
    if row["backlog"]:
        yield (
            f"  backlog: {row['backlog']} instances with more than {found.max_backlog_hours} unbilled hours,"
            f" {row['backlog_hours']} hours and about {found.backlog_amount} in all; not charged until `accept-backlog`"
        )
