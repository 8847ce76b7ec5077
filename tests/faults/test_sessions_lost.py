"""The server ends single sessions, or the network cuts them. No two replicas lead, and no hour is lost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import cycle, islice
from typing import Any, Final

import pytest

from controller.demo.process import ControllerProcess
from tests.faults.proxy import Hold, Proxy, When
from tests.faults.wire import Statement, starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, LOW_BOUNDS, StartReplica, count_for
from tests.support.sessions import end_sessions, wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually, through

BOUND_SECONDS: Final = 2.0


#: The distinct moments of a batch, as server and client see them.
IN_A_BATCH: Final[list[tuple[str, When]]] = [
    ("COMMIT", "after"),
    ("with costed as materialized", "after"),
    ("insert into billing_wallet_baselines", "before"),
    ("COMMIT", "before"),
    ("BEGIN", "after"),
]


def contains(sql: str) -> Any:  # noqa: ANN401 - a predicate
    def matches(statement: Statement) -> bool:
        return sql in statement.sql

    return matches


@pytest.mark.parametrize("how", ["ended by the server", "cut"])
@pytest.mark.runs(20, short=2)
def test_leader_whose_lock_session_is_lost_is_deposed_at_once(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, how: str, runs: int
) -> None:
    replicas = [start(through(database, proxy.port)) for _ in range(2)]
    term = 1
    for _ in range(runs):
        leader = _wait_for_leader(replicas, term)
        (standby,) = (each for each in replicas if each is not leader)
        wait_until_standing_by(ledger, standby)
        since = datetime.now(UTC)
        lost = end_sessions(ledger, "elector", leader) if how != "cut" else proxy.cut(f"elector {leader.instance}")
        assert lost == 1
        leader.wait_for("leader.deposed", term=term, within=BOUND_SECONDS)
        term += 1
        _wait_for_leader(replicas, term)
        seconds = seconds_to_next_term(ledger, since)
        eventually(lambda: ledger.all_billed, "everything is billed")
        timings.record(f"lock session lost: {how}", seconds, ledger.judge(), bound=BOUND_SECONDS)


def test_leader_deposed_inside_a_batch_commits_nothing_after_its_successors_term(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY)
    wait_until_standing_by(ledger, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with("BEGIN")) as hold:
        ledger.add(organizations=3)
        hold.wait()
        proxy.refuse()  # otherwise the leader would be back before the standby
        end_sessions(ledger, "elector", leader)
        standby.wait_for("leader.elected")
        hold.release()
        leader.wait_for("cycle.deposed")
    proxy.accept()
    standby.wait_for("cycle.completed")
    ledger.judge()


@pytest.mark.parametrize("how", ["ended by the server", "cut"])
@pytest.mark.runs(20, short=2)
def test_worker_session_lost_in_a_batch_is_replaced_and_nothing_charged_again(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, how: str, runs: int
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    for statement, when in islice(cycle(IN_A_BATCH), runs):
        with proxy.hold(f"worker {leader.instance}", starts_with(statement), when) as hold:
            ledger.add_between_cycles(3)
            hold.wait()
            since = datetime.now(UTC)
            lost = end_sessions(ledger, "worker", leader) if how != "cut" else proxy.cut(f"worker {leader.instance}")
            assert lost == 1
        last = leader.events()[-1]
        leader.wait_until(lambda line: line.event == "cycle.completed" and ledger.all_billed, "the end of it", last)
        seconds = seconds_to_next_charge(ledger, since)
        timings.record(f"worker session lost: {how}", seconds, ledger.judge(), bound=BOUND_SECONDS)
    assert not leader.events("cycle.failed", "leader.deposed")


def test_lock_session_cut_while_it_is_being_opened_is_opened_again(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    with ExitStack() as stack:
        holds = [stack.enter_context(proxy.hold("elector", _is_number(number))) for number in (1, 2)]
        replica = start(through(database, proxy.port))
        for number in range(3, 10):
            held = holds[-2]
            eventually(partial(_is_held_or_over, held, replica), f"statement {number - 2}")
            assert replica.running, replica.tail()
            holds.append(stack.enter_context(proxy.hold("elector", _is_number(number))))
            proxy.cut("elector")
            holds[-3].release()
    replica.wait_for("cycle.completed")
    assert not replica.events("service.crashed"), replica.tail()
    ledger.judge()


@pytest.mark.parametrize(
    "number", [6, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 3, 4, 5, 7, 8, 9))]
)
def test_session_of_the_cycle_cut_at_any_statement_costs_one_try(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, number: int
) -> None:
    replica = start(through(database, proxy.port))
    with proxy.hold("cycle", lambda statement: statement.number == number) as hold:
        held = hold.wait()
        proxy.cut("cycle")
    replica.wait_for("cycle.completed")
    assert not replica.events("service.crashed", "leader.deposed"), held
    ledger.judge()


def test_leader_killed_between_its_commit_and_the_answer_has_charged_once(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY)
    wait_until_standing_by(ledger, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with("COMMIT"), "after") as hold:
        ledger.add(organizations=3)
        hold.wait()
        leader.kill()
        proxy.cut(leader.instance)
    standby.wait_for("cycle.completed")
    ledger.judge()


def test_replica_that_a_slow_server_has_elected_bills(
    database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe
) -> None:
    """Together the mint's answers take longer than the leader's deadline; each one takes less than its timeout."""
    with (
        proxy.hold(" elector ", starts_with("lock table"), "after") as first,
        proxy.hold(" elector ", starts_with("with former"), "after") as second,
        proxy.hold(" elector ", contains("as held"), "after") as ping,
    ):
        replica = start(through(database, proxy.port), **LOW_BOUNDS)
        for hold in (first, second, ping):
            hold.wait()
            count_for(replica, 0.55)
            hold.release()
    replica.wait_for("cycle.completed", within=15)
    ledger.judge()


def _is_number(number: int) -> Any:  # noqa: ANN401 - a predicate
    def matches(statement: Statement) -> bool:
        return statement.number == number

    return matches


def _is_held_or_over(hold: Hold, replica: ControllerProcess) -> bool:
    return hold.reached.is_set() or not replica.running


def _wait_for_leader(replicas: Sequence[ControllerProcess], term: int) -> ControllerProcess:
    """The replica that leads under this term."""

    def leaders() -> list[ControllerProcess]:
        return [each for each in replicas if any(line["term"] == term for line in each.events("leader.elected"))]

    eventually(lambda: bool(leaders()), f"a replica leads under term {term}")
    (leader,) = leaders()
    return leader
