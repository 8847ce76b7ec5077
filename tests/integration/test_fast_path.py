"""The fast path charges only organizations that plainly can pay, and rolls back if the database changes what it writes.

Wallets are adopted when they are first charged. So the first cycle takes the ordered path, and the second the fast one.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar
from uuid import UUID

import psycopg
import pytest
from psycopg import errors
from structlog.testing import capture_logs

from controller import sql
from controller.billing.values import Totals
from tests.integration.scripted_ledger import ScriptedLedger, concurrently
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal


class FastLedger(ScriptedLedger):
    """Executes one action before each `charge_covered`, until none is left."""

    before_charge: ClassVar[list[Callable[[ScriptedLedger], None]]]

    def _count(self, name: str, text: str) -> str:
        if name == "charge_covered" and self.before_charge:
            self.before_charge.pop()(self)
        return super()._count(name, text)


@dataclass(frozen=True)
class Tenants:
    """Three adopted organizations with an instance each, which has been billed until an hour before noon."""

    world: World
    ledger: type[FastLedger]
    organizations: list[UUID]
    instances: list[UUID]

    def ordered(self) -> bool:
        """True if a batch has taken the ordered path."""
        return "reckon_ordered" in self.ledger.names


@pytest.fixture
def tenants(database: str) -> Iterator[Tenants]:
    class Own(FastLedger):
        before_charge: ClassVar[list[Callable[[ScriptedLedger], None]]] = []

    with World(database, Own) as world:
        plan = world.plan("7.30")
        organizations = [world.organization("1.00") for _ in range(3)]
        instances = [world.instance(each, plan, NOON - 5 * HOUR) for each in organizations]
        world.bill(NOON - HOUR)
        Own.names.clear()
        yield Tenants(world, Own, organizations, instances)


def test_new_wallet_beside_adopted_ones_costs_no_second_try(world: World) -> None:
    plan = world.plan("7.30")
    world.instance(world.organization("5.00"), plan, NOON - 2 * HOUR)
    world.bill(NOON)
    world.instance(world.organization("5.00"), plan, NOON)
    with capture_logs() as logs:
        assert world.bill(NOON + HOUR).totals.instances == 2
    assert [line for line in logs if line["event"] in {"batch.retried", "batch.split"}] == []


def test_adopted_wallets_that_cover_everything_take_the_fast_path(tenants: Tenants) -> None:
    assert tenants.world.bill(NOON).totals == Totals(instances=3, hours=3, amount=D("0.03"))
    assert not tenants.ordered()
    assert tenants.world.violations() == {}


def test_instance_that_was_billed_meanwhile_is_not_charged_again(tenants: Tenants) -> None:
    moved = tenants.instances[0]
    tenants.ledger.before_charge.append(
        concurrently(tenants.world, "update vps_instances set last_billed_at = %s where id = %s", NOON, moved)
    )
    pauses = list[float]()
    assert tenants.world.bill(NOON, pause=pauses.append).totals == Totals(instances=2, hours=2, amount=D("0.02"))
    assert len(pauses) == 1, "the first attempt was rolled back"
    assert [hours for _, hours, _ in tenants.world.billed(moved)] == [4]


def test_short_wallet_takes_the_ordered_path_without_a_retry(tenants: Tenants) -> None:
    tenants.world.run("update wallets set balance = 0 where organization_id = %s", tenants.organizations[0])
    pauses = list[float]()
    assert tenants.world.bill(NOON, pause=pauses.append).totals == Totals(2, 2, D("0.02"), debts=1)
    assert tenants.ledger.names.count("charge_covered") == 1
    assert pauses == []


@pytest.mark.parametrize(
    ("reason", "statement"),
    [
        ("currency_mismatch", "update wallets set currency = 'EUR' where organization_id = %s"),
        ("wallet_duplicate", "insert into wallets (organization_id, balance) values (%s, 0)"),
    ],
)
def test_adopted_wallet_that_became_unusable_fails_its_organization_alone(
    tenants: Tenants, reason: str, statement: str
) -> None:
    tenants.world.run(statement, tenants.organizations[0])
    assert tenants.world.bill(NOON).totals == Totals(2, 2, D("0.02"), failures=1)
    assert [tenants.world.reason(each) for each in tenants.instances] == [reason, None, None]


def test_suspended_organization_is_not_charged_on_the_fast_path(tenants: Tenants) -> None:
    suspended = tenants.organizations[0]
    tenants.world.run(
        "insert into billing_suspensions (organization_id, reason, detail) values (%s, 'x', 'x')", suspended
    )
    assert tenants.world.bill(NOON).totals == Totals(2, 2, D("0.02"), suspended=1)
    assert [tenants.world.reason(each) for each in tenants.instances] == ["audit_violation", None, None]


def test_wallet_is_adopted_before_its_first_charge(tenants: Tenants) -> None:
    world = tenants.world
    world.instance(world.organization("1.00"), world.one("select id from vps_plans"), NOON - 2 * HOUR)
    assert world.bill(NOON).totals == Totals(4, 5, D("0.05"))
    assert world.one("select count(*) from billing_wallet_baselines") == 4


#: A trigger, and what it does with a row of the bad organization.
LIES = {
    "payment dropped": ("before insert on payment_transactions", "return null"),
    "payment changed": ("before insert on payment_transactions", "new.amount := new.amount + 0.01; return new"),
    "period dropped": ("before insert on vps_billing_cycles", "return null"),
    "period changed": ("before insert on vps_billing_cycles", "new.total_amount := 7; return new"),
    "wallet kept": ("before update on wallets", "return old"),
    "wallet changed": ("before update on wallets", "new.balance := new.balance + 0.01; return new"),
    "instance kept": ("before update on vps_instances", "return old"),
    "instance not written": ("before update on vps_instances", "return null"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("balance", ["1.00", "0.03"])
def test_row_that_the_database_does_not_write_as_told_fails_its_organization_alone(
    tenants: Tenants, lie: str, balance: str
) -> None:
    """A balance of 0.03 can't pay both instances of the organization, which then takes the ordered path."""
    world, bad, victim = tenants.world, tenants.organizations[0], tenants.instances[0]
    world.instance(bad, world.one("select id from vps_plans"), NOON - 3 * HOUR)
    world.run("update wallets set balance = %s::numeric where organization_id = %s", balance, bad)
    when, action = LIES[lie]
    failed = "new.status = 'failed'" if "cycles" in when else "false"
    world.run(
        f"""create function lie() returns trigger language plpgsql as $$ begin
            if new.organization_id <> '{bad}' or {failed} then return new; end if; {action}; end $$"""
    )
    world.run(f"create trigger z_lie {when} for each row execute function lie()")
    result = world.bill(NOON)
    assert (result.totals.instances, result.totals.failures) == (2, 2)
    assert world.balance(bad) == D(balance)
    assert [hours for _, hours, _ in world.billed(victim)] == [4]
    assert world.reason(victim) == "error"
    assert world.one("select count(*) from payment_transactions where organization_id = %s", bad) == 1


