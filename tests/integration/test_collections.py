"""Between two cycles the leader collects what a topped-up wallet can pay. A collection isn't a cycle."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest

from controller.billing import control
from controller.billing.biller import HALTED_LOOK_SECONDS, Biller
from controller.billing.collection import Collected, Collector
from controller.billing.control import Wish
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.status import read_status
from controller.billing.values import Leadership, Totals
from controller.lifecycle.stop import StopToken
from tests.integration.world import ScriptedStop, Term, World
from tests.model import HOUR, NOON


@pytest.fixture
def indebted(world: World) -> World:
    """A world with two organizations without money. The one instance of each owes 200 hours of a cent."""
    plan = world.plan("7.30")
    for _ in range(2):
        world.instance(world.organization("0.00"), plan, NOON - 200 * HOUR)
    world.bill(NOON)
    return world


def organizations(world: World) -> list[UUID]:
    return [row["id"] for row in world.rows("select id from organizations order by id")]


def collect(world: World, stop: StopToken | None = None, leadership: Leadership | None = None) -> Collected:
    with (ledger := world.ledger()).connection:
        return Collector(ledger, leadership or world.term(), stop or StopToken(), 60).collect()


def kinds(world: World) -> list[str]:
    return [row["kind"] for row in world.rows("select kind from billing_runs order by id")]


def made_biller(
    world: World,
    collected: list[Totals],
    *,
    on_halted: Callable[[str | None], None] = lambda _message: None,
) -> Biller:
    """A biller whose loop ends once it doesn't lead."""
    heartbeat = Heartbeat(
        connect=world.database.connect, instance_id="test-1", metadata={}, interval_seconds=60, retention_days=1
    )
    stop = StopToken()
    return Biller(
        connect=world.ledger, cycle=world.cycle(), guard=Guard(world.ledger, ScriptedStop()), heartbeat=heartbeat,
        stop=stop, interval_minutes=60, takeover_delay_seconds=0, other_billers="stop",
        on_cycle_ended=lambda _result: None, on_collected=collected.append, on_halted=on_halted,
        on_idle=lambda _wanted: stop.stop_cycles(),
    )  # fmt: skip


def test_top_up_pays_the_oldest_hours_that_the_last_cycle_recorded(indebted: World) -> None:
    first, second = organizations(indebted)
    assert collect(indebted).totals == Totals()
    indebted.top_up(first, "0.504")
    indebted.top_up(second, "5.00")
    assert collect(indebted).totals == Totals(instances=2, hours=250, amount=Decimal("2.50"), debts=1)
    assert [indebted.balance(each) for each in (first, second)] == [Decimal("0.00"), Decimal("3.00")]
    (run,) = indebted.rows("select * from billing_runs where kind = 'collection'")
    assert (run["outcome"], run["instances"], run["hours"], run["amount"]) == ("completed", 2, 250, Decimal("2.50"))
    (instance,) = indebted.rows("select id from vps_instances where organization_id = %s", second)
    assert indebted.last_billed_at(instance["id"]) == NOON, "hours since the last cycle are left to the next one"
    assert indebted.violations() == {}
    assert collect(indebted).totals == Totals()
    assert kinds(indebted) == ["cycle", "collection"]


def test_collection_is_not_the_last_cycle_and_does_not_move_the_schedule(indebted: World) -> None:
    before = read_status(indebted.conn)
    indebted.top_up(organizations(indebted)[0], "5.00")
    assert collect(indebted).totals.instances == 1
    after = read_status(indebted.conn)
    assert after.debts == before.debts - 1
    for fact in ("next_cycle_at", "last_completed_at", "last_run", "beats_until"):
        assert getattr(after, fact) == getattr(before, fact), fact


@pytest.mark.parametrize("balance", ["0.00", "-5.00", "0.0099", "NaN"])
def test_wallet_that_can_not_pay_one_owed_hour_takes_no_transaction(indebted: World, balance: str) -> None:
    indebted.run("alter table wallets alter column balance type numeric")
    indebted.run("update wallets set balance = %s", balance)
    with (ledger := indebted.ledger()).connection:
        assert ledger.payable_organizations() == []


def test_collection_that_charges_nothing_takes_no_run(indebted: World) -> None:
    first, second = organizations(indebted)
    for organization in (first, second):
        indebted.top_up(organization, "5.00")
    with World(indebted.url) as other, other.conn.transaction():
        other.run("select from wallets where organization_id = %s for update", first)
        assert collect(indebted).totals.instances == 1
        assert collect(indebted).totals == Totals()
    assert kinds(indebted) == ["cycle", "collection"]
    assert collect(indebted).totals.instances == 1


