"""Errors that pass are tried again; any other error splits the batch."""

import threading
from decimal import Decimal

import psycopg
import pytest

from controller.billing.values import Batch, BatchResult, Cause, Outcome, ResumePoint, Run, Totals
from tests.integration.scripted_ledger import CommitScriptedLedger, ScriptedLedger, script_of
from tests.integration.world import LedgerAt, World
from tests.model import HOUR, NOON

D = Decimal
BILLED = Totals(instances=4, hours=20, amount=D("0.20"))


#: The statements of the first batch. Three fences come before its own: other billers, the run and the plan.
BATCH = (
    "fence", "charge_covered", "lock_organizations", "adopt_wallets",
    "reckon_ordered", "clear_open_rows", "settle_periods", "settle_wallets",
)  # fmt: skip


@pytest.mark.parametrize("first", [0, 4])
def test_worker_survives_the_end_of_its_session_at_every_statement(scripted_world: World, first: int) -> None:
    script, statements, ended = script_of(scripted_world), BATCH[first : first + 4], []

    def terminate(ledger: ScriptedLedger) -> None:
        scripted_world.run("select pg_terminate_backend(%s, 2000)", ledger.connection.info.backend_pid)
        ended.append(script.names[-1])

    for name in statements:
        script.act_before(name, terminate, occurrence=4 if name == "fence" else 1)
    assert scripted_world.bill(NOON, batch_size=2).totals == BILLED
    assert sorted(ended) == sorted(statements)
    assert scripted_world.violations() == {}
    assert scripted_world.bill(NOON).totals == Totals()


@pytest.mark.parametrize("batch_size", [2, 100])
def test_commit_whose_answer_is_lost_counts_debts_and_failures_once(database: str, batch_size: int) -> None:
    class Script(CommitScriptedLedger):
        pass

    def lose_answer(ledger: ScriptedLedger, before: bool) -> None:  # noqa: FBT001 - as ActAtCommit takes it
        if not before:
            ledger.connection.close()
            raise psycopg.OperationalError("the connection was lost in the COMMIT")

    with World(database, Script) as world:
        plan = world.plan("7.30")
        for balance in ("1.00", "0.02", None, "1.00"):
            organization = world.organization(balance)
            for _ in range(3):
                world.instance(organization, plan, NOON - 5 * HOUR)
        Script.commits = dict.fromkeys(range(20), lose_answer)
        result = world.bill(NOON, batch_size=batch_size)
        assert result.totals == Totals(7, 32, D("0.32"), 3, 3)
        assert world.rows(
            "select planned, instances, debts, charged_in_part, failures, vanished from billing_runs"
        ) == [{"planned": 12, "instances": 7, "debts": 3, "charged_in_part": 1, "failures": 3, "vanished": 0}]
        assert world.violations() == {}


@pytest.mark.parametrize("answers", [True, False])
def test_commit_that_the_server_has_not_finished_is_waited_for(database: str, answers: bool) -> None:  # noqa: FBT001
    """A synchronous standby can delay a commit for longer than the session lives. Its locks are held meanwhile."""

    class Script(CommitScriptedLedger):
        pass

    committing: list[psycopg.pq.abc.PGconn] = []
    waits = 0

    def lose_session(ledger: ScriptedLedger, before: bool) -> None:  # noqa: FBT001 - as ActAtCommit takes it
        if before:
            committing.append(ledger.connection.pgconn)
            ledger.connection.pgconn = psycopg.pq.PGconn.connect(b"host=/nonexistent")
            raise psycopg.OperationalError("the connection was lost in the COMMIT")

    def pause(_seconds: float) -> None:
        nonlocal waits
        waits += 1
        if answers and waits == 3:
            committing[0].exec_(b"COMMIT")

    with World(database, Script) as world:
        world.instance(world.organization("0.00"), world.plan("7.30"), NOON - 5 * HOUR)
        Script.commits = {0: lose_session}
        result = world.cycle(NOON, pause=pause).run(world.lead())
        committing[0].finish()
        if answers:
            assert (waits, result.totals) == (3, Totals(debts=1))
            assert world.rows("select planned, debts, vanished from billing_runs") == [
                {"planned": 1, "debts": 1, "vanished": 0}
            ]
        else:
            assert (result.outcome, result.cause) == (Outcome.FAILED, Cause.CONTROLLER)
            assert "still committing transaction" in str(result.error)


