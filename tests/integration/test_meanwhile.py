"""Other sessions change rows while their batch is charged: the batch is repeated and no hour is charged twice."""

import threading
from decimal import Decimal

import psycopg

from controller.billing.values import Totals
from tests.integration.scripted_ledger import ScriptedLedger, concurrently, script_of
from tests.integration.world import MONEY, World
from tests.model import HOUR, NOON

D = Decimal


def test_instance_changed_during_its_batch_is_charged_from_its_new_start(scripted_world: World) -> None:
    """Compare and swap: another session moves `last_billed_at` of an instance that the batch has just read."""
    world = scripted_world
    moved = world.one("select id from vps_instances order by organization_id limit 1")
    statement = "update vps_instances set last_billed_at = %s where id = %s"
    script_of(world).act_before("charge_covered", concurrently(world, statement, NOON - HOUR, moved))
    pauses: list[float] = []
    assert world.bill(NOON, pause=pauses.append).totals == Totals(instances=4, hours=16, amount=D("0.16"))
    assert len(pauses) == 1, "the first attempt was rolled back as a whole"


def test_wallet_spent_during_its_batch_is_not_overdrawn(scripted_world: World) -> None:
    """The fast path reads the balance first and locks it only at its end."""
    world = scripted_world
    world.bill(NOON - HOUR)  # adopts the wallets
    organization = world.one("select min(organization_id::text)::uuid from wallets")

    def spend(_ledger: ScriptedLedger) -> None:
        world.run("update wallets set balance = 0 where organization_id = %s", organization)

    script_of(world).act_before("charge_wallets", spend)
    pauses: list[float] = []
    assert world.bill(NOON, pause=pauses.append).totals == Totals(instances=3, hours=3, amount=D("0.03"), debts=1)
    assert len(pauses) == 1, "the first attempt was rolled back as a whole"
    assert world.balance(organization) == 0


def test_top_up_does_not_wait_for_a_batch_on_the_fast_path(scripted_world: World) -> None:
    world = scripted_world
    world.bill(NOON - HOUR)  # adopts the wallets

    def top_up(_ledger: ScriptedLedger) -> None:
        with psycopg.connect(world.url, options="-c lock_timeout=1ms") as application:
            application.execute("update wallets set balance = balance + 1")

    script_of(world).act_before("charge_wallets", top_up)
    assert world.bill(NOON).totals == Totals(instances=4, hours=4, amount=D("0.04"))
    assert world.one("select sum(balance) from wallets") == 8 - D("0.20")


def test_top_up_does_not_wait_for_the_ordered_path_of_another_organization(scripted_world: World) -> None:
    world = scripted_world
    world.bill(NOON - HOUR)  # adopts the wallets
    short = world.one("select min(organization_id::text)::uuid from wallets")
    world.run("update wallets set balance = 0 where organization_id = %s", short)

    def top_up(_ledger: ScriptedLedger) -> None:
        with psycopg.connect(world.url, options="-c lock_timeout=1ms") as application:
            application.execute("update wallets set balance = balance + 1 where organization_id <> %s", [short])

    script_of(world).act_before("settle_wallets", top_up)
    before = world.one("select sum(balance) from wallets")
    assert world.bill(NOON).totals == Totals(instances=3, hours=3, amount=D("0.03"), debts=1)
    assert world.one("select sum(balance) from wallets") - before == 3 - D("0.03")


def test_transaction_of_the_application_over_two_wallets_wins_against_a_batch(scripted_world: World) -> None:
    """The batch holds the short wallet and waits for the other one, the application the other way round."""
    world = scripted_world
    world.bill(NOON - HOUR)  # adopts the wallets
    short, other = (
        row["organization_id"] for row in world.rows("select * from wallets order by organization_id limit 2")
    )
    world.run("update wallets set balance = 0 where organization_id = %s", short)
    update, failures = "update wallets set balance = balance + 1 where organization_id = %s", list[psycopg.Error]()
    application = psycopg.connect(world.url)

    def take_short() -> None:
        try:
            with application:
                application.execute(update.encode(), [short])
        except psycopg.Error as error:
            failures.append(error)

    taking = threading.Thread(target=take_short)

    def take_both(_ledger: ScriptedLedger) -> None:
        application.execute(update.encode(), [other])
        taking.start()
        world.wait_for_lock(application.info.backend_pid)

    script_of(world).act_before("charge_wallets", take_both)
    assert world.bill(NOON).totals == Totals(instances=4, hours=4, amount=D("0.04"))
    taking.join()
    assert failures == []


def test_wallet_created_after_the_locks_is_not_overdrawn(scripted_world: World) -> None:
    world = scripted_world
    organization = world.one("select min(id::text)::uuid from organizations")
    world.run("delete from wallets where organization_id = %s", organization)
    spend = concurrently(world, "update wallets set balance = 0.02 where organization_id = %s", organization)

    def create_and_spend(ledger: ScriptedLedger) -> None:
        world.wallet(organization, "1.00")
        spend(ledger)

    script_of(world).act_before("reckon_ordered", create_and_spend)
    expected = Totals(instances=4, hours=17, amount=D("0.17"), debts=1)
    assert world.bill(NOON).totals == expected
    assert world.balance(organization) == 0
    assert world.violations() == {}


def test_concurrent_cycles_charge_each_hour_once(world: World) -> None:
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


def test_older_instance_created_between_the_two_paths_displaces_no_other(scripted_world: World) -> None:
    """In a large organization, the ordered path may find another first step than the fast path did."""
    world = scripted_world
    organization, plan = (
        world.one("select min(id::text)::uuid from organizations"),
        world.one("select id from vps_plans"),
    )
    made = [world.instance(organization, plan, NOON - hours * HOUR) for hours in (4, 3, 2)]

    def create_older(_ledger: ScriptedLedger) -> None:
        world.instance(organization, plan, NOON - 50 * HOUR)

    script_of(world).act_before("lock_organizations", create_older)
    world.bill(NOON, batch_size=2)
    assert [len(world.billed(each)) for each in made] == [1, 1, 1]
