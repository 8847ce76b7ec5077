"""A sample ContainerStacks database: the application's schema and plausible rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from psycopg import Connection
from psycopg.errors import DuplicateFunction, DuplicateTable
from psycopg.rows import scalar_row

from controller.errors import BillingError

FOLDER: Final = Path(__file__).with_name("sample")
_LOCK_KEY: Final = 0x636F_6E73_6269_6C73


class SampleError(BillingError):
    """The sample would mix with an application's own tables."""


@dataclass(frozen=True)
class Size:
    """How many rows to make. One organization in twelve is short of money, and the last one has no wallet.

    Skew 1 spreads the instances evenly; a larger one gives more of them to the first organizations. Everything but the
    time of day follows from seed and size.
    """

    organizations: int = 40
    instances: int = 400
    skew: float = 2.5
    seed: int = 1


def seed(conn: Connection[Any], size: Size) -> bool:
    """Creates the schema and the data once, even if several processes call it at the same time.

    Returns:
        True if this call created them.

    Raises:
        SampleError: the database has tables of an application.
    """
    with conn.transaction(), conn.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", [_LOCK_KEY])
        comment = cursor.execute("select obj_description(to_regclass('organizations'), 'pg_class')").fetchone()
        if comment == "containerstacks-billing sample":
            return False
        create_schema(conn)
        create_data(conn, size)
        return True


def create_schema(conn: Connection[Any]) -> None:
    """Creates the application's tables, all or none. Raises: SampleError if one of them exists."""
    try:
        with conn.transaction():
            conn.execute((FOLDER / "schema.sql").read_bytes())
    except (DuplicateFunction, DuplicateTable) as error:
        cause = error.diag.message_primary
        raise SampleError(f"this database is an application's ({cause}): name an empty one for the sample") from None


def create_data(conn: Connection[Any], size: Size | None = None) -> None:
    """Fills the empty tables in one transaction. Instances were last billed some hours ago.

    Each wallet's balance is the sum of its organization's completed payment transactions.
    """
    with conn.transaction():
        for name, value in asdict(size or Size()).items():
            conn.execute("select set_config(%s, %s, true)", [f"sample.{name}", str(value)])
        conn.execute((FOLDER / "data.sql").read_bytes())
