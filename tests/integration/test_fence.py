"""A deposed leader writes nothing, even if it has a transaction in flight, and a mint never waits for long."""

import threading
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row

from controller import sql
from controller.billing.errors import DeposedError
from controller.billing.heartbeat import Heartbeat
from controller.billing.values import Outcome, Totals
from controller.generation import GENERATION
from tests.integration.touchy import TouchyLedger, touchy_kind
from tests.integration.world import Term, World
from tests.model import NOON

D = Decimal
QUERIES = sql.load()


def session(world: World) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(world.url, autocommit=True, row_factory=dict_row)


def minting(holder: str) -> dict[str, Any]:
    return {"holder": holder, "lock_name": "test", "generation": GENERATION}


def fencing(term: int) -> dict[str, Any]:
    return {"term": term, "holder": "test-1", "generation": GENERATION, "needs_heartbeat": False}


#: Every statement of a batch. After `begin_again` the first batch runs all of them.
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


def begin_again(world: World) -> None:
    """Undoes all billing and adopts only the first wallet, so that a batch takes both the fast and the ordered path."""
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
    """A new leader's mint, on a separate thread."""

    def __init__(self, world: World) -> None:
        self.term: int | None = None
        self._connection = session(world)
        self.pid = self._connection.info.backend_pid
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._connection, self._connection.transaction():
            self._connection.execute(QUERIES["close_leadership"].encode())
            minted = self._connection.execute(QUERIES["mint_term"].encode(), minting("test-1"))
            row = minted.fetchone()
            self.term = row["term"] if row else None

    def join(self) -> int:
        self._thread.join(20)
        assert self.term is not None
        return self.term

    @property
    def done(self) -> bool:
        return self.term is not None


def test_a_deposed_leader_cannot_begin(touchy: World) -> None:
    old = touchy.lead()
    touchy.lead()
    before = touchy.dump()
    result = touchy.cycle(NOON).run(old)
    assert result.outcome is Outcome.DEPOSED
    assert result.totals == Totals()
    assert touchy.dump() == before


def test_a_deposed_leader_cannot_commit(touchy: World) -> None:
    """At every statement of a cycle a successor tries to mint. It succeeds between transactions, and from then on
    nothing is written under the old term; within one it has to wait.
    """
    kind = touchy_kind(touchy)
    begin_again(touchy)
    touchy.bill(NOON, batch_size=2)
    statements = kind.names.copy()
    last_fence = max(moment for moment, name in enumerate(statements) if name == "fence")
    minted_before, waited_at = set(), set()
    for moment, name in enumerate(statements):
        begin_again(touchy)
        after: dict[str, list[str]] = {}

        def usurp(_ledger: TouchyLedger, moment: int = moment, name: str = name, after: dict[str, Any] = after) -> None:
            try:
                with session(touchy) as successor, successor.transaction():
                    successor.execute("set local lock_timeout = '50ms'")
                    successor.execute(QUERIES["close_leadership"].encode())
                    successor.execute(QUERIES["mint_term"].encode(), minting("test-2"))
            except errors.LockNotAvailable:
                waited_at.add(name)
            else:
                minted_before.add(name)
                after |= touchy.dump()

        kind.counted, kind.before = 0, {moment: usurp}
        result = touchy.cycle(NOON, batch_size=2).run(touchy.lead())
        if after:
            pruning = moment == last_fence  # the run has ended
            assert result.outcome is (Outcome.COMPLETED if pruning else Outcome.DEPOSED), name
            assert touchy.dump() == after, name
        else:
            assert result.outcome is Outcome.COMPLETED, name
        touchy.bill(NOON)
        assert touchy.one("select count(*) from vps_billing_cycles") == 4
        assert touchy.one("select sum(amount) from payment_transactions") == D("-0.20")
        assert touchy.violations() == {}
    checks_of_access = {"missing_rights", "hidden_rows", "unfit_columns", "unknown_price_columns"}
    assert minted_before == {"fence", "plan_cycle", "count_missed", *checks_of_access}
    assert waited_at == {*statements} - minted_before
    assert {*CHARGING, "begin_run", "finish_run"} <= waited_at


def test_a_batch_in_flight_delays_the_mint_and_commits_before_it(touchy: World) -> None:
    kind = touchy_kind(touchy)
    touchy.cycle(NOON, batch_size=2).run(touchy.lead(), dry=True)
    mints: list[Mint] = []

    def mint(_ledger: TouchyLedger) -> None:
        mints.append(Mint(touchy))
        touchy.wait_for_lock(mints[0].pid)

    kind.before, kind.counted = {kind.names.index("charge_covered"): mint}, 0
    old = touchy.lead()
    result = touchy.cycle(NOON, batch_size=2).run(old)
    new = mints[0].join()
    assert result.outcome is Outcome.DEPOSED
    assert new == old.term + 1
    (batch,) = touchy.rows("select * from billing_batches")
    assert (batch["term"], batch["amount"]) == (old.term, D("0.10"))
    assert batch["written_at"] < touchy.one("select minted_at from billing_terms where term = %s", new)
    assert touchy.bill(NOON, Term(new)).totals == Totals(instances=2, hours=10, amount=D("0.10"))
    assert touchy.violations() == {}


def test_a_mint_is_not_starved_by_batches_that_overlap(world: World) -> None:
    """Two workers of a deposed leader that hasn't noticed: one always begins before the other ends."""
    term = world.lead().term
    fence, parameters = QUERIES["fence"].encode(), fencing(term)
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


def test_a_plain_update_would_be_starved(world: World) -> None:
    """This is why `close_leadership` locks the table: new share locks on a row overtake an update that waits for it."""
    term = world.lead().term
    fence, parameters = QUERIES["fence"].encode(), fencing(term)
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


def test_a_ledgers_every_write_is_fenced(touchy: World) -> None:
    old = touchy.lead()
    run = touchy.cycle(NOON).run(old).run
    assert run is not None
    touchy.lead()
    before = touchy.dump()
    ledger = touchy.ledger()
    with ledger.connection:
        for write in (
            lambda: ledger.begin_run(old.term),
            lambda: ledger.finish_run(run, Outcome.COMPLETED, None),
            lambda: ledger.plan(run, 10),
            lambda: ledger.begin_term(60),
            lambda: ledger.begin_takeover(300),
            ledger.begin_heartbeat,
        ):
            with pytest.raises(DeposedError), ledger.fenced(old.term):
                write()
    assert touchy.dump() == before


def test_a_heartbeat_is_written_by_the_newest_term_alone(world: World) -> None:
    old, new = world.lead("stale-1"), world.lead("young-2")

    def heart(name: str, leadership: Term) -> Heartbeat:
        heart = Heartbeat(
            connect=world.database.connect,
            instance_id=name,
            metadata={},
            interval_seconds=60,
            retention_days=30,
        )
        heart.start(leadership)
        return heart

    young = heart("young-2", new)
    before = world.dump("billing_daemon_status")
    stale = heart("stale-1", old)
    stale.beat()
    stale.mark_stopped()
    assert world.dump("billing_daemon_status") == before
    assert young.beat()
    assert world.one("select daemon_instance_id from billing_daemon_status") == "young-2"
    for each in (young, stale):
        each.stop()
        each.run()


def test_a_term_that_was_given_twice_lets_in_its_own_holder_alone(world: World) -> None:
    """A server that was promoted without the last terms mints their numbers again, for another holder."""
    ours = world.lead()
    world.run("update billing_leadership set holder = 'test-2'")
    with (ledger := world.ledger()).connection, pytest.raises(DeposedError), ledger.fenced(ours.term):
        pass
