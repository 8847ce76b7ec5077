"""The facts about customers: who owes what, why an instance was not charged, and what the next cycle does."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from controller.billing.answers import (
    NameNotFoundError,
    explain,
    find,
    read_debts,
    read_lost_debts,
    read_run,
    read_runway,
    with_names,
)
from controller.billing.audit import audit
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal


@pytest.fixture
def billed(world: World) -> World:
    """Bills at noon: one organization can pay, one can pay in part, one has no balance, and one has no wallet."""
    plan = world.plan("73.00", provider="shared")  # ten cents an hour
    rich, short, poor = world.organization("10.00"), world.organization("0.45"), world.organization("0.00")
    world.instance(rich, plan, NOON - 5 * HOUR, label="vps-rich")
    world.instance(short, plan, NOON - 3 * HOUR, label="vps-short-1")
    world.instance(short, plan, NOON - 2 * HOUR, label="vps-short-2")
    world.instance(poor, plan, NOON - 30 * HOUR, label="vps-poor")
    world.instance(world.organization(None), "no plan", NOON - 2 * HOUR, label="vps-walletless")
    world.bill(NOON)
    return world


def organization(world: World, label: str) -> UUID:
    found: UUID = world.one("select organization_id from vps_instances where label = %s", label)
    return found


def test_debts_name_the_instance_and_say_if_the_wallet_pays_the_oldest_hour(billed: World) -> None:
    poor, short = read_debts(billed.conn, None, None)
    assert (poor["label"], poor["hours"], poor["owed"], poor["since"]) == ("vps-poor", 30, D("3.00"), NOON - 30 * HOUR)
    assert (short["label"], short["hours"], short["owed"], short["balance"]) == ("vps-short-2", 1, D("0.10"), D("0.05"))
    assert (short["next_hour"], short["pays_next_hour"]) == (D("0.10"), False)
    billed.top_up(short["organization_id"], "0.05")
    (short,) = read_debts(billed.conn, short["organization_id"], None)
    assert short["pays_next_hour"] is True
    older = billed.one("select now()") - (NOON - 20 * HOUR)
    assert [row["label"] for row in read_debts(billed.conn, None, older)] == ["vps-poor"]
    owed = billed.one("select sum(owed) from billing_debts")
    assert billed.one("select sum(owed) from billing_instance_debts") == owed, "one source for each fact"


def test_name_is_an_id_a_slug_or_a_label(billed: World) -> None:
    rich = find(billed.conn, "vps-rich")
    assert (rich.instance_id is not None, rich.organization) == (True, "Org")
    assert find(billed.conn, str(rich.instance_id)) == rich
    by_slug = find(billed.conn, rich.slug)
    assert (by_slug.organization_id, by_slug.instance_id) == (rich.organization_id, None)
    assert find(billed.conn, str(rich.organization_id).upper()) == by_slug
    billed.run("update vps_instances set label = 'twin' where label like 'vps-short%%'")
    for name, message in (
        ("twin", "^twin may refer to instance twin .*, or instance twin .*: use an id$"),
        ("[/b]\x1b", "no id, slug or label is"),
        (str(uuid4()), "no id, slug or label is"),
        ("a\0b", "no id, slug or label is"),
    ):
        with pytest.raises(NameNotFoundError, match=message):
            find(billed.conn, name)
    with pytest.raises(NameNotFoundError, match="no organization has the id or slug vps-rich"):
        find(billed.conn, "vps-rich", organizations_only=True)


def test_next_cycle_does_what_the_outlook_says(billed: World) -> None:
    billed.top_up(organization(billed, "vps-poor"), "1.23")
    billed.run("update vps_plans set base_price = 146, updated_at = %s", NOON + HOUR)
    at = NOON + 4 * HOUR
    outlook = billed.rows(
        "select o.*, g.organization_id from organizations org, lateral (select org.id as organization_id) g,"
        " billing_outlook(org.id, %s, %s, 'USD', null) o",
        at,
        billed.pricing.default_monthly_price,
    )
    before = {row["id"]: row["balance"] for row in billed.rows("select organization_id as id, balance from wallets")}
    billed.bill(at)
    for each, balance in before.items():
        foreseen = sum((row["amount"] for row in outlook if row["organization_id"] == each), D(0))
        assert balance - billed.balance(each) == foreseen, each
    left = billed.rows(
        "select vps_instance_id as id, metadata ->> 'reason' as reason from vps_billing_cycles where status = 'failed'"
    )
    reasons = {
        row["instance_id"]: row["failure_reason"] or "insufficient_balance"
        for row in outlook
        if row["paid_hours"] < row["hours"]
    }
    assert {row["id"]: row["reason"] for row in left} == reasons
    assert sum(row["paid_hours"] for row in outlook) > 0


def test_explanation_names_the_charge_the_price_and_the_remedy(billed: World) -> None:
    explained = explain(billed.conn, find(billed.conn, "vps-short-1"), billed.pricing)
    (instance,) = explained.instances
    assert (instance["charged_hours"], instance["charged_amount"], instance["charged_price"]) == (3, D("0.30"), D(73))
    assert (instance["monthly_price"], instance["price_source"], instance["price_since"]) == (D(73), "plan", None)
    assert instance["billed_until"] == NOON
    explained = explain(billed.conn, find(billed.conn, "vps-walletless"), billed.pricing)
    assert explained.reasons() == ["wallet_missing"]
    assert explained.instances[0]["open_reason"] == "wallet_missing"
    assert explained.as_dict()["remedies"]["wallet_missing"] == "give the organization a wallet"
    subject = find(billed.conn, str(organization(billed, "vps-short-1")))
    explained = explain(billed.conn, subject, billed.pricing)
    assert [row["label"] for row in explained.instances] == ["vps-short-1", "vps-short-2"]
    billed.run("delete from organizations where id = %s", subject.organization_id)
    with pytest.raises(NameNotFoundError, match="has been deleted"):
        explain(billed.conn, subject, billed.pricing)


def test_debt_that_is_deleted_with_its_instance_or_organization_stays_known(billed: World) -> None:
    """This holds even if the application's role has no rights on the controller's tables."""
    poor = organization(billed, "vps-poor")
    billed.run("create role application")
    try:
        billed.run("grant select, delete on vps_instances, organizations to application")
        billed.run("set role application")
        billed.run("delete from vps_instances where label in ('vps-short-2', 'vps-rich')")
        billed.run("delete from organizations where id = %s", poor)
        billed.run("reset role")
        instance, of_organization = read_lost_debts(billed.conn, None, None)
        assert (instance["owed"], instance["hours"], instance["since"]) == (D("0.10"), 1, NOON - HOUR)
        assert (of_organization["organization_id"], of_organization["owed"]) == (poor, D("3.00"))
        assert read_lost_debts(billed.conn, poor, None) == [of_organization]
        billed.bill(NOON + HOUR)
        assert len(read_lost_debts(billed.conn, None, timedelta(0))) == 2, "paid or replaced open rows are not lost"
    finally:
        billed.run("reset role")
        billed.run("drop owned by application")
        billed.run("drop role application")


def test_deletion_continues_if_a_lost_debt_can_not_be_kept(billed: World) -> None:
    billed.run("drop table billing_lost_debts")
    billed.run("delete from vps_instances where label = 'vps-poor'")
    assert billed.rows("select from vps_instances where label = 'vps-poor'") == []


def test_runway_is_the_balance_over_the_sum_of_the_prices(billed: World) -> None:
    rows = {row["organization_id"]: row for row in read_runway(billed.conn, None, None, billed.pricing)}
    rich = rows[organization(billed, "vps-rich")]
    assert (rich["balance"], rich["monthly_price"], rich["hours_left"]) == (D("9.50"), D(73), D("95.0"))
    assert rows[organization(billed, "vps-walletless")]["hours_left"] is None
    within = read_runway(billed.conn, None, timedelta(hours=94), billed.pricing)
    assert [row["hours_left"] for row in within] == [D("0.0"), D("0.3")]


def test_run_has_its_failures(billed: World) -> None:
    run, (failure,) = read_run(billed.conn, 1)
    assert (run["failures"], failure["label"], failure["reason"]) == (1, "vps-walletless", "wallet_missing")
    with pytest.raises(NameNotFoundError, match="there is no run 9"):
        read_run(billed.conn, 9)


def test_audit_of_one_organization_names_what_is_wrong(billed: World) -> None:
    billed.run("update vps_billing_cycles set total_amount = total_amount + 1 where status = 'billed'")
    whole, one = (
        with_names(billed.conn, audit(billed.conn, each)) for each in (None, organization(billed, "vps-rich"))
    )
    (finding,) = [each for each in one.findings if each.invariant == "price_clock"]
    assert finding.violations == 1
    assert "(vps-rich of org-" in finding.examples[0]
    assert next(each for each in whole.findings if each.invariant == "price_clock").violations == 3