@pytest.mark.parametrize("by", ["guard", "operator", "takeover", "drain", "pause"])
def test_nothing_is_collected_while_an_organization_or_billing_is_stopped(indebted: World, by: str) -> None:
    organization = organizations(indebted)[0]
    indebted.top_up(organization, "5.00")
    stop = StopToken()
    match by:
        case "guard":
            indebted.run("insert into billing_suspensions values (%s, 'periods', 'x')", organization)
        case "operator":
            control.suspend(indebted.conn, Wish("suspend", "ann", "x", organization_id=organization))
        case "takeover":
            indebted.run("update billing_leadership set bill_after = now() + interval '5 minutes'")
        case "pause":
            control.give(indebted.conn, Wish("pause", "ann", "x"))
        case _:
            stop.stop_cycles()
    assert collect(indebted, stop).totals == Totals()
    assert kinds(indebted) == ["cycle"]


def test_deposed_leader_collects_nothing(indebted: World) -> None:
    deposed = indebted.term()
    indebted.top_up(organizations(indebted)[0], "5.00")
    indebted.lead()
    with pytest.raises(Exception, match="another replica leads"):
        collect(indebted, leadership=deposed)
    assert kinds(indebted) == ["cycle"]


def test_collection_whose_session_is_lost_leaves_a_finished_run(indebted: World) -> None:
    for organization in organizations(indebted):
        indebted.top_up(organization, "5.00")
    ledger = indebted.ledger()
    tried = iter([True, True])

    def may_start_cycle() -> bool:
        if next(tried, False):
            return True
        ledger.connection.close()  # before the second organization
        return True

    with pytest.raises(psycopg.OperationalError):
        Collector(ledger, indebted.term(), ScriptedStop(may_start_cycle=may_start_cycle), 60).collect()
    (run,) = indebted.rows(
        "select outcome, hours, finished_at is not null as ended from billing_runs where kind <> 'cycle'"
    )
    assert run == {"outcome": "completed", "hours": 200, "ended": True}
    assert indebted.violations() == {}


def test_cycle_starts_on_time_beside_a_collection_every_minute(indebted: World) -> None:
    """Three hours pass, a minute at a time. Each minute a top-up pays one hour. Runs begin at the simulated time."""
    organization, leadership, ledger, cycles = organizations(indebted)[0], indebted.term(), indebted.ledger(), []
    for minute in range(1, 181):
        now = NOON + timedelta(minutes=minute)
        indebted.run("update wallets set balance = balance + 0.01 where organization_id = %s", organization)
        if indebted.one("select due_at from billing_next_cycle()") <= now:
            indebted.bill(now, leadership)
            cycles.append(minute)
            continue
        assert Collector(ledger, leadership, StopToken(), 60).collect().totals.hours == 1
        indebted.run("update billing_runs set started_at = %s where id = (select max(id) from billing_runs)", now)
    assert cycles == [60, 120, 180]
    assert kinds(indebted).count("collection") == 177
    ledger.connection.close()


def test_debt_is_collected_during_a_paced_cycle(indebted: World) -> None:
    first, second = organizations(indebted)
    biller = made_biller(indebted, collected := list[Totals]())
    indebted.top_up(first, "5.00")

    def may_start_batch() -> bool:
        if not collected:
            biller._while_quiet(indebted.term())
        return True

    indebted.top_up(second, "0.50")
    result = indebted.bill(NOON + HOUR, indebted.term(), may_start_batch=may_start_batch)
    assert [each.hours for each in collected] == [251]
    assert result.totals.instances == 0
    (run,) = indebted.rows("select * from billing_runs where kind = 'cycle' order by id desc limit 1")
    assert (run["planned"], run["debts"], run["vanished"]) == (2, 1, 1)
    assert indebted.violations() == {}


def test_loop_collects_between_cycles_and_not_during_a_pause(world: World) -> None:
    instance_owner = world.organization("0.00")
    world.instance(instance_owner, world.plan("7.30"), world.one("select now() - interval '5.5 hours'"))
    world.bill()
    biller = made_biller(world, collected := list[Totals]())
    control.give(world.conn, Wish("pause", "ann", "x"))
    world.top_up(instance_owner, "5.00")
    assert biller._prepare(world.term(), started=True) == (True, HALTED_LOOK_SECONDS)
    assert collected == []
    control.give(world.conn, Wish("resume", "ann"))
    started, seconds = biller._prepare(world.term(), started=True)
    assert (started, [each.hours for each in collected]) == (True, [5])
    assert seconds is not None
    assert 0 < seconds <= 30
    assert kinds(world) == ["cycle", "collection"]


def test_leader_that_ends_while_billing_is_halted_does_not_report_that_it_bills_again(world: World) -> None:
    control.give(world.conn, Wish("pause", "ann", "x"))
    reported = list[str | None]()

    class Halted(Term):
        def step_down(self, back_off_seconds: float) -> None: ...

    def halted(message: str | None) -> None:
        reported.append(message)
        biller.leadership_ended()

    biller = made_biller(world, [], on_halted=halted)
    biller.elected(Halted(world.lead().term, leads=lambda: not reported))
    biller.run()
    assert [message is None for message in reported] == [False]
    assert biller.halted is None
