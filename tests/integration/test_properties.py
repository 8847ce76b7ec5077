"""Random sequences of cycles, crashes at any statement, stale leaders, top-ups, price changes and instances.

After each step every wallet equals the model to the cent, no hour is billed twice, and the audit is clean.

An interrupted cycle has processed the instances of an organization up to some position in their order. The test reads
that position from the database and checks everything else against the model.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from controller.billing.values import Outcome
from tests.integration.scripted_ledger import CommitScriptedLedger, ScriptedLedger
from tests.integration.world import MONEY, Term, World, got_through
from tests.model import DEFAULT_PRICE, EPOCH, HOUR, NOON, Owed, whole_hours

PRICES = ("0.00", "0.01", "3.65", "5.00", "7.30", "73.00", "2400.00")
BATCH_SIZES = st.sampled_from([1, 2, 3, 100])
MOST_ORGANIZATIONS, MOST_INSTANCES = 4, 8


class CrashError(BaseException):
    """Stands for the end of the process."""


class Script(CommitScriptedLedger):
    """The ledgers of the machine's cycles."""


@dataclass
class Instance:
    """An instance in the model. `debt` is the content of its open rows, oldest first."""

    id: UUID
    organization: UUID
    plan: UUID | None
    created_at: datetime
    paid_until: datetime
    debt: tuple[Owed, ...] = ()


