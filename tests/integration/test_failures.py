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
class Town:
    """Seven organizations in the order of their ids, each with one instance that owes five cents; the fourth is bad."""

    world: World
    organizations: list[UUID]
    instances: list[UUID]

    @property
    def bad(self) -> UUID:
        return self.organizations[3]

    @property
    def victim(self) -> UUID:
        return self.instances[3]

    def expect(self, reason: str, result: CycleResult) -> None:
        """Checks that six organizations are billed and that the fourth has exactly one open row."""
        assert [self.world.reason(each) for each in self.instances] == [None] * 3 + [reason] + [None] * 3
        assert [len(self.world.billed(each)) for each in self.instances] == [1] * 3 + [0] + [1] * 3
        assert result.totals == Totals(instances=6, hours=30, amount=D("0.30"), failures=1)
        assert (result.failures_by_reason or {})[reason] == 1
        assert self.world.last_billed_at(self.victim) is None

    def expect_recovered(self) -> None:
        """Checks that the next cycle bills the fourth organization in its open row."""
        row = self.world.open_row(self.victim)
        assert row is not None
        assert self.world.bill(NOON).totals == Totals(instances=1, hours=5, amount=D("0.05"))
        assert self.world.one("select status from vps_billing_cycles where id = %s", row["id"]) == "billed"
        assert self.world.violations() == {}


@pytest.fixture
def town(world: World) -> Town:
    plan = world.plan(CENT_AN_HOUR)
    organizations = [world.organization("10.00") for _ in range(7)]
    return Town(world, organizations, [world.instance(each, plan, NOON - 5 * HOUR) for each in organizations])


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
def test_an_unusable_wallet_fails_its_organization_alone(town: Town, reason: str) -> None:
    spoil, mend = WALLETS[reason]
    town.world.run(spoil, town.bad)
    town.expect(reason, town.world.bill(NOON))
    town.expect(reason, _again(town))
    assert "overdue" not in town.world.violations()
    town.world.run(mend, town.bad)
    town.expect_recovered()


def _again(town: Town) -> CycleResult:
    """Another cycle neither changes the open row nor adds one."""
    row = town.world.open_row(town.victim)
    assert row is not None
    result = town.world.bill(NOON)
    again = town.world.open_row(town.victim)
    assert again is not None
    assert (again["id"], again["metadata"]["since"]) == (row["id"], row["metadata"]["since"])
    assert result.totals == Totals(failures=1)
    return CycleResult(
        result.outcome, Totals(6, 30, D("0.30"), 0, 1), result.seconds, result.run, None, result.failures_by_reason
    )


def test_a_missing_currency_is_a_mismatch(town: Town) -> None:
    town.world.run("update wallets set currency = null where organization_id = %s", town.bad)
    town.expect("currency_mismatch", town.world.bill(NOON))


@pytest.mark.parametrize(("reason", "base"), [("price_negative", "-0.01"), ("price_nan", "NaN")])
def test_an_unusable_price_fails_its_instance(town: Town, reason: str, base: str) -> None:
    plan = town.world.plan(base)
    town.world.run("update vps_instances set plan_id = %s where id = %s", str(plan), town.victim)
    town.expect(reason, town.world.bill(NOON))
    town.world.run("update vps_plans set base_price = 7.30 where id = %s", plan)
    town.expect_recovered()


def test_without_a_default_rate_a_missing_plan_is_a_failure(town: Town) -> None:
    town.world.pricing = Pricing(None, "USD")
    town.world.run("update vps_instances set plan_id = 'gone' where id = %s", town.victim)
    town.expect("price_missing", town.world.bill(NOON))
    town.world.plan(CENT_AN_HOUR, provider="gone")
    town.expect_recovered()


def test_a_bad_price_leaves_the_other_instances_of_its_organization_billed(town: Town) -> None:
    negative = town.world.plan("-1.00")
    more = town.world.instance(town.bad, negative, NOON - 9 * HOUR)
    assert town.world.bill(NOON).totals == Totals(instances=7, hours=35, amount=D("0.35"), failures=1)
    assert town.world.reason(more) == "price_negative"
    assert town.world.violations() == {}


