"""A deposed leader commits nothing, and its batches in flight can't starve the mint of the next leader."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from controller import sql
from controller.billing.errors import DeposedError
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.values import Outcome, Pricing, Totals
from controller.generation import GENERATION
from controller.lifecycle.stop import StopToken
from tests.integration.intercept import intercept
from tests.integration.scripted_ledger import ScriptedLedger, script_of
from tests.integration.world import LedgerAt, Term, World
from tests.model import HOUR, NOON

D = Decimal
STATEMENTS = sql.load()


def session(world: World) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(world.url, autocommit=True, row_factory=dict_row)


def minting(holder: str) -> dict[str, Any]:
    return {"holder": holder, "lock_name": "test", "generation": GENERATION, "pod": None}


def fencing(term: int) -> dict[str, Any]:
    return {"term": term, "holder": "test-1", "generation": GENERATION, "needs_heartbeat": False}


#: Every statement of a batch. After `reset_billing`, the first batch executes them all.
CHARGING = {
    "charge_covered",
    "charge_wallets",
    "lock_organizations",
    "adopt_wallets",
    "reckon_ordered",
    "clear_open_rows",
    "settle_periods",
    "settle_wallets",
}
#: Statements that read between the transactions of a cycle.
READING = {"count_missed", "hidden_rows", "missing_rights", "not_tables", "unfit_columns", "unknown_price_columns"}


def reset_billing(world: World) -> None:
    """Undoes all billing and adopts only the first wallet: a batch then takes the fast path and the ordered one."""
    world.run(
        "truncate billing_runs, billing_batches, payment_transactions, vps_billing_cycles, billing_wallet_baselines"
    )
    world.run("update vps_instances set last_billed_at = null")
    world.run("update wallets set balance = 5.00")
    world.run(
        "insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance)"
        " select id, organization_id, balance, balance from wallets order by organization_id limit 1"
    )


class Mint:
    """The mint of a new leader, on another thread."""

    def __init__(self, world: World) -> None:
        self.term: int | None = None
        self._connection = session(world)
        self.pid = self._connection.info.backend_pid
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._connection, self._connection.transaction():
            self._connection.execute(STATEMENTS["close_leadership"].encode())
            minted = self._connection.execute(STATEMENTS["mint_term"].encode(), minting("test-1"))
            row = minted.fetchone()
            self.term = row["term"] if row else None

    def join(self) -> int:
        self._thread.join(20)
        assert self.term is not None
        return self.term

    @property
    def done(self) -> bool:
        return self.term is not None


def test_deposed_leader_cannot_begin(scripted_world: World) -> None:
    world = scripted_world
    old = world.lead()
    world.lead()
    before = world.dump()
    result = world.cycle(NOON).run(old)
    assert result.outcome is Outcome.DEPOSED
    assert result.totals == Totals()
    assert world.dump() == before


def test_deposed_leader_cannot_commit(scripted_world: World) -> None:
    """Before every statement of a cycle, a successor tries to mint. Within a transaction of the cycle it has to wait.
    Between two transactions it succeeds, and nothing is written under the old term afterwards.
    """
    world = scripted_world
    script = script_of(world)
    reset_billing(world)
    world.bill(NOON, batch_size=2)
    statements = script.names.copy()
    minted_before, waited_at = set(), set()
    for moment, name in enumerate(statements):
        reset_billing(world)
        after: dict[str, list[str]] = {}

        def mint_as_successor(
            _ledger: ScriptedLedger, moment: int = moment, name: str = name, after: dict[str, Any] = after
        ) -> None:
            try:
                with session(world) as successor, successor.transaction():
                    successor.execute("set local lock_timeout = '50ms'")
                    successor.execute(STATEMENTS["close_leadership"].encode())
                    successor.execute(STATEMENTS["mint_term"].encode(), minting("test-2"))
            except errors.LockNotAvailable:
                waited_at.add(name)
            else:
                minted_before.add(name)
                after |= world.dump()

        script.counted, script.before = 0, {moment: mint_as_successor}
        result = world.cycle(NOON, batch_size=2).run(world.lead())
        if after:
            recorded = world.rows("select from billing_runs where outcome = 'completed'")
            assert result.outcome is (Outcome.COMPLETED if recorded else Outcome.DEPOSED), name
            assert world.dump() == after, name
        else:
            assert result.outcome is Outcome.COMPLETED, name
        world.bill(NOON)
        assert world.one("select count(*) from vps_billing_cycles") == 4
        assert world.one("select sum(amount) from payment_transactions") == D("-0.20")
        assert world.violations() == {}
    assert minted_before == {"fence", "plan_cycle", *READING}
    assert waited_at == {*statements} - minted_before
    assert {*CHARGING, "begin_run", "finish_run"} <= waited_at


def test_batch_in_flight_delays_the_mint_and_commits_before_it(scripted_world: World) -> None:
    world = scripted_world
    script = script_of(world)
    mints: list[Mint] = []

    def mint(_ledger: ScriptedLedger) -> None:
        mints.append(Mint(world))
        world.wait_for_lock(mints[0].pid)

    script.act_before("charge_covered", mint)
    old = world.lead()
    result = world.cycle(NOON, batch_size=2).run(old)
    new = mints[0].join()
    assert result.outcome is Outcome.DEPOSED
    assert new == old.term + 1
    (batch,) = world.rows("select * from billing_batches")
    assert (batch["term"], batch["amount"]) == (old.term, D("0.10"))
    assert batch["written_at"] < world.one("select minted_at from billing_terms where term = %s", new)
    assert world.bill(NOON, Term(new)).totals == Totals(instances=2, hours=10, amount=D("0.10"))
    assert world.violations() == {}


def test_mint_is_not_starved_by_overlapping_batches(world: World) -> None:
    """Two workers of a deposed leader that hasn't noticed: each begins a batch before the other ends."""
    term = world.lead().term
    fence, parameters = STATEMENTS["fence"].encode(), fencing(term)
    with session(world) as first, session(world) as second:
        first.execute("begin")
        first.execute(fence, parameters)
        mint = Mint(world)
        world.wait_for_lock(mint.pid)
        second.execute("begin")
        second.execute("set local lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            second.execute(fence, parameters)
        second.execute("rollback")
        assert not mint.done
        first.execute("commit")
        assert mint.join() == term + 1
        assert second.execute(fence, parameters).fetchone() is None


def test_plain_update_would_be_starved(world: World) -> None:
    """This is why `close_leadership` locks the table: shared row locks overtake a waiting update."""
    term = world.lead().term
    fence, parameters = STATEMENTS["fence"].encode(), fencing(term)
    with session(world) as first, session(world) as second, session(world) as successor:
        workers = [first, second]
        first.execute("begin")
        first.execute(fence, parameters)
        update = threading.Thread(target=successor.execute, args=("update billing_leadership set term = term + 1",))
        update.start()
        world.wait_for_lock(successor.info.backend_pid)
        for _ in range(5):
            workers[1].execute("begin")
            assert workers[1].execute(fence, parameters).fetchone() is not None
            workers[0].execute("commit")
            assert update.is_alive()
            workers.reverse()
        workers[0].execute("commit")
        update.join(20)
        assert not update.is_alive()


class Recording(LedgerAt):
    """Records the named statements that are executed before or without the fence of a transaction."""

    unfenced: ClassVar[set[str]]
    fenced_statements: ClassVar[set[str]]

    def __init__(self, connection: sql.Connection, pricing: Pricing, holder: str) -> None:
        super().__init__(connection, pricing, holder)
        self._is_fenced = False
        intercept(connection, self._record)

    @contextmanager
    def fenced(self, term: int, **options: Any) -> Iterator[None]:  # noqa: ANN401 - as the base takes them
        try:
            with super().fenced(term, **options):
                yield
        finally:
            self._is_fenced = False

    def _record(self, name: str, text: str) -> str:
        (self.fenced_statements if self._is_fenced else self.unfenced).add(name)
        self._is_fenced = self._is_fenced or name == "fence"
        return text


def test_cycle_and_guard_write_only_behind_the_fence(database: str) -> None:
    class Recorded(Recording):
        unfenced: ClassVar[set[str]] = set()
        fenced_statements: ClassVar[set[str]] = set()

    with World(database, Recorded) as world:
        plan = world.plan("7.30")
        for balance in ("1.00", "0.02", None):
            world.instance(world.organization(balance), plan, NOON - 5 * HOUR)
        leadership, guard = world.lead(), Guard(world.ledger, StopToken())
        world.cycle(NOON).run(leadership)
        world.run("update vps_instances set last_billed_at = last_billed_at - interval '1 hour'")
        guard.check(leadership)
        assert world.one("select count(*) from billing_suspensions") == 2
        world.run("update vps_instances set last_billed_at = last_billed_at + interval '1 hour'")
        guard.unsuspend(leadership)
        assert world.one("select count(*) from billing_suspensions") == 0
    written = re.compile(r"\b(insert into|delete from|(?<!for )(?<!key )update (?!skip|of|nowait)\w+)\b")
    unfenced = {name: re.sub(r"--.*", "", STATEMENTS[name]) for name in Recorded.unfenced}
    assert {name for name, text in unfenced.items() if written.search(text)} == set()
    assert {"begin_run", "settle_wallets", "finish_run", "suspend_organization", "unsuspend_organization"} <= (
        Recorded.fenced_statements
    )


def test_only_the_newest_term_writes_a_heartbeat(world: World) -> None:
    old, new = world.lead("stale-1"), world.lead("young-2")

    def started(name: str, leadership: Term) -> Heartbeat:
        heartbeat = Heartbeat(
            connect=world.database.connect,
            instance_id=name,
            metadata={},
            interval_seconds=60,
            retention_days=30,
        )
        heartbeat.start(leadership)
        return heartbeat

    young = started("young-2", new)
    before = world.dump("billing_daemon_status")
    stale = started("stale-1", old)
    stale.beat()
    stale.mark_stopped()
    assert world.dump("billing_daemon_status") == before
    assert young.beat()
    assert world.one("select daemon_instance_id from billing_daemon_status") == "young-2"
    for each in (young, stale):
        each.stop()
        each.run()


def test_repeated_term_admits_only_its_own_holder(world: World) -> None:
    """A server that was promoted without the newest terms mints their numbers again, for other replicas."""
    ours = world.lead()
    world.run("update billing_leadership set holder = 'test-2'")
    with (ledger := world.ledger()).connection, pytest.raises(DeposedError), ledger.fenced(ours.term):
        pass


def test_transaction_in_which_a_statement_failed_does_not_seem_to_commit(world: World) -> None:
    """COMMIT rolls such a transaction back, and the server reports no error."""
    leadership = world.lead()
    with (
        (ledger := world.ledger()).connection,
        pytest.raises(errors.InFailedSqlTransaction),
        ledger.fenced(leadership.term),
        suppress(psycopg.Error),
    ):
        ledger.connection.execute("select 1 / 0")
