"""`migrate --wait` retries at an interval that fits the cause, says why it waits, and gives up in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from psycopg.errors import FinishedPGconn

from controller.app import Application
from controller.election import LockSessionError
from controller.errors import BillingError, DatabaseUnreachableError, SecretFileError, SettingsError
from controller.postgres.migrations import ForeignDatabaseError, PendingMigrationsError, SchemaError
from controller.postgres.patience import patiently, retry_seconds
from controller.postgres.refusals import is_refusal
from controller.settings import load

UNREACHABLE = DatabaseUnreachableError("no route")
REFUSED = DatabaseUnreachableError("wrong password", refused=True)


class Wait:
    """Runs `patiently` on a clock that only sleeping moves."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = iter(failures)
        self.now = 0.0
        self.attempts: list[float] = []
        self.said: list[tuple[float, str]] = []

    def run(self, seconds: float) -> str:
        return patiently(self._attempt, seconds, self._say, lambda: self.now, self._sleep)

    def _attempt(self) -> str:
        self.attempts.append(self.now)
        for failure in self.failures:
            raise failure
        return "migrated"

    def _say(self, line: str) -> None:
        self.said.append((self.now, line))

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def always(error: Exception) -> Iterator[Exception]:
    while True:
        yield error


def from_database(cause: psycopg.Error, error: Callable[[str], BillingError] = SchemaError) -> BillingError:
    made = error("migration 017 failed")
    made.__cause__ = cause
    return made


def test_ready_database_is_not_waited_for() -> None:
    wait = Wait()
    assert wait.run(600) == "migrated"
    assert (wait.attempts, wait.said) == ([0.0], [])


def test_unreachable_database_is_tried_every_second_until_it_answers() -> None:
    wait = Wait(*[UNREACHABLE] * 3)
    assert wait.run(600) == "migrated"
    assert wait.attempts == [0.0, 1.0, 2.0, 3.0]


def test_refused_login_is_tried_every_thirty_seconds() -> None:
    wait = Wait(*[REFUSED] * 2)
    wait.run(600)
    assert wait.attempts == [0.0, 30.0, 60.0]


def test_reason_is_reported_once_then_every_minute_and_at_once_when_it_changes() -> None:
    wait = Wait(*[UNREACHABLE] * 130, REFUSED)
    wait.run(600)
    assert [at for at, _ in wait.said] == [0.0, 60.0, 120.0, 130.0]
    assert wait.said[0][1] == "waiting for up to 600 s: no route"
    assert wait.said[-1][1] == "waiting for up to 470 s: wrong password"


@pytest.mark.parametrize("error", [UNREACHABLE, REFUSED])
def test_end_of_the_wait_is_exit_status_3_with_the_last_reason(error: DatabaseUnreachableError) -> None:
    wait = Wait()
    wait.failures = always(error)
    with pytest.raises(DatabaseUnreachableError, match=f"gave up after 45 s: {error}") as failure:
        wait.run(45)
    assert failure.value.exit_status == 3
    assert wait.now == 45.0


def test_replica_tries_again_while_its_secret_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "missing"))
    application = Application(load(None))
    with pytest.raises(LockSessionError, match="missing can't be read: No such file"):
        application.open_lock_session()


def test_without_a_wait_the_first_failure_is_raised_unchanged() -> None:
    wait = Wait(SecretFileError("DATABASE_URL_FILE is empty"))
    with pytest.raises(SecretFileError, match=r"^DATABASE_URL_FILE is empty$"):
        wait.run(0)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (SecretFileError("missing"), 1),
        (PendingMigrationsError("not applied"), 1),
        (errors.AdminShutdown("terminating connection"), 1),
        (from_database(errors.ReadOnlySqlTransaction("read-only")), 1),
        (ForeignDatabaseError("no wallets"), 30),
        (errors.InsufficientPrivilege("permission denied"), 30),
        (from_database(errors.InsufficientPrivilege("permission denied")), 30),
        (SettingsError("DATABASE_URL is not set"), None),
        (from_database(errors.SyntaxError("at or near")), None),
        (errors.UndefinedTable("no such table"), None),
    ],
    ids=str,
)
def test_wait_depends_on_who_has_to_end_the_failure(error: Exception, seconds: float | None) -> None:
    assert retry_seconds(error) == seconds


def attempt(text: str, *, used_password: bool = False, needs_password: bool = False) -> psycopg.OperationalError:
    state = FinishedPGconn(used_password=used_password, needs_password=needs_password)
    return psycopg.OperationalError(text, pgconn=state)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (attempt('connection to server at "::1", port 1 failed: Connection refused'), False),
        (attempt("could not translate host name"), False),
        (attempt("FATAL:  the database system is starting up"), False),
        (attempt("FATAL:  sorry, too many clients already", used_password=True), False),
        (attempt("FATAL:  password authentication failed", used_password=True), True),
        (attempt("FATAL:  Passwort-Authentifizierung fehlgeschlagen", used_password=True), True),
        (attempt("fe_sendauth: no password supplied", needs_password=True), True),
        (attempt("FATAL:  no pg_hba.conf entry for host"), True),
        (attempt('FATAL:  database "x" does not exist'), True),
        (attempt("SSL error: certificate verify failed"), True),
        (attempt('root certificate file "/ca/ca.crt" does not exist'), False),
        (psycopg.errors.ConnectionTimeout("connection timeout expired"), False),
    ],
    ids=str,
)
def test_refused_login_differs_from_an_unreachable_server(error: psycopg.Error, refused: bool) -> None:  # noqa: FBT001
    assert is_refusal(error) is refused
