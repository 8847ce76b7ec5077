"""manifests/role.sql on a database with row-level security, run by a superuser and by an ordinary owner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import errors, sql

from controller.billing import access
from controller.demo.process import run_command
from tests.integration.test_heartbeat_implies_billing import as_role
from tests.integration.world import World

TEXT: Final = (Path(__file__).parents[2] / "manifests" / "role.sql").read_text("utf-8")
ROLE: Final = "containerstacks_billing"
OWNER: Final = "role_test_owner"
PROTECTED: Final = ("wallets", "payment_transactions")


@pytest.fixture
def protected(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a database whose wallets and payments are protected and belong to OWNER."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"drop role if exists {OWNER}; create role {OWNER} createrole login".encode())
        for (table,) in conn.execute("select relname from pg_class where relkind in ('r', 'v') and relnamespace ="
                                     " 'public'::regnamespace").fetchall():  # fmt: skip
            conn.execute(f"alter table {table} owner to {OWNER}".encode())
        for table in PROTECTED:
            conn.execute(f"alter table {table} enable row level security".encode())
        yield conn
        conn.execute("reset role")
        conn.execute(f"drop owned by {ROLE}; alter role {ROLE} nobypassrls".encode())
        conn.execute(f"reassign owned by {OWNER} to current_user; drop owned by {OWNER}; drop role {OWNER}".encode())


def run(conn: psycopg.Connection[Any]) -> None:
    """Runs role.sql twice: it is safe to repeat."""
    name = sql.Identifier(conn.info.dbname).as_string(conn)
    for _ in range(2):
        conn.execute(TEXT.replace(r"\set ON_ERROR_STOP on", "").replace(':"DBNAME"', name).encode())


def policies(conn: psycopg.Connection[Any]) -> set[str]:
    return {table for (table,) in conn.execute("select polrelid::regclass::text from pg_policy").fetchall()}


def test_role_sees_every_row(protected: psycopg.Connection[Any], database: str) -> None:
    run(protected)
    bypasses = protected.execute("select rolbypassrls from pg_roles where rolname = %s", [ROLE]).fetchone()
    assert bypasses == (True,)
    assert policies(protected) == set()
    protected.execute(f"alter role {ROLE} nobypassrls".encode())
    protected.execute(f"set role {OWNER}".encode())
    run(protected)
    assert policies(protected) == set(PROTECTED)
    with World(as_role(database, ROLE)) as world, world.database.connect() as connection:
        access.check(connection, ())


def test_restrictive_policy_is_refused_with_the_remedy(protected: psycopg.Connection[Any]) -> None:
    run(protected)
    protected.execute(f"alter role {ROLE} nobypassrls".encode())
    protected.execute("create policy tenants on wallets as restrictive using (false)")
    protected.execute(f"set role {OWNER}".encode())
    with pytest.raises(
        errors.RaiseException, match=r"wallets has restrictive policies \(tenants\): let a superuser run"
    ):
        run(protected)
    protected.rollback()


def test_role_that_may_not_migrate_is_told_who_must(protected: psycopg.Connection[Any], tmp_path: Path) -> None:
    protected.execute("delete from billing_schema_migrations where name like '030%'")
    protected.execute(f"grant select on all tables in schema public to {OWNER}".encode())
    url = protected.info.dsn
    protected.execute(f"alter table vps_billing_cycles owner to current_user; set role {OWNER}".encode())
    done = run_command("migrate", folder=tmp_path, DATABASE_URL=f"{url} user={OWNER}")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("; run migrate as the owner of the application's tables"), done.stderr
