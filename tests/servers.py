"""The PostgreSQL servers that tests run against, and databases on them that cost milliseconds.

Each test gets a database of its own, copied from a template that has the sample ContainerStacks
schema and this project's migrations in it already.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import psycopg

from controller.demo.sample import create_schema
from controller.demo.server import Installation, Server, find_installations
from controller.postgres.migrations import migrate_url

Origin = Literal["installed", "embedded"]
ORIGINS: Final[tuple[Origin, ...]] = ("installed", "embedded")
TEMPLATE: Final = "migrated_template"

_numbers = itertools.count(1)


def installation_of(origin: Origin) -> Installation | None:
    """The newest installation of this origin, if there is one."""
    return next((each for each in find_installations() if each.origin == origin), None)


def prepare_template(url: str) -> None:
    """Load the application's sample schema and apply this project's migrations."""
    with psycopg.connect(url, autocommit=True) as conn:
        create_schema(conn)
    migrate_url(url)


def create_template(server: Server) -> str:
    """Make the template database on a server that has none; its name."""
    prepare_template(server.create_database(TEMPLATE))
    return TEMPLATE


@contextmanager
def temporary_database(server: Server, template: str | None = None) -> Iterator[str]:
    """A database's URL; it is dropped afterwards, whoever is still connected."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    url = server.create_database(name, template)
    try:
        yield url
    finally:
        if server.running:
            server.drop_database(name)


@contextmanager
def migrated_database(server: Server) -> Iterator[str]:
    """As `temporary_database`, with the sample schema, migrated, without rows; for a server without a template."""
    with temporary_database(server) as url:
        prepare_template(url)
        yield url