def test_wallets_are_locked_in_the_order_of_their_organizations(tenants: Tenants) -> None:
    """Two batches that lock wallets in different orders could deadlock."""
    world, amounts = tenants.world, [D("0.01")] * 3
    wallets = [row["id"] for row in world.rows("select id from wallets order by organization_id")]
    charging, charged = world.ledger().connection, list[int]()

    def charge() -> None:
        taken = {"wallets": wallets[::-1], "amounts": amounts, "balances": amounts}
        charged.append(sql.row(charging, "charge_wallets", **taken)["charged"])

    with charging, psycopg.connect(world.url) as other:
        other.execute("select from wallets where id = %s for update", (wallets[1],))
        thread = threading.Thread(target=charge)
        thread.start()
        world.wait_for_lock(charging.info.backend_pid)
        free = [row["id"] for row in world.rows("select id from wallets for update skip locked")]
        other.rollback()
        thread.join(20)
    assert free == wallets[2:]
    assert charged == [3]


def test_ledger_holds_an_hour_once(tenants: Tenants) -> None:
    columns = "vps_instance_id, organization_id, billing_period_start, hourly_rate, total_amount, metadata"
    with pytest.raises(errors.UniqueViolation):
        tenants.world.run(
            f"insert into vps_billing_cycles ({columns}, billing_period_end, status)"  # noqa: S608 - constants
            f" select {columns}, billing_period_end + interval '1 hour', 'refunded' from vps_billing_cycles limit 1"
        )
