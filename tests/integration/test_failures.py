"""If an organization can't be charged, the reason is recorded, and every other organization is billed."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest

from controller.billing.values import CycleResult, Pricing, Totals
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal
CENT_AN_HOUR = "7.30"


@dataclass
class Tenants:
    """Seven organizations in the order of their ids, each with one instance that owes five cents; the fourth is bad."""

    world: World
    organizations: list[UUID]
    instances: list[UUID]

    @property
    def bad(self) -> UUID:
        return self.organizations[3]

    @property
    def bad_instance(self) -> UUID:
        return self.instances[3]

    def expect(self, reason: str, result: CycleResult) -> None:
        """Checks that six organizations are billed and that the fourth has exactly one open row."""
        assert [self.world.reason(each) for each in self.instances] == [None] * 3 + [reason] + [None] * 3
        assert [len(self.world.billed(each)) for each in self.instances] == [1] * 3 + [0] + [1] * 3
        assert result.totals == Totals(instances=6, hours=30, amount=D("0.30"), failures=1)
        assert (result.failures_by_reason or {})[reason] == 1
        assert self.world.last_billed_at(self.bad_instance) is None

    def expect_recovered(self) -> None:
        """Checks that the next cycle bills the fourth organization in its open row."""
        row = self.world.open_row(self.bad_instance)
        assert row is not None
        assert self.world.bill(NOON).totals == Totals(instances=1, hours=5, amount=D("0.05"))
        assert self.world.one("select status from vps_billing_cycles where id = %s", row["id"]) == "billed"
        assert self.world.violations() == {}


@pytest.fixture
def tenants(world: World) -> Tenants:
    plan = world.plan(CENT_AN_HOUR)
    organizations = [world.organization("10.00") for _ in range(7)]
    return Tenants(world, organizations, [world.instance(each, plan, NOON - 5 * HOUR) for each in organizations])


WALLETS: dict[str, tuple[str, str]] = {
    "wallet_missing": (
        "delete from wallets where organization_id = %s",
        "insert into wallets (organization_id, balance) values (%s, 10)",
    ),
    "wallet_duplicate": (
        "insert into wallets (organization_id, balance) values (%s, 0)",
        "delete from wallets where organization_id = %s and balance = 0",
    ),
    "balance_null": (
        "update wallets set balance = null where organization_id = %s",
        "update wallets set balance = 10 where organization_id = %s",
    ),
    "balance_nan": (
        "update wallets set balance = 'NaN' where organization_id = %s",
        "update wallets set balance = 10 where organization_id = %s",
    ),
    "currency_mismatch": (
        "update wallets set currency = 'EUR' where organization_id = %s",
        "update wallets set currency = 'USD' where organization_id = %s",
    ),
}


@pytest.mark.parametrize("reason", WALLETS)
def test_unusable_wallet_fails_its_organization_alone(tenants: Tenants, reason: str) -> None:
    spoil, mend = WALLETS[reason]
    tenants.world.run(spoil, tenants.bad)
    tenants.expect(reason, tenants.world.bill(NOON))
    tenants.expect(reason, bill_again(tenants))
    assert "overdue" not in tenants.world.violations()
    tenants.world.run(mend, tenants.bad)
    tenants.expect_recovered()


def bill_again(tenants: Tenants) -> CycleResult:
    """Another cycle neither changes the open row nor adds one."""
    row = tenants.world.open_row(tenants.bad_instance)
    assert row is not None
    result = tenants.world.bill(NOON)
    again = tenants.world.open_row(tenants.bad_instance)
    assert again is not None
    assert (again["id"], again["metadata"]["since"]) == (row["id"], row["metadata"]["since"])
    assert result.totals == Totals(failures=1)
    return CycleResult(
        result.outcome, Totals(6, 30, D("0.30"), 0, 1), result.seconds, result.run, None, result.failures_by_reason
    )


def test_missing_currency_is_a_mismatch(tenants: Tenants) -> None:
    tenants.world.run("update wallets set currency = null where organization_id = %s", tenants.bad)
    tenants.expect("currency_mismatch", tenants.world.bill(NOON))


@pytest.mark.parametrize(("reason", "base"), [("price_negative", "-0.01"), ("price_nan", "NaN")])
def test_unusable_price_fails_its_instance(tenants: Tenants, reason: str, base: str) -> None:
    plan = tenants.world.plan(base)
    tenants.world.run("update vps_instances set plan_id = %s where id = %s", str(plan), tenants.bad_instance)
    tenants.expect(reason, tenants.world.bill(NOON))
    tenants.world.run("update vps_plans set base_price = 7.30 where id = %s", plan)
    tenants.expect_recovered()


def test_missing_plan_is_a_failure_if_there_is_no_default_rate(tenants: Tenants) -> None:
    tenants.world.pricing = Pricing(None, "USD")
    tenants.world.run("update vps_instances set plan_id = 'gone' where id = %s", tenants.bad_instance)
    tenants.expect("price_missing", tenants.world.bill(NOON))
    tenants.world.plan(CENT_AN_HOUR, provider="gone")
    tenants.expect_recovered()


def test_unusable_price_leaves_the_other_instances_of_its_organization_billed(tenants: Tenants) -> None:
    negative = tenants.world.plan("-1.00")
    more = tenants.world.instance(tenants.bad, negative, NOON - 9 * HOUR)
    assert tenants.world.bill(NOON).totals == Totals(instances=7, hours=35, amount=D("0.35"), failures=1)
    assert tenants.world.reason(more) == "price_negative"
    assert tenants.world.violations() == {}


def test_unknown_start_is_a_failure(tenants: Tenants) -> None:
    tenants.world.run("update vps_instances set created_at = null where id = %s", tenants.bad_instance)
    tenants.expect("start_unknown", tenants.world.bill(NOON))
    tenants.world.run("update vps_instances set created_at = %s where id = %s", NOON - 5 * HOUR, tenants.bad_instance)
    tenants.expect_recovered()


TRIGGERS = {
    "wallet": ("wallets", "update", "new.organization_id"),
    "instance": ("vps_instances", "update of last_billed_at", "new.organization_id"),
    "transaction": ("payment_transactions", "insert", "new.organization_id"),
}


@pytest.mark.parametrize("table", TRIGGERS)
@pytest.mark.parametrize("batch_size", [2000, 3])
def test_organization_whose_rows_a_trigger_refuses_fails_alone(tenants: Tenants, table: str, batch_size: int) -> None:
    name, event, column = TRIGGERS[table]
    tenants.world.run(
        f"create function refuse() returns trigger language plpgsql as $$ begin if {column} = '{tenants.bad}'"
        " then raise exception 'not this one'; end if; return new; end $$"
    )
    tenants.world.run(f"create trigger refuse before {event} on {name} for each row execute function refuse()")
    result = tenants.world.bill(NOON, batch_size=batch_size)
    tenants.expect("error", result)
    row = tenants.world.open_row(tenants.bad_instance)
    assert row is not None
    assert row["metadata"]["error"] == "not this one"
    assert "overdue" not in tenants.world.violations()
    tenants.world.run(f"drop trigger refuse on {name}")
    tenants.expect_recovered()


def test_failed_organization_keeps_only_its_unbilled_hours(tenants: Tenants) -> None:
    """Hours of an open row have been billed by another program, and the instance has moved to the organization."""
    world, plan = tenants.world, tenants.world.plan(CENT_AN_HOUR)
    poor = world.organization("0.00")
    billed, partly = (world.instance(poor, plan, NOON - 9 * HOUR) for _ in range(2))
    world.bill(NOON - 4 * HOUR)
    world.run("update vps_instances set organization_id = %s where organization_id = %s", tenants.bad, poor)
    for instance, hours in ((billed, 3), (partly, 6)):
        world.run("update vps_instances set last_billed_at = %s where id = %s", NOON - hours * HOUR, instance)
    world.run(f"alter table payment_transactions add check (organization_id <> '{tenants.bad}') not valid")
    for as_of in (NOON, NOON + HOUR):
        world.bill(as_of)
    assert world.open_segments(billed) == [(NOON - 3 * HOUR, 4, None)]
    assert world.open_segments(partly) == [(NOON - 6 * HOUR, 2, D(CENT_AN_HOUR)), (NOON - 4 * HOUR, 5, None)]
    owners = world.rows("select distinct organization_id as id from vps_billing_cycles where status = 'failed'")
    assert [row["id"] for row in owners] == [tenants.bad]
    owed = world.one(
        "select metadata -> 'owed' from vps_billing_cycles where vps_instance_id = %s and metadata ? 'owed'", partly
    )
    assert owed == 0.02
    assert world.violations() == {}


def test_several_bad_organizations_are_each_found(tenants: Tenants) -> None:
    bad = [tenants.organizations[n] for n in (0, 3, 6)]
    names = ", ".join(f"'{each}'" for each in bad)
    tenants.world.run(
        f"alter table wallets add constraint refuse check (balance = 10 or organization_id not in ({names}))"
    )
    assert tenants.world.bill(NOON).totals == Totals(instances=4, hours=20, amount=D("0.20"), failures=3)
    assert [tenants.world.reason(each) for each in tenants.instances] == [
        "error",
        None,
        None,
        "error",
        None,
        None,
        "error",
    ]


LOCKS: dict[str, Callable[[Tenants], tuple[str, UUID]]] = {
    "wallet row for update": lambda tenants: ("select from wallets where organization_id = %s for update", tenants.bad),
    "wallet row updated": lambda tenants: (
        "update wallets set balance = balance + 1 where organization_id = %s",
        tenants.bad,
    ),
    "instance row updated": lambda tenants: (
        "update vps_instances set label = 'x' where id = %s",
        tenants.bad_instance,
    ),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_rows_locked_by_others_are_left_out_and_billed_in_the_next_cycle(tenants: Tenants, lock: str) -> None:
    statement, parameter = LOCKS[lock](tenants)
    with psycopg.connect(tenants.world.url) as other:
        other.execute(statement.encode(), (parameter,))
        tenants.expect("locked", tenants.world.bill(NOON))
        other.rollback()
    tenants.expect_recovered()


def test_rows_unlocked_in_time_are_billed_in_the_same_cycle(tenants: Tenants) -> None:
    with psycopg.connect(tenants.world.url) as other:
        other.execute("update wallets set balance = balance + 1 where organization_id = %s", (tenants.bad,))
        other.execute(
            "insert into payment_transactions (organization_id, amount, status) values (%s, 1, 'completed')",
            (tenants.bad,),
        )
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            other.commit()

        result = tenants.world.bill(NOON, pause=pause)
    assert result.totals == Totals(instances=7, hours=35, amount=D("0.35"))
    assert len(pauses) == 1
    assert tenants.world.balance(tenants.bad) == D("10.95")
    assert tenants.world.violations() == {}


def test_other_organizations_do_not_wait_for_a_locked_row(tenants: Tenants) -> None:
    """The other organizations' charges are committed before the cycle waits for the first time."""
    seen: list[int] = []

    def pause(_seconds: float) -> None:
        seen.append(tenants.world.one("select count(*) from vps_billing_cycles where status = 'billed'"))

    with psycopg.connect(tenants.world.url) as other:
        other.execute("select from wallets where organization_id = %s for update", (tenants.bad,))
        tenants.world.bill(NOON, pause=pause)
    assert seen[0] == 6