class Money(RuleBasedStateMachine):
    """Changes the database and the model alike. An instance without a plan costs the default rate."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.url, Script)
        self.now = NOON
        self.prices: dict[UUID, Decimal] = {}
        self.history: dict[UUID, list[tuple[datetime, Decimal]]] = {}
        self.balances: dict[UUID, Decimal] = {}
        self.instances: dict[UUID, Instance] = {}
        self.stale: list[Term] = []

    def teardown(self) -> None:
        """Empties the database for the next example."""
        with self.world as world:
            world.run(
                "truncate organizations, users, vps_plans, billing_runs, billing_batches, billing_terms,"
                " billing_wallet_baselines, billing_daemon_status, billing_prices, billing_price_check cascade"
            )

    @initialize()
    def begin(self) -> None:
        self.leader = self.world.lead()
        self.prices[self.world.plan("7.30", provider="p0")] = Decimal("7.30")
        self.add_organization(Decimal("0.25"))

    # --- actions of the application

    @precondition(lambda self: len(self.balances) < MOST_ORGANIZATIONS)
    @rule(balance=st.decimals("0", "3", places=2))
    def add_organization(self, balance: Decimal) -> None:
        self.balances[self.world.organization(str(balance))] = balance

    @precondition(lambda self: len(self.instances) < MOST_INSTANCES)
    @rule(data=st.data(), age=st.integers(0, 72), microseconds=st.sampled_from([0, 1, 3_599_999_999]))
    def add_instance(self, data: st.DataObject, age: int, microseconds: int) -> None:
        organization = data.draw(st.sampled_from(list(self.balances)), "organization")
        plan = data.draw(st.sampled_from([*self.prices, None]), "plan")
        created_at = self.now - age * HOUR - timedelta(microseconds=microseconds)
        instance = self.world.instance(organization, plan, created_at)
        self.instances[instance] = Instance(instance, organization, plan, created_at, created_at)

    @precondition(lambda self: self.instances)
    @rule(data=st.data())
    def delete_instance(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(list(self.instances)), "instance")
        self.world.run("delete from vps_instances where id = %s", instance)
        del self.instances[instance]

    @rule(data=st.data(), amount=st.decimals("0.01", "4", places=2))
    def top_up(self, data: st.DataObject, amount: Decimal) -> None:
        organization = data.draw(st.sampled_from(list(self.balances)), "organization")
        self.world.top_up(organization, str(amount))
        self.balances[organization] += amount

    @rule(data=st.data(), price=st.sampled_from(PRICES), new=st.booleans())
    def change_price(self, data: st.DataObject, price: str, new: bool) -> None:  # noqa: FBT001 - drawn
        if new and len(self.prices) < len(PRICES):
            self.prices[self.world.plan(price, provider=f"p{len(self.prices)}")] = Decimal(price)
            return
        plan = data.draw(st.sampled_from(list(self.prices)), "plan")
        self.world.run("update vps_plans set base_price = %s where id = %s", price, plan)
        self.prices[plan] = Decimal(price)

    @rule(minutes=st.sampled_from([1, 30, 60, 61, 180, 24 * 60]))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    # --- actions of the controller

    @rule(batch_size=BATCH_SIZES)
    def cycle(self, batch_size: int) -> None:
        self._begin_cycle()
        self.world.bill(self.now, self.leader, batch_size=batch_size)
        self._follow(complete=True, batch_size=batch_size)

    @rule(batch_size=BATCH_SIZES, batches=st.integers(0, 5))
    def interrupted_cycle(self, batch_size: int, batches: int) -> None:
        left = [True] * batches
        self._begin_cycle()
        cycle = self.world.cycle(self.now, batch_size=batch_size, may_start_batch=lambda: bool(left and left.pop()))
        result = cycle.run(self.leader)
        assert result.outcome is Outcome.STOPPED or got_through(result)
        self._follow(complete=got_through(result), batch_size=batch_size)

    @rule(batch_size=BATCH_SIZES, statement=st.integers(0, 24), elect=st.booleans())
    def crash(self, batch_size: int, statement: int, elect: bool) -> None:  # noqa: FBT001 - drawn
        """Kills the process before a statement. The server rolls an open transaction back."""
        self._begin_cycle()
        Script.before[statement] = die
        self._cycle_that_may_die(batch_size)
        if elect:
            self.elect()

    @rule(batch_size=BATCH_SIZES, statement=st.integers(0, 24))
    def lost_connection(self, batch_size: int, statement: int) -> None:
        """Breaks a session. A worker continues on a new one."""
        self._begin_cycle()
        Script.before[statement] = lambda ledger: ledger.connection.close()
        self._cycle_that_may_die(batch_size)

    @rule(batch_size=BATCH_SIZES, charge=st.integers(0, 4), early=st.booleans(), die=st.booleans())
    def end_at_commit(self, batch_size: int, charge: int, early: bool, die: bool) -> None:  # noqa: FBT001 - drawn
        """Ends the process or the connection just before a commit is sent, or just before its answer arrives."""

        def end(ledger: ScriptedLedger, before: bool) -> None:  # noqa: FBT001
            if before is early:
                ledger.connection.close()
                raise CrashError if die else psycopg.OperationalError("connection lost")

        self._begin_cycle()
        Script.commits[charge] = end
        self._cycle_that_may_die(batch_size)

    @rule()
    def elect(self) -> None:
        self.stale.append(self.leader)
        self.leader = self.world.lead()

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), batch_size=BATCH_SIZES)
    def stale_leader_tries(self, data: st.DataObject, batch_size: int) -> None:
        stale = data.draw(st.sampled_from(self.stale), "term")
        before = self.world.dump()
        self._begin_cycle()
        assert self.world.cycle(self.now, batch_size=batch_size).run(stale).outcome is Outcome.DEPOSED
        assert self.world.dump() == before

    @rule(batch_size=BATCH_SIZES)
    def dry_run(self, batch_size: int) -> None:
        before = self.world.dump()
        self._begin_cycle()
        self.world.cycle(self.now, batch_size=batch_size).run(self.leader, dry=True)
        assert self.world.dump() == before

    # --- invariants

    @invariant()
    def wallets_equal_the_model(self) -> None:
        rows = self.world.rows("select organization_id as o, balance as b from wallets")
        assert {row["o"]: row["b"] for row in rows} == self.balances

    @invariant()
    def payments_record_the_balance(self) -> None:
        """Each payment's balance_after is what the wallet held then: its balance now, less everything since."""
        wrong = self.world.rows(
            "select from (select metadata, w.balance - coalesce(sum(t.amount) over (partition by t.organization_id"
            " order by t.created_at, t.id rows between 1 following and unbounded following), 0) as after"
            " from payment_transactions t join wallets w using (organization_id)) t"
            " where billing_is_ours(metadata) and (metadata ->> 'balance_after')::numeric <> after"
        )
        assert wrong == []

    @invariant()
    def audit_is_clean(self) -> None:
        # An instance may have been created since the last completed cycle with an earlier creation time.
        self.world.run(
            "update billing_runs set started_at = %s where outcome in ('completed', 'completed_with_failures')",
            self.now - 9999 * HOUR,
        )
        assert self.world.violations() == {}

    def _begin_cycle(self) -> None:
        """Resets the script before a cycle, and notes the newest run."""
        Script.reset()
        self.run_before = self.world.one("select coalesce(max(id), 0) from billing_runs")

    def _cycle_that_may_die(self, batch_size: int) -> None:
        result = None
        with suppress(CrashError):
            result = self.world.cycle(self.now, batch_size=batch_size).run(self.leader)
        self._follow(complete=result is not None and got_through(result), batch_size=batch_size)

    def _follow(self, *, complete: bool, batch_size: int) -> None:
        """Updates the model to the state of the database, and checks that a cycle may leave that state."""
        if self.world.one("select coalesce(max(id), 0) from billing_runs") > self.run_before:
            self._note_prices()
        for organization in self.balances:
            ordered = sorted(
                (each for each in self.instances.values() if each.organization == organization),
                key=lambda each: (each.created_at, each.id),
            )
            due = [each for each in ordered if whole_hours(each.paid_until, self.now)]
            processed = len(due) if complete else self._processed(due)
            assert len(due) <= batch_size or processed in {len(due), *range(0, len(due), batch_size)}
            assert len(due) > batch_size or processed in {0, len(due)}
            for each in due[:processed]:
                self._charge(each)
            for each in ordered:
                assert (self.world.last_billed_at(each.id) or each.created_at) == each.paid_until
                assert self.world.open_segments(each.id) == [(o.start, o.hours, o.monthly_price) for o in each.debt]

    def _note_prices(self) -> None:
        """Notes the prices that a run has recorded. The first price of a plan counts from the beginning of time."""
        for plan, price in self.prices.items():
            seen = self.history.setdefault(plan, [(EPOCH, price)])
            if seen[-1][1] != price:
                seen.append((self.now, price))

    def _price(self, each: Instance, hour: datetime) -> Decimal:
        if each.plan is None:
            return DEFAULT_PRICE
        return next(price for since, price in reversed(self.history[each.plan]) if since <= hour)

    def _charge(self, each: Instance) -> None:
        """Charges hour by hour: recorded debts first, then each later hour at the price at its beginning."""
        owed = list(each.debt)
        hour = owed[-1].end if owed else each.paid_until
        while hour + HOUR <= self.now:
            price = self._price(each, hour)
            if owed and owed[-1].monthly_price == price:
                owed[-1] = replace(owed[-1], hours=owed[-1].hours + 1)
            else:
                owed.append(Owed(price, hour, 1))
            hour += HOUR
        while owed:
            hours = owed[0].affordable(self.balances[each.organization])
            self.balances[each.organization] -= owed[0].cost(hours)
            each.paid_until += hours * HOUR
            if hours < owed[0].hours:
                owed[0] = Owed(owed[0].monthly_price, owed[0].start + hours * HOUR, owed[0].hours - hours)
                break
            del owed[0]
        each.debt = tuple(owed)

    def _processed(self, due: list[Instance]) -> int:
        """Returns up to which instance, in their order, the run has paid hours or recorded a reason."""
        processed = 0
        for number, each in enumerate(due, 1):
            newest = self.world.one(
                "select coalesce(max((metadata ->> 'run')::bigint), 0) from vps_billing_cycles"
                " where vps_instance_id = %s and status = 'failed'",
                each.id,
            )
            paid_until = self.world.last_billed_at(each.id) or each.created_at
            if paid_until > each.paid_until or newest > self.run_before:
                processed = number
        return processed


def die(ledger: ScriptedLedger) -> None:
    ledger.connection.close()
    raise CrashError


@pytest.mark.parametrize("examples", [8, pytest.param(80, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
@pytest.mark.timeout(300)
def test_every_sequence_of_events_keeps_the_money_right(database: str, examples: int) -> None:
    class Here(Money):
        url = database

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes, and the seed is printed
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    with World(database) as world:
        assert not any(world.dump(*MONEY).values())
