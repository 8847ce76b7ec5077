"""Fixtures of the fault tests: servers, a database with known charges, controllers, proxies, and the final table.

The short selection runs on the newest PostgreSQL that `--postgres` allows. `make faults` also uses the others.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller.demo.server import Installation
from tests.faults.lanes import ALONE, Lanes, share_out
from tests.faults.proxy import Proxy
from tests.faults.report import write_report
from tests.support.ledger_probe import LedgerProbe
from tests.support.servers import ORIGINS, TEMPLATE, Server, create_template, installation_of, temporary_database
from tests.support.timings import Timings

TIMINGS = pytest.StashKey[Timings]()
REPEATS = int(os.environ.get("FAULT_REPEATS", "1"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Chooses the servers of a test, and the number of runs if it is marked: `runs(20, short=2, older=4)`.

    The first number counts for the newest PostgreSQL in a full run, `short` for it in the short selection, and `older`
    for each other one. FAULT_REPEATS multiplies the numbers of a full run, and the tests' time limits.
    """
    if "fault_installation" not in metafunc.fixturenames:
        return
    servers = _servers(metafunc.config.getoption("--postgres"))
    if not servers:
        metafunc.parametrize("fault_installation", [pytest.param(None, marks=pytest.mark.skip("no PostgreSQL"))])
        return
    if (marker := metafunc.definition.get_closest_marker("runs")) is None:
        slow = metafunc.definition.get_closest_marker("slow")
        metafunc.parametrize(
            "fault_installation", servers if slow else servers[:1], ids=_name_of, indirect=True, scope="session"
        )
        return
    newest, *others = servers
    older = marker.kwargs.get("older", 2)
    counts = [(newest, REPEATS * marker.args[0]), *((each, REPEATS * older) for each in others if older)]
    parameters = [pytest.param(*each, id=f"{_name_of(each[0])}-{each[1]}", marks=pytest.mark.slow) for each in counts]
    if short := marker.kwargs.get("short", 0):
        parameters.insert(0, pytest.param(newest, short, id=f"{_name_of(newest)}-{short}"))
    metafunc.parametrize(("fault_installation", "runs"), parameters, indirect=["fault_installation"], scope="session")


@cache
def _servers(chosen: str) -> list[Installation]:
    """The chosen installations, newest first."""
    found = [installation_of(origin) for origin in ORIGINS if chosen in (origin, "all")]
    return sorted((each for each in found if each), key=lambda each: -each.version)


def _name_of(installation: Installation) -> str:
    return f"{installation.version}-{installation.origin}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-report",
        type=Path,
        metavar="FILE",
        help="write the table of faults and a description of this machine between the markers of this Markdown file",
    )
    parser.addoption("--lanes", type=int, default=1, help="split the fault tests between this many parallel runs")
    parser.addoption("--lane", type=int, default=0, help="the number of this run; the first run sets it")
    parser.addoption(
        "--lane-timings", type=Path, metavar="FILE", help="the file for the times of this run; the first run sets it"
    )


def pytest_configure(config: pytest.Config) -> None:
    timings = config.stash[TIMINGS] = Timings()
    # pytest finds this file only during collection if it runs all tests; then these options don't exist
    if (lanes := config.getoption("lanes", 1)) > 1 and config.getoption("lane") == 0:
        config.pluginmanager.register(Lanes(config.invocation_params.args, lanes, timings))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if REPEATS > 1 and item.get_closest_marker("runs") and item.get_closest_marker("slow"):
            limit = item.get_closest_marker("timeout")
            seconds = float(limit.args[0] if limit else config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(REPEATS * seconds), append=False)
    if (lanes := config.getoption("lanes", 1)) > 1:
        files = share_out(items, lanes)[config.getoption("lane")]
        config.hook.pytest_deselected(items=[item for item in items if item.path not in files])
        items[:] = sorted((item for item in items if item.path in files), key=lambda item: item.path.name == ALONE)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if kept := session.config.getoption("lane_timings", None):
        kept.write_text(session.config.stash[TIMINGS].as_json(), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    timings = config.stash[TIMINGS]
    lines = timings.lines()
    if not lines or config.getoption("lane_timings", None):
        return
    terminalreporter.section("faults: how long nothing was billed, and what it cost")
    for line in lines:
        terminalreporter.write_line(line)
    if report := config.getoption("fault_report", None):
        write_report(report, timings)
        terminalreporter.write_line(f"written to {report}")


@pytest.fixture(scope="session")
def timings(request: pytest.FixtureRequest) -> Timings:
    """The measured times of this session."""
    return request.config.stash[TIMINGS]


@pytest.fixture(scope="session")
def fault_installation(request: pytest.FixtureRequest, timings: Timings) -> Installation:
    found: Installation = request.param
    said = subprocess.run([found.program("postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    timings.server = said.removeprefix("postgres (PostgreSQL) ").strip()
    return found


@pytest.fixture(scope="session")
def server(fault_installation: Installation) -> Iterator[Server]:
    """A running server. Tests share it: don't stop it."""
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
    """A running server for one module, whose tests may stop it but must leave it running."""
    with Server(fault_installation) as running:
        create_template(running)
        yield running


@pytest.fixture
def own_database(own_server: Server) -> Iterator[str]:
    """As `database`, on `own_server`."""
    with temporary_database(own_server, TEMPLATE) as url:
        yield url


@pytest.fixture
def own_proxy(own_server: Server) -> Iterator[Proxy]:
    """A proxy in front of `own_server`."""
    with Proxy(("127.0.0.1", own_server.port)) as running:
        yield running


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ledger(conn: psycopg.Connection[Any]) -> LedgerProbe:
    """A probe of a database with known charges due."""
    made = LedgerProbe(conn)
    made.add()
    return made


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with Proxy(("127.0.0.1", server.port)) as running:
        yield running


@pytest.fixture
def seed() -> int:
    """The seed of this run's randomness. FAULT_SEED repeats a run; a failing test prints it."""
    chosen = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"FAULT_SEED={chosen}")  # noqa: T201 - pytest shows it with a failure
    return chosen
