"""The session's PostgreSQL server and the databases on it, all reached through the workbench."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from controller.postgres.lock_session import LockName
from tests.e2e.waiting import eventually
from tests.e2e.workbench import Finished, SqlError, Url, Workbench

#: Reads the holder of the lock from the server, independently of the program under test.
_HOLDER: Final = """
select a.application_name
from pg_locks l join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid = %s::bigint::oid and l.objid = %s::bigint::oid
"""


def renamed(url: Url, *, user: str, password: str, database: str) -> Url:
    """The URL of another role and database on the same server. The names must need no encoding."""
    parts = urlsplit(url.text)
    hosts = parts.netloc.rpartition("@")[2]
    return Url(urlunsplit(parts._replace(netloc=f"{user}:{password}@{hosts}", path=f"/{database}")))


@dataclass(frozen=True)
class Database:
    """A database, owned by a role of the same name.

    Attributes:
        url: the owner's URL, which the controller uses.
    """

    bench: Workbench
    url: Url
    name: str

    def sql(self, text: str, *parameters: object) -> list[dict[str, Any]]:
        """Runs a statement and returns its rows."""
        return self.bench.sql(self.url, (text, list(parameters)))

    def one(self, text: str, *parameters: object) -> dict[str, Any]:
        """Runs a statement that returns exactly one row."""
        (row,) = self.sql(text, *parameters)
        return row

    def command(self, *arguments: str) -> Finished:
        """Runs a command of `containerstacks-billing` on this database."""
        return self.bench.run(["containerstacks-billing", *arguments], {"DATABASE_URL": self.url.text})

    def status(self) -> dict[str, Any]:
        """The output of `status --json`."""
        found: dict[str, Any] = self.command("status", "--json").read()
        return found

    def audit(self) -> str:
        """The findings of `audit`; empty if it is clean.

        The command exempts a wallet that differs from its transactions, since the application may overwrite one. No
        application runs here, so such a wallet is a finding.
        """
        done = self.command("audit", "--json")
        differs = done.status == 0 and any(
            each["exempt"] for each in json.loads(done.stdout)["findings"] if each["invariant"] == "wallet_balance"
        )
        return f"audit: status {done.status}\n{done.stdout}\n{done.stderr}" if done.status or differs else ""

    def holders(self) -> list[str]:
        """Instance ids of the sessions that hold the lock according to `pg_locks`."""
        key = LockName().catalog_key
        rows = self.sql(_HOLDER, key["lock_high"], key["lock_low"])
        return [str(row["application_name"]).rpartition(" ")[2] for row in rows]

    def seed(self, organizations: int = 40, instances: int = 400) -> None:
        """Creates the sample schema and data."""
        done = self.command("demo", "seed", "--organizations", str(organizations), "--instances", str(instances))
        assert done.status == 0, done.stderr or done.stdout
        # an organization that can never be charged would make every cycle one with failures
        self.sql("delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)")


@dataclass(frozen=True)
class PostgresServer:
    """A server on which the suite creates databases.

    Attributes:
        url: the URL of a role that may create databases and roles.
    """

    bench: Workbench
    url: Url

    @contextmanager
    def database(self, name: str, *, keep: bool = False) -> Iterator[Database]:
        """Creates an empty database with its role. Drops both afterwards, even with open sessions."""
        password = secrets.token_hex(12)
        self._execute(
            f"create role {name} login password '{password}'",
            # Without this only a superuser can create a database for another owner.
            f"grant {name} to current_user",
            f"create database {name} owner {name}",
        )
        try:
            yield Database(self.bench, renamed(self.url, user=name, password=password, database=name), name)
        finally:
            if not keep:
                eventually(lambda: self._dropped(name), f"database {name} is dropped", 60)

    def change_password(self, database: Database, password: str) -> Database:
        """Changes the password of the database's role and returns the database with its new URL."""
        self._execute(f"alter role {database.name} password '{password}'")
        return replace(database, url=renamed(self.url, user=database.name, password=password, database=database.name))

    def end_sessions(self, database: Database) -> int:
        """Ends every session of the database's role and returns their number."""
        text = "select count(pg_terminate_backend(pid)) as ended from pg_stat_activity where usename = %s"
        return int(self.bench.sql(self.url, (text, [database.name]))[0]["ended"])

    def asks_for_passwords(self, database: Database) -> bool:
        """True if the server rejects a wrong password."""
        wrong = renamed(self.url, user=database.name, password="wrong", database=database.name)
        try:
            self.bench.sql(wrong, ("select 1", []))
        except SqlError:
            return True
        return False

    def _dropped(self, name: str) -> bool:
        """Drops the database and its role. Fails while terminating replicas keep reconnecting."""
        try:
            self._execute(f"drop database if exists {name} with (force)", f"drop role if exists {name}")
        except SqlError as error:
            raise AssertionError(str(error)) from None
        return True

    def _execute(self, *statements: str) -> None:
        self.bench.sql(self.url, *((statement, []) for statement in statements))
