"""Fixtures: the program on a migrated database with work to do, on others, and on none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from controller.demo.sample import Size, create_data, create_schema
from tests.acceptance.program import Program, QuickProgram
from tests.support.servers import (
    TEMPLATE,
    Server,
    chosen_installation,
    create_template,
    shared_server,
    temporary_database,
)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for all tests: the version of PostgreSQL makes no difference to the command line."""
    with shared_server(chosen_installation(request.config)) as running:
        create_template(running)
        yield running


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The URL of a migrated database with sample data."""
    with temporary_database(server, TEMPLATE) as url:
        with psycopg.connect(url) as conn:
            create_data(conn, Size(organizations=12, instances=60))
        yield url


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    with temporary_database(server) as url:
        yield url


@pytest.fixture
def foreign_database(empty_database: str) -> str:
    """The URL of a database with the application's tables, not migrated."""
    with psycopg.connect(empty_database, autocommit=True) as conn:
        create_schema(conn)
    return empty_database


@pytest.fixture
def program(database: str, tmp_path: Path) -> Program:
    """The program on `database`, in an empty folder."""
    return Program(tmp_path, {"DATABASE_URL": database})


@pytest.fixture
def quick_program(database: str, tmp_path: Path) -> Program:
    """The same in this process."""
    return QuickProgram(tmp_path, {"DATABASE_URL": database})


@pytest.fixture
def bare(tmp_path: Path) -> Program:
    """The program without settings."""
    return Program(tmp_path, {})


@pytest.fixture
def quick_bare(tmp_path: Path) -> Program:
    """The same in this process."""
    return QuickProgram(tmp_path, {})


@pytest.fixture
def replica(database: str) -> Iterator[ControllerProcess]:
    """A controller that leads on `database` and has completed a cycle."""
    running = ControllerProcess(database)
    try:
        running.wait_for("cycle.completed")
        yield running
    finally:
        running.remove()
