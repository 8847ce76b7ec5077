"""SIGTERM at any moment: the work in hand ends, a successor takes the lock, and no heartbeat is newer than its work."""

from __future__ import annotations

import signal
import socket
from typing import Final

import pytest

from controller.demo.process import ControllerProcess
from tests.faults.proxy import Proxy, When
from tests.faults.wire import starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import StartReplica, count_for, freeze, terminate, thaw
from tests.support.sessions import lock_holders, status_row, wait_until_standing_by
from tests.support.timings import Timings, handover_seconds, seconds_to_next_term
from tests.support.waiting import eventually, through

SMALL_BATCHES: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3"}
#: A cycle whenever something is due, and no heartbeat except at the end of a cycle.
WITHOUT_HASTE: Final = {**SMALL_BATCHES, "BILLING_INTERVAL_MINUTES": "0.003", "BILLING_HEARTBEAT_SECONDS": "1800"}
HANDOVER_SECONDS: Final = 0.3
KILLED_SECONDS: Final = 2.0
CHARGE: Final = "insert into billing_wallet_baselines"
#: The statements of a drain's last batch at which the replica dies.
DRAINING: Final[list[tuple[str, When]]] = [
    (CHARGE, "before"),
    ("COMMIT", "before"),
    ("COMMIT", "after"),
    ("with costed as materialized", "after"),
]


