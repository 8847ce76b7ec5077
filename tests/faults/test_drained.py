"""The `drain` command, as a preStop hook runs it. It drains as a signal does, and may be repeated."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from controller.demo.process import ControllerProcess
from controller.lifecycle.control import request_drain
from tests.faults.proxy import Proxy
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import StartReplica, count_for, drain, terminate
from tests.support.sessions import lock_holders, status_row, wait_until_standing_by
from tests.support.waiting import eventually, through

SMALL_BATCHES: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3"}
CHARGE: Final = "insert into billing_wallet_baselines"


def test_drain_command_waits_for_the_cycle_and_then_the_replica_ends(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    with proxy.hold(" worker ", starts_with(CHARGE)) as hold:
        leader = start(through(database, proxy.port), **SMALL_BATCHES)
        hold.wait()
        command = drain(leader)
        leader.wait_for("drain.started", reason="drain command")
        assert command.poll() is None
    out, err = command.communicate(timeout=10)
    assert (command.returncode, out, err) == (0, "drain completed\n", "")
    assert lock_holders(ledger) == 0
    assert leader.wait(within=10) == 0
    assert len(leader.events("leader.elected")) == 1
    assert (status_row(ledger, leader) or {})["status"] == "stopped"
    ledger.judge()


def test_drain_requested_by_many_is_done_once(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    """The requests come from threads: three new processes could take longer than a batch may be held."""
    with ThreadPoolExecutor(3) as pool, proxy.hold(" worker ", starts_with(CHARGE)) as hold:
        leader = start(through(database, proxy.port), **SMALL_BATCHES)
        hold.wait()
        requests = [pool.submit(request_drain, leader.folder / "control.sock", None) for _ in range(3)]
        eventually(lambda: _connected_clients(leader) == 3, "three requests wait")
        leader.signal(signal.SIGTERM)
    assert [request.result(timeout=10) for request in requests] == ["completed"] * 3
    assert leader.wait() == 0
    assert len(leader.events("drain.started")) == len(leader.events("drain.completed")) == 1
    assert leader.events("cycle.completed")


def test_signal_after_a_drain_command_ends_the_replica_at_once(
    database: str, start: StartReplica, ledger: LedgerProbe
) -> None:
    leader = start(database)
    leader.wait_for("cycle.completed")
    command = drain(leader)
    assert command.communicate(timeout=10) == ("drain completed\n", "")
    sent_at = leader.signal(signal.SIGTERM)
    assert leader.wait() == 0
    assert leader.wait_for("controller.stopped").read_at - sent_at < 1.5


def test_drained_standby_never_leads(database: str, start: StartReplica, ledger: LedgerProbe) -> None:
    leader = start(database)
    leader.wait_for("cycle.completed")
    standby = start(database)
    wait_until_standing_by(ledger, standby)
    command = drain(standby)
    assert command.communicate(timeout=10) == ("drain completed\n", "")
    leader.kill()
    assert count_for(standby, 1.5, "election.joined", "leader.elected") == 0
    assert terminate(standby) == 0
    assert not standby.events("leader.elected")


def test_drain_without_time_stops_after_the_batch_and_says_so(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    with proxy.hold(" worker ", starts_with(CHARGE)) as hold:
        leader = start(through(database, proxy.port), **SMALL_BATCHES)
        hold.wait()
        command = drain(leader, "--timeout", "0")
        leader.wait_for("drain.timed_out")
    out, _ = command.communicate(timeout=10)
    assert (command.returncode, out) == (1, "drain timed out\n")
    assert terminate(leader) == 0
    assert leader.events("cycle.stopped")


def _connected_clients(replica: ControllerProcess) -> int:
    """Clients connected to its control socket, as Linux lists them."""
    lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()
    return sum(str(replica.folder / "control.sock") in line and " 03 " in line for line in lines)
