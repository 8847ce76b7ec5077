"""A sample ContainerStacks database: the application's schema and plausible rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import tuple_row

from controller.errors import BillingError

SAMPLE_FOLDER: Final = Path(__file__).with_name("sample")

_LOCK_KEY: Final = 0x636F_6E73_6269_6C73
SAMPLE_COMMENT: Final = "containerstacks-billing sample"

TABLES: Final = (
    "users",
    "organizations",
    "wallets",
    "vps_plans",
    "vps_instances",
    "payment_transactions",
    "vps_billing_cycles",
)


class SampleError(BillingError):
    """The sample would mix with an application's own tables, or its size makes no sense."""


@dataclass(frozen=True)
class Size:
    """How much to make.

    Args:
        organizations: at least 4, the peculiar ones among them: one in twelve is short of money,
            the last has no wallet.
        instances: at least one for each organization.
        skew: 1 spreads the instances evenly; the larger, the more the first organizations own.

    Raises:
        SampleError: a figure is out of its range.
    """

    organizations: int = 40
    instances: int = 400
    skew: float = 2.5

    def __post_init__(self) -> None:
        if self.organizations < 4:  # noqa: PLR2004 - said above
            raise SampleError("a sample needs at least 4 organizations")
        if self.instances < self.organizations:
            raise SampleError("a sample needs at least one instance for each organization")
        if self.skew < 1:
            raise SampleError("a sample's skew is 1 or more")


def existing_tables(conn: Connection[Any]) -> list[str]:
    """Which of the ContainerStacks tables the connection sees, in the schema's order."""
    rows = conn.cursor(row_factory=tuple_row).execute(
        "select name from unnest(%s::text[]) with ordinality as known (name, place)"
        " where to_regclass(quote_ident(name)) is not null order by place",
        [list(TABLES)],
    )
    return [str(row[0]) for row in rows]


def seeded(conn: Connection[Any]) -> bool:
    """Whether the tables and rows here are this module's; schema.sql leaves a comment that says so."""
    row = (
        conn.cursor(row_factory=tuple_row)
        .execute(
            "select obj_description(to_regclass('organizations'), 'pg_class') = %s",
            [SAMPLE_COMMENT],
        )
        .fetchone()
    )
    return bool(row and row[0])


def seed(conn: Connection[Any], size: Size) -> bool:
    """Makes schema and data in one transaction, once, however many replicas ask at the same time; whether it did.

    Raises:
        SampleError: the tables are somebody's own.
    """
    with conn.transaction():
        conn.execute("select pg_advisory_xact_lock(%s)", [_LOCK_KEY])
        if seeded(conn):
            return False
        create_schema(conn)
        create_data(conn, size)
    return True


def create_schema(conn: Connection[Any]) -> None:
    """Create the application's tables, all or none.

    Raises:
        SampleError: one exists already; this is somebody's database, which is left alone.
    """
    present = existing_tables(conn)
    if present:
        raise SampleError(
            f"this database has ContainerStacks tables already ({', '.join(present)}): name an empty one for the sample"
        )
    with conn.transaction():
        conn.execute(_script("schema.sql"))


def create_data(conn: Connection[Any], size: Size | None = None, *, seed: int = 1) -> None:
    """Fill the tables in one transaction. Instances were last billed some hours before now.

    Ids, owners, plans, ages and balances follow from `seed` and `size` alone. Each wallet's balance
    is the sum of its organization's completed payment transactions.

    Raises:
        SampleError: organizations exist already.
    """
    size = size or Size()
    with conn.transaction():
        occupied = conn.cursor(row_factory=tuple_row).execute("select exists (select from organizations)").fetchone()
        if occupied is not None and occupied[0]:
            raise SampleError("this database has organizations already: name an empty one")
        conn.execute(
            "select set_config('sample.seed', %s, true),"
            " set_config('sample.organizations', %s, true),"
            " set_config('sample.instances', %s, true),"
            " set_config('sample.skew', %s, true)",
            [str(seed), str(size.organizations), str(size.instances), str(size.skew)],
        )
        conn.execute(_script("data.sql"))


def _script(name: str) -> bytes:
    return (SAMPLE_FOLDER / name).read_bytes()
