"""A streaming standby of a server, asynchronous or synchronous, over a link that can fall silent; and its promotion."""

from __future__ import annotations

from pathlib import Path

import psycopg

from controller.demo.server import ServerError
from tests.faults.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import eventually


class StandbyServer(Server):
    """A hot standby of `primary`, made by pg_basebackup. Replication goes through `link`, which can stall."""

    def __init__(self, primary: Server) -> None:
        super().__init__(primary.installation)
        self.primary = primary
        self.link = Proxy(("127.0.0.1", primary.port))

    def remove(self) -> None:
        """Removes the server and closes its link."""
        self.link.close()
        super().remove()

    def replicate_synchronously(self) -> None:
        """Makes the primary wait for this server before it acknowledges a commit. Returns once that works."""
        with psycopg.connect(self.primary.url(), autocommit=True) as conn:
            conn.execute("alter system set synchronous_standby_names = '*'")
            conn.execute("select pg_reload_conf()")
            query = "select count(*) from pg_stat_replication where sync_state = 'sync'"
            eventually(lambda: conn.execute(query).fetchone() == (1,), "the standby is synchronous")

    def wait_until_caught_up(self) -> None:
        """Blocks until this server has replayed what the primary has written so far."""
        with (
            psycopg.connect(self.primary.url(), autocommit=True) as primary,
            psycopg.connect(self.url(), autocommit=True) as standby,
        ):
            (written,) = primary.execute("select pg_current_wal_insert_lsn()").fetchone() or (None,)
            query = "select pg_last_wal_replay_lsn() >= %s"
            eventually(lambda: standby.execute(query, [written]).fetchone() == (True,), "the standby has caught up")

    def promote(self) -> None:
        """Makes this server a primary that waits for no standby. It accepts writes when this returns."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            assert conn.execute("select pg_promote(true, 20)").fetchone() == (True,)

    def _make_data(self, data: Path) -> None:
        status, text = self._account.output(
            self.installation.program("pg_basebackup"),
            f"--pgdata={data}",
            f"--dbname=postgresql://postgres@127.0.0.1:{self.link.port}/postgres",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        )
        if status != 0:
            raise ServerError(f"pg_basebackup of {self.installation.title} failed: {text}")
        with (data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            file.write(f"unix_socket_directories = '{self.folder}'\nsynchronous_standby_names = ''\n")
            # a standby that waits to reconnect to its primary notices a promotion only after that wait, 5 s by default
            file.write("wal_retrieve_retry_interval = '500ms'\n")
