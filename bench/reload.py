"""Settings of a running server, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import sql

from controller.demo.server import Server


@contextmanager
def changed_settings(server: Server, settings: Mapping[str, str]) -> Iterator[None]:
    """For every session, until the context ends; only what a reload can change."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        try:
            for name, value in settings.items():
                admin.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            admin.execute("select pg_reload_conf()")
            yield
        finally:
            for name in settings:
                admin.execute(sql.SQL("alter system reset {}").format(sql.Identifier(name)))
            admin.execute("select pg_reload_conf()")
