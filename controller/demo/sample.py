"""A sample ContainerStacks database: the application's schema and plausible rows, in a given database or its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.errors import DuplicateFunction, DuplicateTable
from psycopg.rows import scalar_row
from pydantic import SecretStr

from controller.demo.server import EphemeralServer
from controller.errors import BillingError
from controller.settings import Settings

FOLDER: Final = Path(__file__).with_name("sample")
_LOCK_KEY: Final = 0x636F_6E73_6269_6C73


class SampleError(BillingError):
    """The sample would mix with an application's own tables, or its size makes no sense."""


@dataclass(frozen=True)
class Size:
    """How many rows to make. One organization in twelve is short of money, and the last one has no wallet.

    Args:
        organizations: at least 4.
        instances: at least one for each organization.
        skew: 1 spreads the instances evenly; a larger one gives more of them to the first organizations.
        seed: ids, owners, plans, ages and balances follow from it and from the size.

    Raises:
        SampleError: a value is out of its range.
    """

    organizations: int = 40
    instances: int = 400
    skew: float = 2.5
    seed: int = 1

    def __post_init__(self) -> None:
        if self.organizations < 4 or self.instances < self.organizations or self.skew < 1:  # noqa: PLR2004
            raise SampleError("a sample needs 4 organizations, an instance for each, and a skew of at least 1")


def seed(conn: Connection[Any], size: Size) -> bool:
    """Makes schema and data once, however many replicas ask for it at the same time. True if this call made them.

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


@contextmanager
def sample_settings(loaded: Settings) -> Iterator[Settings]:
    """The settings, changed to a server with sample data, which goes with the context. Raises: ServerError.

    Unless they are set, nothing delays the takeover, and a cycle runs every minute, so that there is something to see.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # libpq would read it
    with EphemeralServer() as server:
        url = server.create_database("containerstacks")
        with psycopg.connect(url, autocommit=True) as connection:
            seed(connection, Size())
        print(f"One controller on sample data, on {server.installation.title}, until Ctrl-C. In another terminal:")  # noqa: T201
        print(f"  export DATABASE_URL={url}")  # noqa: T201
        socket = server.folder / "control.sock" if os.name == "posix" else None
        values = {"takeover_delay_seconds": 0.0, "interval_minutes": 1.0, "control_socket": socket}
        unset = {name: value for name, value in values.items() if name not in loaded.model_fields_set}
        elsewhere = dict.fromkeys(("database_url_file", "database_direct_url", "database_direct_url_file"))
        yield loaded.model_copy(update={**unset, **elsewhere, "database_url": SecretStr(url)})