def test_session_lost_before_the_commit_charges_once(scripted_world: World) -> None:
    """The session is lost after the last statement and before the commit."""
    world = scripted_world

    class Lost(LedgerAt):
        left = 2

        def charge(
            self, run: Run, batch: Batch, after: ResumePoint | None, limit: int | None, *, lock_first: bool = False
        ) -> BatchResult:
            charged = super().charge(run, batch, after, limit, lock_first=lock_first)
            if Lost.left:
                Lost.left -= 1
                world.run("select pg_terminate_backend(%s, 2000)", self.connection.info.backend_pid)
            return charged

    world.ledger_class = Lost
    assert world.bill(NOON, batch_size=2).totals == BILLED
    assert world.violations() == {}


SQLSTATES = {"serialization failure": "40001", "deadlock": "40P01", "too many connections": "53300", "lock": "55P03"}


@pytest.mark.parametrize("sqlstate", SQLSTATES.values(), ids=SQLSTATES.keys())
def test_transient_error_of_the_server_is_retried(scripted_world: World, sqlstate: str) -> None:
    """The server itself raises the error, inside the batch's transaction."""

    def fail(ledger: ScriptedLedger) -> None:
        ledger.connection.execute(f"do $$ begin raise sqlstate '{sqlstate}'; end $$".encode())

    script_of(scripted_world).act_before("charge_covered", fail)
    pauses: list[float] = []
    assert scripted_world.bill(NOON, batch_size=2, pause=pauses.append).totals == BILLED
    assert len(pauses) == 1
    assert scripted_world.violations() == {}


def test_deadlock_is_retried(scripted_world: World) -> None:
    """Another session locks an organization and then waits for the batch's wallet. The server ends one of the two."""
    first = scripted_world.one("select min(id::text)::uuid from organizations")
    done, pids = threading.Event(), list[int]()

    def top_up_late() -> None:
        with psycopg.connect(scripted_world.url) as other, other.transaction():
            pids.append(other.info.backend_pid)
            other.execute("set local deadlock_timeout = '10s'")  # the server ends the batch's transaction
            other.execute("select from organizations where id = %s for update", (first,))
            holding.set()
            unblocked.wait(10)
            other.execute("update wallets set balance = balance where organization_id = %s", (first,))
        done.set()

    holding, unblocked = threading.Event(), threading.Event()
    thread = threading.Thread(target=top_up_late)
    thread.start()
    assert holding.wait(10)

    def unblock_and_wait(ledger: ScriptedLedger) -> None:
        ledger.connection.execute("set local deadlock_timeout = '10ms'")
        unblocked.set()
        scripted_world.wait_for_lock(pids[0])

    script_of(scripted_world).act_before("settle_periods", unblock_and_wait)
    result = scripted_world.bill(NOON, batch_size=2, pause=lambda _seconds: bool(done.wait(10)))
    thread.join(10)
    assert result.totals == BILLED
    assert scripted_world.violations() == {}


def test_batch_whose_statement_takes_too_long_is_halved(scripted_world: World) -> None:
    """A statement that takes too long in one batch may be fast enough in a smaller one."""

    def fail(ledger: ScriptedLedger) -> None:
        ledger.connection.execute("set local statement_timeout = '1ms'")
        ledger.connection.execute("select pg_sleep(5)")

    script_of(scripted_world).act_before("charge_covered", fail)
    assert scripted_world.bill(NOON, batch_size=4).totals == BILLED
    assert scripted_world.one("select count(*) from billing_batches") == 2
    assert scripted_world.violations() == {}


@pytest.mark.parametrize(
    "failure",
    ["do $$ begin raise sqlstate '53100' using message = 'disk full'; end $$", "set local role pg_monitor"],
    ids=["disk full", "permission denied"],
)
def test_batch_is_split_after_an_error_that_does_not_recur(scripted_world: World, failure: str) -> None:
    def fail(ledger: ScriptedLedger) -> None:
        ledger.connection.execute(failure.encode())

    script_of(scripted_world).act_before("charge_covered", fail)
    assert scripted_world.bill(NOON, batch_size=4).totals == BILLED
    assert scripted_world.one("select count(*) from billing_batches") == 2
    assert scripted_world.violations() == {}