def assert_stopped_honestly(ledger: LedgerProbe, replica: ControllerProcess, outcome: str) -> None:
    """Checks that the status row says stopped, shows the last run, and has a heartbeat older than that run's end."""
    row = status_row(ledger, replica)
    assert row is not None
    assert row["status"] == "stopped"
    (run,) = ledger.rows("select * from billing_runs where holder = %s order by id desc limit 1", replica.instance)
    assert run["outcome"] == outcome
    assert (row["instances_billed"], row["total_amount"]) == (run["instances"], run["amount"])
    assert row["heartbeat_at"] < run["finished_at"], "the heartbeat was refreshed while stopping"


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(240)
def test_leader_stopped_inside_a_batch_finishes_its_cycle_first(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    url = through(database, proxy.port)
    leader = start(url, **WITHOUT_HASTE)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        with proxy.hold(f"worker {leader.instance}", starts_with(CHARGE)) as hold:
            ledger.add()
            hold.wait()
            standby = start(url, **WITHOUT_HASTE)
            wait_until_standing_by(ledger, standby)
            leader.signal(signal.SIGTERM)
            leader.wait_for("drain.started", reason="SIGTERM")
        assert leader.wait() == 0
        standby.wait_for("leader.elected")
        steps = ("drain.started", "cycle.completed", "leader.resigned", "drain.completed", "controller.stopped")
        assert [line.event for line in leader.events(*steps)][-len(steps) :] == list(steps)
        assert ledger.all_billed
        assert_stopped_honestly(ledger, leader, "completed")
        timings.record(
            "leader stopped: inside a batch", handover_seconds(ledger), ledger.judge(), bound=HANDOVER_SECONDS
        )
        leader = standby


def skip_trial(ledger: LedgerProbe) -> None:
    """Lets a leader bill without the trial that it needs on a database without a recent heartbeat."""
    ledger.conn.execute(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
        " values ('earlier-1', 'stopped', now())"
    )


def test_leader_keeps_lock_and_heartbeat_while_it_drains_and_logs_nothing_else(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    skip_trial(ledger)
    with proxy.hold(" worker ", starts_with(CHARGE)) as hold:
        leader = start(through(database, proxy.port), **SMALL_BATCHES, BILLING_HEARTBEAT_SECONDS="0.2")
        hold.wait()
        leader.signal(signal.SIGTERM)
        started = leader.wait_for("drain.started")

        def heartbeat() -> object:
            row = status_row(ledger, leader)
            return row and row["heartbeat_at"]

        before = heartbeat()
        eventually(lambda: heartbeat() != before, "a heartbeat during the drain", 3)
        assert lock_holders(ledger) == 1
        assert count_for(leader, 0.6, "service.stuck") == 0
        assert leader.events()[leader.events().index(started) + 1 :] == []
    assert leader.wait() == 0
    ledger.judge()


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(240)
def test_drain_that_outlasts_its_deadline_stops_after_the_batch_and_the_successor_continues(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    url, settings = through(database, proxy.port), {**WITHOUT_HASTE, "BILLING_DRAIN_TIMEOUT_SECONDS": "0.2"}
    leader = start(url, **settings)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        with proxy.hold(f"worker {leader.instance}", starts_with(CHARGE)) as hold:
            ledger.add()
            hold.wait()
            standby = start(url, **settings)
            wait_until_standing_by(ledger, standby)
            leader.signal(signal.SIGTERM)
            leader.wait_for("drain.timed_out")
        assert leader.wait() == 0
        assert leader.events("cycle.stopped")[-1]["instances"] == 3
        assert_stopped_honestly(ledger, leader, "stopped")
        standby.wait_for("cycle.completed")
        fault = "leader stopped: drain outlasts its deadline"
        timings.record(fault, handover_seconds(ledger), ledger.judge(), bound=HANDOVER_SECONDS)
        leader = standby


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(240)
def test_leader_killed_during_its_drain_is_replaced(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    url = through(database, proxy.port)
    leader = start(url, **WITHOUT_HASTE)
    leader.wait_for("cycle.completed")
    for number in range(runs):
        statement, when = DRAINING[number % len(DRAINING)]
        with proxy.hold(f"worker {leader.instance}", starts_with(statement), when) as hold:
            ledger.add()
            hold.wait()
            standby = start(url, **WITHOUT_HASTE)
            wait_until_standing_by(ledger, standby)
            leader.signal(signal.SIGTERM)
            leader.wait_for("drain.started")
            killed_at = leader.kill()
            proxy.cut(leader.instance)
        standby.wait_for("cycle.completed")
        seconds = seconds_to_next_term(ledger, killed_at)
        timings.record("leader killed: in the middle of its drain", seconds, ledger.judge(), bound=KILLED_SECONDS)
        leader = standby


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_stops_after_the_batch_in_hand(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, second: signal.Signals
) -> None:
    skip_trial(ledger)
    with proxy.hold(" worker ", starts_with(CHARGE)) as hold:
        leader = start(through(database, proxy.port), **SMALL_BATCHES)
        hold.wait()
        leader.signal(signal.SIGTERM)
        leader.wait_for("drain.started")
        leader.signal(second)
        leader.wait_for("drain.timed_out")
    assert leader.wait() == 0
    assert leader.events("cycle.stopped")[0]["instances"] == 3
    assert_stopped_honestly(ledger, leader, "stopped")


def test_two_signals_at_the_same_moment_both_count(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    skip_trial(ledger)
    with proxy.hold(" worker ", starts_with(CHARGE)) as hold:
        leader = start(through(database, proxy.port), **SMALL_BATCHES)
        hold.wait()
        freeze(leader)
        leader.signal(signal.SIGTERM)
        leader.signal(signal.SIGINT)
        thaw(leader)
        leader.wait_for("drain.timed_out", within=3)
    assert leader.wait() == 0


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(240)
def test_idle_leader_stopped_hands_over(
    database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(database, BILLING_HEARTBEAT_SECONDS="1800")
    leader.wait_for("cycle.completed")
    eventually(lambda: (status_row(ledger, leader) or {}).get("instances_billed") == 18, "the cycle's heartbeat")
    for _ in range(runs):
        standby = start(database, BILLING_HEARTBEAT_SECONDS="1800")
        wait_until_standing_by(ledger, standby)
        beat = (status_row(ledger, leader) or {})["heartbeat_at"]
        leader.signal(signal.SIGTERM)
        elected = standby.wait_for("leader.elected")
        resigned = leader.wait_for("leader.resigned")
        assert leader.wait() == 0
        row = status_row(ledger, leader)
        assert row is not None
        assert (row["status"], row["heartbeat_at"]) == ("stopped", beat)
        seconds = max(elected.read_at - resigned.read_at, 0.0)
        timings.record("leader stopped: idle", seconds, ledger.judge(), bound=HANDOVER_SECONDS)
        eventually(lambda: status_row(ledger, standby) is not None, "the successor's first heartbeat")  # noqa: B023 - now
        leader = standby


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_standby_stops_at_once_and_leaves_no_trace(
    database: str, start: StartReplica, ledger: LedgerProbe, number: signal.Signals
) -> None:
    leader = start(database)
    leader.wait_for("cycle.completed")
    standby = start(database)
    wait_until_standing_by(ledger, standby)
    sent_at = standby.signal(number)
    stopped = standby.wait_for("controller.stopped")
    assert standby.wait() == 0
    assert stopped.read_at - sent_at < 1.5
    assert status_row(ledger, standby) is None
    assert not leader.events("leader.deposed", "leader.resigned")


def test_replica_that_waits_for_a_mute_server_stops(start: StartReplica) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(10)
        replica = start(f"postgresql://user@127.0.0.1:{mute.getsockname()[1]}/database")
        peer, _ = mute.accept()
        with peer:
            assert peer.recv(1024)
            assert terminate(replica, within=12) == 0
