"""The application's pages and its clean-up read the rows of a charge: balances, invoice facts, descriptions, months."""

from __future__ import annotations

from decimal import Decimal

import pytest

from controller.billing.values import Totals
from tests.integration.scripted_ledger import ScriptedLedger, script_of
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal
#: The words that the application's clean-up looks for.
WORDS = ("container", "caas", "easypanel", "dokploy")


def chain(world: World) -> list[tuple[Decimal, Decimal, Decimal]]:
    """Amount, balance before and balance after of each of our payments, as the application sorts them."""
    rows = world.rows(
        "select amount, metadata -> 'balance_before' as before, metadata -> 'balance_after' as after, id, created_at"
        " from payment_transactions where billing_is_ours(metadata) order by created_at, id"
    )
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len({row["created_at"] for row in rows}) == len(rows)
    return [(row["amount"], D(str(row["before"])), D(str(row["after"]))) for row in rows]


@pytest.mark.parametrize("adopted", [True, False], ids=["fast path", "ordered path"])
def test_payments_of_a_wallet_are_a_chain_of_balances(world: World, *, adopted: bool) -> None:
    organization, plan = world.organization("10.0050"), world.plan("730.00")
    world.run("alter table wallets alter column balance type numeric(12,4)")
    world.run("update wallets set balance = 10.0050")
    if adopted:
        world.run("insert into billing_wallet_baselines select id, organization_id, 10.0050, 10.0050 from wallets")
    for number in range(3):
        world.instance(organization, plan, NOON - (9 - number) * HOUR, NOON - HOUR)
    assert world.bill(NOON).totals.amount == D("3.00")
    steps = chain(world)
    assert [before for _, before, _ in steps] == [D("10.005"), D("9.005"), D("8.005")]
    assert all(before + amount == after for amount, before, after in steps)
    assert steps[-1][2] == world.balance(organization) == D("7.005")


@pytest.mark.parametrize("amount", ["1.00", "-0.01"])
def test_balance_that_moves_during_the_batch_is_recorded_as_it_was_charged(scripted_world: World, amount: str) -> None:
    """The fast path reads balances without a lock. Another session changes one before the wallets are charged."""
    world = scripted_world
    world.bill(NOON - HOUR)  # adopts the wallets
    moved, *_ = organizations = [row["id"] for row in world.rows("select id from organizations order by id")]
    for _ in range(2):
        world.instance(moved, world.plan("730.00"), NOON - 2 * HOUR, NOON - HOUR)
    world.run("update wallets set balance = 50")
    script_of(world).act_before("charge_wallets", lambda _ledger: world.top_up(moved, amount))
    pauses: list[float] = []
    world.bill(NOON, pause=pauses.append)
    assert pauses == [], "no attempt is repeated"
    for organization in organizations:
        rows = world.rows(
            "select amount, (metadata ->> 'balance_before')::numeric as before, (metadata ->> 'balance_after')::numeric"
            " as after from payment_transactions where organization_id = %s and billing_is_ours(metadata)"
            " and (metadata ->> 'run')::bigint = (select max(id) from billing_runs) order by created_at, id",
            organization,
        )
        assert rows[0]["before"] == 50 + (D(amount) if organization == moved else 0)
        assert all(row["before"] + row["amount"] == row["after"] for row in rows)
        assert rows[-1]["after"] == world.balance(organization)


def test_period_carries_the_facts_of_an_invoice(world: World) -> None:
    instance = world.instance(world.organization("10.00"), world.plan("5.00"), NOON - 3 * HOUR, label="web")
    world.bill(NOON)
    (row,) = world.rows("select metadata as m from vps_billing_cycles where vps_instance_id = %s", instance)
    facts = {"hours_charged": 3, "base_hourly_rate": 0.0068, "vps_label": "web"}
    assert row["m"].items() >= facts.items()


def test_debt_appears_in_the_month_in_which_it_is_paid_and_only_there(world: World) -> None:
    organization = world.organization("0.00")
    instance = world.instance(organization, world.plan("730.00"), NOON - 5 * HOUR)
    world.bill(NOON)
    world.run("update vps_billing_cycles set created_at = now() - interval '40 days'")
    before = world.one("select billing_period_start from vps_billing_cycles")
    world.top_up(organization, "2.00")
    world.bill(NOON)
    rows = world.rows("select status, created_at > now() - interval '1 day' as new from vps_billing_cycles order by 1")
    assert [(row["status"], row["new"]) for row in rows] == [("billed", True), ("failed", False)]
    world.top_up(organization, "3.00")
    world.bill(NOON)
    rows = world.rows(
        "select status, created_at > now() - interval '1 day' as new, billing_period_start as start"
        " from vps_billing_cycles order by billing_period_start"
    )
    assert [(row["status"], row["new"]) for row in rows] == [("billed", True), ("billed", True)]
    assert [row["start"] for row in rows] == [before, before + 2 * HOUR], "the billed hours don't move"
    assert world.last_billed_at(instance) == NOON


@pytest.mark.parametrize("adopted", [True, False], ids=["fast path", "ordered path"])
def test_application_clean_up_finds_no_payment_of_ours(world: World, *, adopted: bool) -> None:
    plan = world.plan("730.00")
    labels = [f"my-{word.upper()}-1" for word in WORDS] + ["ConTainer", "web", None]
    for label in labels:
        organization = world.organization("10.00")
        if adopted:
            world.run(
                "insert into billing_wallet_baselines select id, organization_id, balance, balance from wallets"
                " on conflict do nothing"
            )
        world.instance(organization, plan, NOON - 2 * HOUR, label=label)
    assert world.bill(NOON).totals == Totals(instances=7, hours=14, amount=D("14.00"))
    found = world.one(
        "select count(*) from payment_transactions where metadata::text ~* %s or description ~* %s",
        "|".join(WORDS),
        "|".join(WORDS),
    )
    assert found == 0
    descriptions = world.rows(
        "select p.description as d, i.id::text as id, i.label as l from payment_transactions p"
        " join vps_instances i on i.id = (p.metadata ->> 'vps_instance_id')::uuid"
    )
    for row in descriptions:
        shown = row["id"] if row["l"] is None else row["l"] if row["l"] == "web" else row["id"][:8]
        assert row["d"] == f"VPS {shown}, 2 h"


def test_balance_that_can_not_be_corrected_rolls_the_batch_back(scripted_world: World) -> None:
    """A trigger drops the correction. Nothing is charged with a wrong balance; the ordered path charges instead."""
    world = scripted_world
    world.bill(NOON - HOUR)
    world.run(
        "create function drop_it() returns trigger language plpgsql as $$ begin return null; end $$;"
        "create trigger a_drop before update on payment_transactions for each row execute function drop_it()"
    )
    organization = world.one("select min(id::text)::uuid from organizations")

    def top_up(_ledger: ScriptedLedger) -> None:
        world.top_up(organization, "1.00")

    script_of(world).act_before("charge_wallets", top_up)
    pauses: list[float] = []
    world.bill(NOON, pause=pauses.append)
    assert len(pauses) == 1, "the first attempt was rolled back as a whole"
    last = world.one(
        "select (metadata ->> 'balance_after')::numeric from payment_transactions where organization_id = %s"
        " and billing_is_ours(metadata) order by created_at desc, id desc limit 1",
        organization,
    )
    assert last == world.balance(organization)
