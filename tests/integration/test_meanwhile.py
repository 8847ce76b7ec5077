"""Other sessions change rows while a batch charges them. The batch is tried again, and nothing is charged twice."""

import threading
from collections.abc import Callable
from decimal import Decimal

import psycopg

from controller.billing.values import Totals
from tests.integration.touchy import TouchyLedger, touchy_kind
from tests.integration.world import MONEY, World
from tests.model import HOUR, NOON

D = Decimal


def interfering(world: World, statement: str, *parameters: object) -> Callable[[TouchyLedger], None]:
    """Runs a statement in another transaction before the batch's, and commits it once the batch waits for it."""

    def interfere(ledger: TouchyLedger) -> None:
        other = psycopg.connect(world.url)
        other.execute(statement.encode(), parameters)

        def commit_when_waited_for() -> None:
            with World(world.url) as watching, other:
                watching.wait_for_lock(ledger.connection.info.backend_pid)

        threading.Thread(target=commit_when_waited_for).start()

    return interfere


def test_a_changed_instance_is_not_charged_over(touchy: World) -> None:
    """Compare and swap: another session moves `last_billed_at` of an instance that the batch has read."""
    kind = touchy_kind(touchy)
    touchy.cycle(NOON).run(touchy.lead(), dry=True)
    moved = touchy.one("select id from vps_instances order by organization_id limit 1")
    statement = "update vps_instances set last_billed_at = %s where id = %s"
    kind.before = {kind.names.index("charge_covered"): interfering(touchy, statement, NOON - HOUR, moved)}
    kind.counted, pauses = 0, list[float]()
    assert touchy.bill(NOON, pause=pauses.append).totals == Totals(instances=4, hours=16, amount=D("0.16"))
    assert len(pauses) == 1, "the first attempt was rolled back as a whole"


def test_a_wallet_that_is_spent_while_its_batch_is_charged_is_not_overdrawn(touchy: World) -> None:
    """The fast path reads the balance at its start and locks it only at its end."""
    kind = touchy_kind(touchy)
    touchy.bill(NOON - HOUR)  # adopts the wallets
    kind.names.clear()
    touchy.cycle(NOON).run(touchy.lead(), dry=True)
    organization = touchy.one("select min(organization_id::text)::uuid from wallets")

    def spend(_ledger: TouchyLedger) -> None:
        touchy.run("update wallets set balance = 0 where organization_id = %s", organization)

    kind.counted, kind.before, pauses = 0, {kind.names.index("charge_wallets"): spend}, list[float]()
    assert touchy.bill(NOON, pause=pauses.append).totals == Totals(instances=3, hours=3, amount=D("0.03"), debts=1)
    assert len(pauses) == 1, "the first attempt was rolled back as a whole"
    assert touchy.balance(organization) == 0


def test_a_top_up_does_not_wait_while_its_batch_is_charged(touchy: World) -> None:
    kind = touchy_kind(touchy)
    touchy.bill(NOON - HOUR)
    kind.names.clear()
    touchy.cycle(NOON).run(touchy.lead(), dry=True)

    def top_up(_ledger: TouchyLedger) -> None:
        with psycopg.connect(touchy.url, options="-c lock_timeout=1ms") as application:
            application.execute("update wallets set balance = balance + 1")

    kind.counted, kind.before = 0, {kind.names.index("charge_wallets"): top_up}
    assert touchy.bill(NOON).totals == Totals(instances=4, hours=4, amount=D("0.04"))
    assert touchy.one("select sum(balance) from wallets") == 8 - D("0.20")


def test_a_wallet_that_came_too_late_to_be_locked_is_not_overdrawn(touchy: World) -> None:
    kind = touchy_kind(touchy)
    touchy.cycle(NOON).run(touchy.lead(), dry=True)
    organization = touchy.one("select min(id::text)::uuid from organizations")
    touchy.run("delete from wallets where organization_id = %s", organization)
    spend = interfering(touchy, "update wallets set balance = 0.02 where organization_id = %s", organization)

    def make_and_spend(ledger: TouchyLedger) -> None:
        touchy.wallet(organization, "1.00")
        spend(ledger)

    kind.counted, kind.before = 0, {kind.names.index("reckon_ordered"): make_and_spend}
    expected = Totals(instances=4, hours=17, amount=D("0.17"), debts=1)
    assert touchy.bill(NOON).totals == expected
    assert touchy.balance(organization) == 0
    assert touchy.violations() == {}


def test_the_same_cycle_twice_at_once_charges_once(world: World) -> None:
    plans = [world.plan(price) for price in ("5.00", "0.00", "73.00")]
    for number in range(24):
        organization = world.organization("0.05" if number % 5 == 0 else "50.00")
        for plan in plans[: 1 + number % 3]:
            world.instance(organization, plan, NOON - (3 + number) * HOUR)
    leadership, never = world.lead(), threading.Event()
    results: list[Totals] = []

    def pause(seconds: float) -> None:
        never.wait(seconds)

    def bill() -> None:
        cycle = world.cycle(NOON, workers=2, batch_size=3, pause=pause)
        results.append(cycle.run(leadership).totals)

    threads = [threading.Thread(target=bill) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert world.violations() == {}
    assert world.one("select sum(amount) from billing_batches") == -world.one(
        "select sum(amount) from payment_transactions"
    )
    before = world.dump(*MONEY)
    assert world.bill(NOON).totals.amount == 0
    assert world.dump("wallets", "payment_transactions", "vps_instances") == {
        table: before[table] for table in ("wallets", "payment_transactions", "vps_instances")
    }


def test_an_older_instance_that_comes_between_the_two_paths_displaces_nobody(touchy: World) -> None:
    """The two paths have different snapshots, so they may see different instances of a large organization."""
    kind = touchy_kind(touchy)
    organization, plan = (
        touchy.one("select min(id::text)::uuid from organizations"),
        touchy.one("select id from vps_plans"),
    )
    made = [touchy.instance(organization, plan, NOON - hours * HOUR) for hours in (4, 3, 2)]
    touchy.cycle(NOON, batch_size=2).run(touchy.lead(), dry=True)

    def order_older(_ledger: TouchyLedger) -> None:
        touchy.instance(organization, plan, NOON - 50 * HOUR)

    kind.counted, kind.before = 0, {kind.names.index("lock_organizations"): order_older}
    touchy.bill(NOON, batch_size=2)
    assert [len(touchy.billed(each)) for each in made] == [1, 1, 1]
