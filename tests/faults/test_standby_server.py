"""No replica leads on a standby server until it is promoted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg
import pytest

from controller.demo.process import run_command
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import StartReplica, count_for
from tests.support.servers import Server
from tests.support.waiting import eventually, through

#: The most tries a second of one replica on a server that refuses leaders.
MOST_TRIES: Final = 5


@pytest.fixture
def standby_server(own_server: Server, own_database: str) -> Iterator[Server]:
    """A hot standby of `own_server` with a copy of `own_database`."""
    standby = Server(own_server.installation)
    with standby:
        standby.stop()
        data = standby.folder / "data"
        shutil.rmtree(data)
        status, text = standby._account.output(
            standby.installation.program("pg_basebackup"),
            f"--pgdata={data}",
            f"--dbname={own_server.url()}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        )
        assert status == 0, text
        with (data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            file.write(f"unix_socket_directories = '{standby.folder}'\n")
        standby.start()
        yield standby


@pytest.fixture
def own_ledger(own_database: str) -> Iterator[LedgerProbe]:
    with psycopg.connect(own_database, autocommit=True) as conn:
        ledger = LedgerProbe(conn)
        ledger.add()
        yield ledger


def promote(server: Server) -> None:
    with psycopg.connect(server.url(), autocommit=True) as conn:
        assert conn.execute("select pg_promote(true, 20)").fetchone() == (True,)


def test_standby_server_has_no_leader_until_it_is_promoted(
    own_database: str, own_ledger: LedgerProbe, standby_server: Server, start: StartReplica
) -> None:
    url = through(own_database, standby_server.port)
    replica = start(url)
    replica.wait_until(lambda line: "recovery" in str(line.fields.get("error")), "refusal to lead in recovery")
    assert count_for(replica, 2.0, "session.failed", "election.joined") <= 2, "once for each outage"
    assert not replica.events("leader.elected")
    with psycopg.connect(standby_server.url(), autocommit=True) as conn:
        before = conn.execute("select sum(sessions)::int from pg_stat_database").fetchone()
        count_for(replica, 2.0)
        after = conn.execute("select sum(sessions)::int from pg_stat_database").fetchone()
        assert before is not None
        assert after is not None
        assert after[0] - before[0] <= 2 * MOST_TRIES, "it hammers the server with new sessions"
    promote(standby_server)
    replica.wait_for("cycle.completed")
    with psycopg.connect(url, autocommit=True) as conn:
        own_ledger.conn = conn
        own_ledger.judge()


def test_bill_on_a_standby_server_says_why_it_cannot(own_database: str, standby_server: Server, tmp_path: Path) -> None:
    url = through(own_database, standby_server.port)
    done = run_command("bill", folder=tmp_path, DATABASE_URL=url)
    assert "another replica" not in done.stderr
    assert "recovery" in done.stderr
    assert done.returncode in {1, 3}


def test_several_hosts_follow_a_promotion(
    own_server: Server, own_database: str, own_ledger: LedgerProbe, standby_server: Server, start: StartReplica
) -> None:
    name = own_database.rpartition("/")[2]
    hosts = f"127.0.0.1:{own_server.port},127.0.0.1:{standby_server.port}"
    replica = start(f"postgresql://postgres@{hosts}/{name}?target_session_attrs=read-write")
    replica.wait_for("cycle.completed")
    caught_up = "select replay_lsn = pg_current_wal_lsn() from pg_stat_replication"
    eventually(lambda: bool(own_ledger.one(caught_up)), "the standby has replayed everything")
    try:
        own_server.stop("immediate")
        promote(standby_server)
        elected = replica.wait_until(
            lambda line: line.event == "leader.elected" and line["term"] > 1, "election on the promoted server"
        )
        assert elected["term"] == 2
        with psycopg.connect(through(own_database, standby_server.port), autocommit=True) as conn:
            own_ledger.conn = conn
            own_ledger.judge()
    finally:
        with suppress(psycopg.Error):
            own_ledger.conn.close()
        own_server.start()
