"""The link loses packets. If it loses some, billing continues; if it loses all, the leader is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import psycopg
import pytest

from controller.demo.server import Installation
from tests.faults.lossy import LossyLink, lossy_link
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, LOW_BOUNDS, StartReplica, terminate
from tests.support.servers import Server, create_template
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually

#: A cycle takes about forty packets each way on new connections. TCP repeats a lost packet after 0.2, 0.4 and 0.8 s,
#: and the first packet of a connection after 1 and 3 s.
LOSSY_SECONDS: Final = 15.0
#: The low bounds' session timeout, and the 5 s after which the server ends an open transaction.
UNPLUGGED_SECONDS: Final = 8.0


@pytest.fixture
def link() -> Iterator[LossyLink]:
    with lossy_link() as made:
        yield made


@pytest.fixture
def far_server(fault_installation: Installation, link: LossyLink) -> Iterator[Server]:
    """A server that listens at this end of the link."""
    with Server(fault_installation, {"listen_addresses": f"127.0.0.1,{link.server_address}"}) as server:
        with (server.folder / "data" / "pg_hba.conf").open("a", encoding="utf-8") as file:
            file.write(f"host all all {link.network} trust\n")
        with psycopg.connect(server.url()) as conn:
            conn.execute("select pg_reload_conf()")
        yield server


@pytest.mark.runs(20, older=2)
@pytest.mark.timeout(300)
def test_leader_keeps_billing_over_a_link_that_loses_a_twentieth_of_all_packets(
    *, link: LossyLink, far_server: Server, start: StartReplica, timings: Timings, runs: int
) -> None:
    url = far_server.create_database("billed", create_template(far_server))
    with psycopg.connect(url, autocommit=True) as conn:
        ledger = LedgerProbe(conn)
        ledger.add()
        leader = start(url.replace("127.0.0.1", link.server_address), *link.launcher, **BUSY)
        leader.wait_for("cycle.completed")
        standby = start(url, **BUSY)
        wait_until_standing_by(ledger, standby)
        link.lose(0.05)
        for _ in range(runs):
            since = datetime.now(UTC)
            ledger.add(organizations=1)
            eventually(lambda: ledger.all_billed, "everything is billed across the link")
            seconds = seconds_to_next_charge(ledger, since)
            timings.record("link loses a twentieth of all packets", seconds, ledger.judge(), bound=LOSSY_SECONDS)
        assert not leader.events("leader.deposed")
        assert not standby.events("leader.elected")


@pytest.mark.runs(5, older=1)
@pytest.mark.timeout(180)
def test_leader_is_replaced_if_its_link_loses_everything(
    *, link: LossyLink, far_server: Server, start: StartReplica, timings: Timings, runs: int
) -> None:
    url = far_server.create_database("billed", create_template(far_server))
    with psycopg.connect(url, autocommit=True) as conn:
        ledger = LedgerProbe(conn)
        ledger.add()
        for _ in range(runs):
            leader = start(url.replace("127.0.0.1", link.server_address), *link.launcher, **BUSY, **LOW_BOUNDS)
            leader.wait_for("leader.elected")
            ledger.add(organizations=1)
            eventually(lambda: ledger.all_billed, "it bills")
            standby = start(url, **BUSY, **LOW_BOUNDS)
            wait_until_standing_by(ledger, standby)
            since = datetime.now(UTC)
            link.lose(1)
            deposed, elected = leader.wait_for("leader.deposed"), standby.wait_for("leader.elected")
            assert deposed.read_at < elected.read_at, "the leader stopped before its successor began"
            ledger.add(organizations=1)
            eventually(lambda: ledger.all_billed, "the successor bills")
            seconds = seconds_to_next_term(ledger, since)
            timings.record("link loses everything, low bounds", seconds, ledger.judge(), bound=UNPLUGGED_SECONDS)
            leader.kill()
            link.lose(0)
            assert terminate(standby) == 0
