"""Fixtures of the fault tests: a server, a database whose cents are known, replicas, proxies, and the table at the end.

The short selection runs on the newest PostgreSQL there is, what is marked slow on each that `--postgres` allows.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from controller.demo.server import Installation, Server
from tests.faults.books import Books
from tests.faults.proxy import Proxy
from tests.faults.replica import Replica
from tests.faults.timings import Timings
from tests.servers import ORIGINS, TEMPLATE, create_template, installation_of, temporary_database

TIMINGS = pytest.StashKey[Timings]()

StartReplica = Callable[..., Replica]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault_installation" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--postgres")
    found = [installation_of(origin) for origin in ORIGINS if chosen in (origin, "all")]
    newest_first = sorted((each for each in found if each), key=lambda each: -each.version)
    if not newest_first:
        metafunc.parametrize("fault_installation", [pytest.param(None, marks=pytest.mark.skip("no PostgreSQL"))])
        return
    slow = metafunc.definition.get_closest_marker("slow")
    metafunc.parametrize(
        "fault_installation",
        newest_first if slow else newest_first[:1],
        ids=lambda each: f"{each.version}-{each.origin}",
        indirect=True,
        scope="session",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TIMINGS] = Timings()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401 - pytest keeps the type
    if lines := config.stash.setdefault(TIMINGS, Timings()).lines():
        terminalreporter.section("faults: billing without a leader")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def timings(request: pytest.FixtureRequest) -> Timings:
    """Where measured times go."""
    return request.config.stash.setdefault(TIMINGS, Timings())


@pytest.fixture(scope="session")
def fault_installation(request: pytest.FixtureRequest) -> Installation:
    found: Installation = request.param
    return found


@pytest.fixture(scope="session")
def server(fault_installation: Installation) -> Iterator[Server]:
    """A running server, shared: leave it running."""
    with Server(fault_installation) as running:
        yield running


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    return create_template(server)


@pytest.fixture
def database(server: Server, template: str) -> Iterator[str]:
    """The URL of a fresh database with the sample schema, migrated, without rows."""
    with temporary_database(server, template) as url:
        yield url


@pytest.fixture(scope="module")
def own_server(fault_installation: Installation) -> Iterator[Server]:
    """A running server of the module's own: to stop and restart. Leave it running."""
    with Server(fault_installation) as running:
        create_template(running)
        yield running


@pytest.fixture
def own_database(own_server: Server) -> Iterator[str]:
    """As `database`, on the module's own server."""
    with temporary_database(own_server, TEMPLATE) as url:
        yield url


@pytest.fixture
def own_proxy(own_server: Server) -> Iterator[Proxy]:
    """Between one replica and the module's own server."""
    with Proxy(("127.0.0.1", own_server.port)) as running:
        yield running


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def books(conn: psycopg.Connection[Any]) -> Books:
    """An installation with work to do, of which every cent is known."""
    made = Books(conn)
    made.add()
    return made


@pytest.fixture
def start() -> Iterator[StartReplica]:
    """Starts replicas: `start(url, SETTING="value", ...)`; none survives the test."""
    started: list[Replica] = []

    def start_one(url: str, **settings: str) -> Replica:
        started.append(Replica(url, **settings))
        return started[-1]

    yield start_one
    with ExitStack() as stack:
        for replica in started:
            stack.callback(replica.remove)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Between one replica and the server."""
    with Proxy(("127.0.0.1", server.port)) as running:
        yield running


@pytest.fixture
def seed() -> int:
    """Of this run's randomness; FAULT_SEED repeats it. A failing test shows it among what it printed."""
    chosen = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"FAULT_SEED={chosen}")  # noqa: T201 - pytest shows it with a failure
    return chosen