def test_an_unknown_start_is_a_failure(town: Town) -> None:
    town.world.run("update vps_instances set created_at = null where id = %s", town.victim)
    town.expect("start_unknown", town.world.bill(NOON))
    town.world.run("update vps_instances set created_at = %s where id = %s", NOON - 5 * HOUR, town.victim)
    town.expect_recovered()


TRIGGERS = {
    "wallet": ("wallets", "update", "new.organization_id"),
    "instance": ("vps_instances", "update of last_billed_at", "new.organization_id"),
    "transaction": ("payment_transactions", "insert", "new.organization_id"),
}


@pytest.mark.parametrize("table", TRIGGERS)
@pytest.mark.parametrize("batch_size", [2000, 3])
def test_an_organization_whose_rows_a_trigger_refuses_is_found_and_skipped(
    town: Town, table: str, batch_size: int
) -> None:
    name, event, column = TRIGGERS[table]
    town.world.run(
        f"create function refuse() returns trigger language plpgsql as $$ begin if {column} = '{town.bad}'"
        " then raise exception 'not this one'; end if; return new; end $$"
    )
    town.world.run(f"create trigger refuse before {event} on {name} for each row execute function refuse()")
    result = town.world.bill(NOON, batch_size=batch_size)
    town.expect("error", result)
    row = town.world.open_row(town.victim)
    assert row is not None
    assert row["metadata"]["error"] == "not this one"
    assert "overdue" not in town.world.violations()
    town.world.run(f"drop trigger refuse on {name}")
    town.expect_recovered()


def test_several_bad_organizations_are_each_found(town: Town) -> None:
    bad = [town.organizations[n] for n in (0, 3, 6)]
    names = ", ".join(f"'{each}'" for each in bad)
    town.world.run(
        f"alter table wallets add constraint refuse check (balance = 10 or organization_id not in ({names}))"
    )
    assert town.world.bill(NOON).totals == Totals(instances=4, hours=20, amount=D("0.20"), failures=3)
    assert [town.world.reason(each) for each in town.instances] == ["error", None, None, "error", None, None, "error"]


HOLDS: dict[str, Callable[[Town], tuple[str, UUID]]] = {
    "wallet row for update": lambda town: ("select from wallets where organization_id = %s for update", town.bad),
    "wallet row updated": lambda town: (
        "update wallets set balance = balance + 1 where organization_id = %s",
        town.bad,
    ),
    "instance row updated": lambda town: ("update vps_instances set label = 'x' where id = %s", town.victim),
}


@pytest.mark.parametrize("hold", HOLDS)
def test_rows_that_someone_else_holds_are_left_out_and_billed_in_the_next_cycle(town: Town, hold: str) -> None:
    statement, parameter = HOLDS[hold](town)
    with psycopg.connect(town.world.url) as other:
        other.execute(statement.encode(), (parameter,))
        town.expect("locked", town.world.bill(NOON))
        other.rollback()
    town.expect_recovered()


def test_rows_that_are_released_in_time_are_billed_in_the_same_cycle(town: Town) -> None:
    with psycopg.connect(town.world.url) as other:
        other.execute("update wallets set balance = balance + 1 where organization_id = %s", (town.bad,))
        other.execute(
            "insert into payment_transactions (organization_id, amount, status) values (%s, 1, 'completed')",
            (town.bad,),
        )
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            other.commit()

        result = town.world.bill(NOON, pause=pause)
    assert result.totals == Totals(instances=7, hours=35, amount=D("0.35"))
    assert len(pauses) == 1
    assert town.world.balance(town.bad) == D("10.95")
    assert town.world.violations() == {}


def test_the_others_do_not_wait_for_a_held_row(town: Town) -> None:
    """The other organizations' charges are committed before the cycle waits for the first time."""
    seen: list[int] = []

    def pause(_seconds: float) -> None:
        seen.append(town.world.one("select count(*) from vps_billing_cycles where status = 'billed'"))

    with psycopg.connect(town.world.url) as other:
        other.execute("select from wallets where organization_id = %s for update", (town.bad,))
        town.world.bill(NOON, pause=pause)
    assert seen[0] == 6
