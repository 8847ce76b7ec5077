"""An instance with many hours that no one has billed or recorded is not charged until an operator accepts them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

import pytest

from controller.billing.answers import explain, find
from controller.billing.audit import audit
from controller.billing.backlog import OtherBacklogError, accept_backlog, read_backlogs, read_unrecorded
from controller.billing.proof import prove
from controller.billing.status import read_status
from controller.billing.values import Cause, Outcome, Totals
from controller.billing.verdict import verdict
from tests.integration.world import ScriptedStop, World
from tests.model import HOUR, NOON

D = Decimal
#: A plan of 1.00 an hour.
HOURLY: Final = "730"
LIMIT: Final = 168


@pytest.fixture
def limited(world: World) -> World:
    """A database with a limit of 168 hours, on which no cycle has run."""
    world.pricing = replace(world.pricing, max_backlog_hours=LIMIT)
    return world


def instance(world: World, hours: int, balance: str = "1000.00") -> tuple[UUID, UUID]:
    """An organization with an instance that owes `hours` hours at NOON."""
    organization = world.organization(balance)
    return organization, world.instance(organization, world.plan(HOURLY), NOON - hours * HOUR)


def accept(world: World, organization: UUID | None) -> None:
    accept_backlog(world.conn, organization, world.pricing, accepted_by="tester", reason="cut-over")


def accept_until(world: World, organization: UUID | None, moment: object) -> None:
    """Accepts at another time than now: the tests bill in the past."""
    accept(world, organization)
    world.run("update billing_accepted_backlogs set accepted_until = %s", moment)


def test_only_more_hours_than_the_limit_are_a_backlog(limited: World) -> None:
    (_, at_limit), (_, over) = instance(limited, LIMIT), instance(limited, LIMIT + 1)
    result = limited.bill(NOON)
    assert (result.outcome, result.failures_by_reason) == (Outcome.COMPLETED_WITH_FAILURES, {"backlog": 1})
    assert result.totals == Totals(instances=1, hours=LIMIT, amount=D(168), failures=1)
    assert limited.billed(over) == []
    row = limited.open_row(over)
    assert row is not None
    assert (row["reason"], row["hours"], row["owed"]) == ("backlog", LIMIT + 1, D(169))
    assert len(limited.billed(at_limit)) == 1
    run = limited.rows("select * from billing_runs")[0]
    assert run["planned"] == run["instances"] + run["debts"] + run["failures"] + run["vanished"] == 2
    status = read_status(limited.conn)
    assert (status.backlogs, status.backlog, status.failures) == (1, D(169), 1)
    assert "1 instance in backlog, 169.00 not charged" in verdict(status).line
    assert audit(limited.conn).clean
    assert limited.violations() == {}


def test_everything_in_backlog_is_not_green(limited: World) -> None:
    instance(limited, 900)
    result = limited.bill(NOON)
    assert (result.outcome, result.cause) == (Outcome.FAILED, Cause.ORGANIZATIONS)
    assert verdict(read_status(limited.conn)).level == "down"


def test_backlog_grows_until_it_is_accepted_and_is_then_charged_once(limited: World) -> None:
    organization, owing = instance(limited, 200)
    instance(limited, 1)
    for hours in (0, 1, 2):
        assert limited.bill(NOON + hours * HOUR).failures_by_reason == {"backlog": 1}
    row = limited.open_row(owing)
    assert row is not None
    assert row["hours"] == 202
    (listed,) = read_backlogs(limited.conn, organization, limited.pricing)
    assert (listed["instance_id"], listed["hours"], listed["owed"]) == (owing, 202, D(202))
    accept_until(limited, organization, NOON + 2 * HOUR)
    assert limited.bill(NOON + 3 * HOUR).totals.amount == D(204)
    assert [(hours, amount) for _, hours, amount in limited.billed(owing)] == [(203, D(203))]
    assert read_backlogs(limited.conn, None, limited.pricing) == []
    assert limited.violations() == {}


def test_accepting_one_organization_leaves_the_others(limited: World) -> None:
    one, _ = instance(limited, 200)
    instance(limited, 300)
    limited.bill(NOON)
    accept_until(limited, one, NOON)
    assert limited.bill(NOON + HOUR).totals.amount == D(201)
    accept_until(limited, None, NOON + HOUR)
    assert limited.bill(NOON + 2 * HOUR).totals.amount == D(303)


def test_acceptance_does_not_cover_a_later_backlog(limited: World) -> None:
    organization, _ = instance(limited, 200)
    limited.bill(NOON)
    accept_until(limited, organization, NOON - 180 * HOUR)
    assert limited.bill(NOON + HOUR).failures_by_reason == {"backlog": 1}


@pytest.mark.parametrize("everyone", [True, False])
def test_acceptance_covers_only_the_instances_that_were_listed(limited: World, *, everyone: bool) -> None:
    organization, listed = instance(limited, 400, "99999.00")
    other, sound = instance(limited, 2)
    limited.bill(NOON)
    accept_until(limited, None if everyone else organization, NOON)
    owner = other if everyone else organization
    restored = limited.instance(owner, limited.plan(HOURLY), NOON - 300 * HOUR)
    assert limited.bill(NOON + HOUR).failures_by_reason == {"backlog": 1}
    assert (limited.reason(listed), limited.reason(sound), limited.reason(restored)) == (None, None, "backlog")


def test_acceptance_covers_no_earlier_hours_than_the_listed_ones(limited: World) -> None:
    _, owing = instance(limited, 400, "99999.00")
    limited.bill(NOON)
    accept_until(limited, None, NOON)
    limited.run("update vps_instances set last_billed_at = %s", NOON - 9000 * HOUR)
    assert limited.bill(NOON + HOUR).failures_by_reason == {"backlog": 1}
    assert len(read_backlogs(limited.conn, None, limited.pricing)) == 1
    assert limited.billed(owing) == []


def test_nothing_is_accepted_if_other_instances_are_in_backlog_than_the_operator_has_seen(limited: World) -> None:
    instance(limited, 400)
    limited.bill(NOON)
    with pytest.raises(OtherBacklogError, match="1 instances are in backlog, not 2"):
        accept_backlog(limited.conn, None, limited.pricing, accepted_by="tester", reason="x", expected=2)
    assert limited.rows("select from billing_accepted_backlogs") == []
    done = accept_backlog(limited.conn, None, limited.pricing, accepted_by="tester", reason="x", expected=1)
    assert done.instances == 1


def test_backlog_can_be_accepted_before_a_first_cycle(limited: World) -> None:
    now = limited.one("select now()")
    listed = limited.instance(limited.organization("9999.00"), limited.plan(HOURLY), now - 400 * HOUR)
    limited.instance(limited.organization("9999.00"), limited.plan(HOURLY), now - 2 * HOUR)
    (row,) = read_backlogs(limited.conn, None, limited.pricing)
    assert (row["instance_id"], row["hours"], row["owed"]) == (listed, 400, D(400))
    accept(limited, None)
    assert read_backlogs(limited.conn, None, limited.pricing) == []
    restored = limited.instance(limited.organization("9999.00"), limited.plan(HOURLY), now - 900 * HOUR)
    assert limited.bill().totals == Totals(instances=2, hours=402, amount=D(402), failures=1)
    assert limited.reason(restored) == "backlog"


def test_accepted_backlog_that_the_wallet_cannot_pay_is_a_debt_from_then_on(limited: World) -> None:
    organization, owing = instance(limited, 200, "50.00")
    limited.bill(NOON)
    accept_until(limited, organization, NOON)
    assert limited.bill(NOON + HOUR).totals == Totals(instances=1, hours=50, amount=D(50), debts=1)
    limited.run("delete from billing_accepted_backlogs")
    limited.top_up(organization, "500.00")
    assert limited.bill(NOON + 400 * HOUR).totals.amount == D(500), "recorded hours aren't a backlog"
    assert limited.reason(owing) == "insufficient_balance"


def test_debts_that_were_recorded_in_time_are_not_a_backlog(limited: World) -> None:
    organization, owing = instance(limited, 100, "0.00")
    limited.bill(NOON)
    for days in range(1, 15):
        limited.bill(NOON + timedelta(days=days))
    limited.top_up(organization, "1000.00")
    limited.bill(NOON + timedelta(days=15))
    assert limited.reason(owing) is None
    assert sum(hours for _, hours, _ in limited.billed(owing)) == 100 + 15 * 24


def test_outage_of_the_controller_is_charged_in_full(limited: World) -> None:
    _, old = instance(limited, 5)
    assert limited.bill(NOON).outcome is Outcome.COMPLETED
    organization, new = instance(limited, -100)
    later = NOON + timedelta(days=30)
    result = limited.bill(later)
    assert (result.outcome, result.totals.hours) == (Outcome.COMPLETED, 720 + 620)
    assert [len(limited.billed(each)) for each in (old, new)] == [2, 1]
    # an instance that comes with hours from before the last cycle
    late = limited.instance(organization, limited.plan(HOURLY), later - 169 * HOUR)
    assert limited.bill(later + HOUR).failures_by_reason == {"backlog": 1}
    assert limited.reason(late) == "backlog"


def test_other_reasons_do_not_turn_a_backlog_into_a_debt(limited: World) -> None:
    organization = limited.organization(None)
    owing = limited.instance(organization, limited.plan(HOURLY), NOON - 200 * HOUR)
    assert limited.bill(NOON).failures_by_reason == {"wallet_missing": 1}
    limited.wallet(organization, "1000.00")
    assert limited.bill(NOON + HOUR).failures_by_reason == {"backlog": 1}
    limited.run("insert into billing_suspensions values (%s, 'periods', 'x')", organization)
    limited.bill(NOON + 2 * HOUR)
    assert limited.reason(owing) == "audit_violation"
    limited.run("delete from billing_suspensions")
    assert limited.bill(NOON + 3 * HOUR).failures_by_reason == {"backlog": 1}


def test_organization_that_fails_with_an_error_stays_in_backlog(limited: World) -> None:
    organization, owing = instance(limited, 200)
    for hours in range(3):
        instance(limited, hours + 1)
    limited.bill(NOON - HOUR)
    accept_until(limited, organization, NOON)
    limited.run("delete from vps_billing_cycles where status = 'failed'")
    limited.run(
        "create function refuse() returns trigger language plpgsql as"
        " 'begin if new.amount < -100 then raise exception ''no''; end if; return new; end';"
        " create trigger refuse before insert on payment_transactions for each row execute function refuse()"
    )
    assert limited.bill(NOON).failures_by_reason == {"error": 1}
    assert limited.one("select metadata ? 'backlog' from vps_billing_cycles where status = 'failed'") is False
    limited.run("delete from billing_accepted_backlogs; delete from vps_billing_cycles where status = 'failed'")
    limited.run(
        "alter table vps_billing_cycles add constraint shut"
        " check ((metadata ->> 'reason') is distinct from 'backlog') not valid"
    )
    limited.bill(NOON + HOUR)
    assert limited.reason(owing) == "error"
    limited.run("alter table vps_billing_cycles drop constraint shut")
    assert limited.bill(NOON + 2 * HOUR).failures_by_reason == {"backlog": 1}


def test_instances_beside_a_backlog_are_charged(limited: World) -> None:
    organization, _ = instance(limited, 200)
    limited.instance(organization, limited.plan("7300"), NOON - 2 * HOUR)
    assert limited.bill(NOON).totals.amount == D(20)


def test_explain_and_the_dry_run_say_what_the_cycle_does(limited: World) -> None:
    organization, owing = instance(limited, 200)
    limited.bill(NOON)
    explained = explain(limited.conn, find(limited.conn, str(organization)), limited.pricing)
    assert explained.reasons() == ["backlog"]
    (listed,) = read_unrecorded(limited.conn, limited.pricing)
    assert (listed["instance_id"], listed["in_backlog"], listed["found"]) == (owing, True, 1)
    assert listed["amount"] == listed["hours"] > 200
    accept(limited, None)
    explained = explain(limited.conn, find(limited.conn, str(organization)), limited.pricing)
    assert explained.reasons() == ["insufficient_balance"]
    assert read_unrecorded(limited.conn, limited.pricing)[0]["in_backlog"] is False
    before = limited.dump()
    dry = limited.cycle().run(limited.term(), dry=True)
    assert [(each["instance_id"], each["amount"]) for each in dry.largest] == [(owing, D(1000))]
    assert limited.dump() == before


def test_no_limit_charges_everything(world: World) -> None:
    _, owing = instance(world, 900)
    assert world.bill(NOON).outcome is Outcome.COMPLETED
    assert len(world.billed(owing)) == 1


def test_proof_ignores_backlogs_unless_there_is_nothing_else(limited: World) -> None:
    instance(limited, 900)
    term = limited.lead()
    assert prove(limited.ledger, term, ScriptedStop()) == "backlog"
    limited.instance(limited.organization(), limited.plan(HOURLY), limited.one("select now()"))
    assert prove(limited.ledger, term, ScriptedStop()) is None
    assert limited.rows("select from vps_billing_cycles") == []
