"""If one organization fails, the others are billed. If all of them fail alike, the cycle fails."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.ledger import Ledger
from controller.billing.sharing import SLOW_SECONDS
from controller.billing.values import Cause, CycleResult, Outcome, Totals
from controller.postgres.connections import FOREGROUND, WORKER, Database
from tests.integration.world import LedgerAt, ScriptedStop, World
from tests.model import HOUR, NOON

D = Decimal
CENT_AN_HOUR = "7.30"

#: Errors that an organization or the controller may cause.
SQLSTATES = (
    "AP001", "P0001", "08006", "0A000", "22003", "23514", "25006", "2F003", "40001", "42501", "42P01", "53100", "53200",
    "53300", "54001", "55000", "55P03", "57014", "57P01", "58030", "XX000", "XX001",
)  # fmt: skip


def organizations(world: World, number: int, balance: str = "10.00") -> list[UUID]:
    """Creates organizations in the order of their ids, each with one instance that owes five cents."""
    plan = world.plan(CENT_AN_HOUR)
    made = [world.organization(balance) for _ in range(number)]
    for each in made:
        world.instance(each, plan, NOON - 5 * HOUR)
    return made


def refuse(world: World, refused: list[UUID] | None, do: str, event: str = "insert on payment_transactions") -> None:
    """Creates a trigger that executes `do` for the payments of these organizations, or of all."""
    condition = "true" if refused is None else f"new.organization_id = any ('{{{','.join(map(str, refused))}}}')"
    world.run(
        "create function refuse() returns trigger language plpgsql as"
        f" $$ begin if {condition} then {do}; end if; return new; end $$"
    )
    world.run(f"create trigger refuse before {event} for each row execute function refuse()")


def reasons(world: World) -> dict[UUID, str]:
    """The reason of each organization's open row."""
    found = world.rows(
        "select organization_id as o, metadata ->> 'reason' as r from vps_billing_cycles where status = 'failed'"
    )
    return {row["o"]: row["r"] for row in found}


@pytest.mark.parametrize("sqlstate", SQLSTATES)
def test_error_of_one_organization_stops_no_other(world: World, sqlstate: str) -> None:
    made = organizations(world, 7)
    refuse(world, [made[3]], f"raise sqlstate '{sqlstate}' using message = 'not this one'")
    result = world.bill(NOON)
    assert result.totals == Totals(instances=6, hours=30, amount=D("0.30"), failures=1)
    assert reasons(world) == {made[3]: "locked" if sqlstate == "55P03" else "error"}
    assert world.violations() == {}


def test_organization_that_ends_the_session_stops_no_other(world: World) -> None:
    made = organizations(world, 4)
    refuse(world, [made[0]], "perform pg_terminate_backend(pg_backend_pid())")
    assert world.bill(NOON).totals == Totals(instances=3, hours=15, amount=D("0.15"), failures=1)
    assert reasons(world) == {made[0]: "error"}


def refuse_at_commit(world: World) -> None:
    world.run(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'at commit'; end $$"
    )
    world.run(
        "create constraint trigger refuse after insert on payment_transactions deferrable initially deferred"
        " for each row execute function refuse()"
    )


EVERYBODY: dict[str, Callable[[World], None]] = {
    "trigger": lambda world: refuse(world, None, "raise sqlstate 'AP001' using message = 'no payment of ' || new.id"),
    "permission": lambda world: refuse(world, None, "raise sqlstate '42501'"),
    "check constraint": lambda world: world.run(
        "alter table payment_transactions add constraint refuse check (amount >= 0)"
    ),
    "missing column": lambda world: world.run("alter table wallets rename column balance to credit"),
    "dropped rows": lambda world: refuse(world, None, "return null"),
    "constraint at commit": refuse_at_commit,
}


@pytest.mark.parametrize("failure", EVERYBODY)
def test_failure_of_every_organization_is_the_controllers_and_marks_none(world: World, failure: str) -> None:
    organizations(world, 20)
    EVERYBODY[failure](world)
    before = world.dump("vps_billing_cycles", "payment_transactions", "vps_instances", "wallets")
    result = world.cycle(NOON, batch_size=5, workers=2).run(world.lead())
    assert result.outcome is Outcome.FAILED
    assert result.totals == Totals()
    assert world.dump(*before) == before


def test_failure_of_both_of_two_organizations_is_theirs(world: World) -> None:
    made = organizations(world, 2)
    refuse(world, None, "raise sqlstate 'AP001'")
    result = world.cycle(NOON).run(world.lead())
    assert result.totals == Totals(failures=2)
    assert reasons(world) == dict.fromkeys(made, "error")


def test_failures_that_differ_are_the_organizations(world: World) -> None:
    made = organizations(world, 6)
    refuse(world, made[:3], "raise sqlstate 'AP001'")
    world.run("alter table payment_transactions add constraint refuse check (amount >= 0)")
    result = world.cycle(NOON).run(world.lead())
    assert result.totals == Totals(failures=6)
    assert reasons(world) == dict.fromkeys(made, "error")


def test_single_organization_that_is_short_of_balance_clears_the_controller(world: World) -> None:
    made = organizations(world, 5)
    poor = organizations(world, 1, balance="0.00")[0]
    refuse(world, None, "raise sqlstate '42501'")
    result = world.cycle(NOON).run(world.lead())
    assert result.totals == Totals(debts=1, failures=5)
    assert reasons(world) == dict.fromkeys(made, "error") | {poor: "insufficient_balance"}


@pytest.mark.parametrize("batch_size", [3, 2000])
@pytest.mark.parametrize("parity", [0, 1])
def test_every_other_organization_failing_leaves_the_rest_billed(world: World, parity: int, batch_size: int) -> None:
    made = organizations(world, 34)
    refuse(world, made[parity::2], "raise sqlstate '53100'")
    assert world.bill(NOON, batch_size=batch_size, workers=2).totals == Totals(17, 85, D("0.85"), failures=17)
    assert reasons(world) == dict.fromkeys(made[parity::2], "error")


def test_organization_that_failed_before_is_planned_last_and_alone(world: World) -> None:
    made = organizations(world, 6)
    refuse(world, [made[1], made[4]], "raise sqlstate 'AP001'")
    world.bill(NOON)
    for each in made:
        world.run("update vps_instances set last_billed_at = null where organization_id = %s", each)
    ledger = world.ledger(as_of=NOON)
    with ledger.connection, ledger.fenced(world.lead().term, keep=False):
        plan = ledger.plan(ledger.begin_run(world.term().term), 2000)
    assert [(each.first_organization, each.last_organization, each.failed_before) for each in plan] == [
        (made[0], made[0], False), (made[2], made[3], False), (made[5], made[5], False),
        (made[1], made[1], True), (made[4], made[4], True),
    ]  # fmt: skip


def test_organizations_that_failed_before_are_not_evidence_against_the_controller(world: World) -> None:
    """Only the organizations that fail are still due."""
    made = organizations(world, 9)
    refuse(world, made[:5], "raise sqlstate 'AP001'")
    assert world.bill(NOON).totals.failures == 5
    result = world.cycle(NOON).run(world.lead())
    assert (result.totals, result.cause) == (Totals(failures=5), Cause.ORGANIZATIONS)
    assert len(reasons(world)) == 5


def test_failures_of_several_kinds_are_not_the_controllers(world: World) -> None:
    refused = organizations(world, 3)
    refuse(world, refused, "raise sqlstate 'AP001'")
    for _ in range(6):
        world.instance(world.organization(None), world.plan(CENT_AN_HOUR), NOON - 5 * HOUR)
    result = world.cycle(NOON).run(world.lead())
    assert (result.totals, result.cause) == (Totals(failures=9), Cause.ORGANIZATIONS)


def test_few_failures_of_another_kind_do_not_excuse_the_controller(world: World) -> None:
    organizations(world, 20)
    world.instance(world.organization(None), world.plan(CENT_AN_HOUR), NOON - 5 * HOUR)
    refuse(world, None, "raise sqlstate 'AP001'")
    assert world.cycle(NOON).run(world.lead()).cause is Cause.CONTROLLER


def test_proof_tries_organizations_that_did_not_fail_before(world: World) -> None:
    made = organizations(world, 17)
    refuse(world, made[:16], "raise exception 'not this one'")
    world.bill(NOON)
    leadership = world.lead()
    assert world.cycle().prove(leadership) is None
    world.run("delete from vps_instances where organization_id = %s", made[16])
    assert world.cycle().prove(leadership) == "not this one"


def test_large_organization_with_slow_rows_is_billed_in_shorter_steps(world: World) -> None:
    """3,000 rows of 2 ms each exceed the statement timeout of 5 s at the default batch size."""
    (slow,) = organizations(world, 1, balance="10000.00")
    world.run(
        "insert into vps_instances (organization_id, plan_id, created_at, label)"
        " select organization_id, plan_id, created_at, label from vps_instances, generate_series(2, 3000)"
    )
    refuse(world, [slow], "perform pg_sleep(0.002)")
    organizations(world, 3)
    result = world.bill(NOON, batch_size=CycleSettings().batch_size)
    assert result.totals == Totals(instances=3003, hours=15015, amount=D("150.15"))
    assert world.violations() == {}


def test_slow_organization_shares_later_transactions_with_fewer_others(world: World) -> None:
    made = organizations(world, 8)
    refuse(world, [made[3]], f"perform pg_sleep({SLOW_SECONDS})")
    as_of = [NOON]
    cycles = Cycle(
        lambda: world.ledger(FOREGROUND, as_of[-1]),
        lambda: world.ledger(WORKER, as_of[-1]),
        CycleSettings(workers=1),
        ScriptedStop(),
    )
    transactions = []
    for _ in range(2):
        as_of.append(as_of[-1] + HOUR)
        result = cycles.run(world.lead())
        assert result.totals.instances == len(made)
        assert result.run is not None
        transactions.append(world.one("select count(*) from billing_batches where run_id = %s", result.run.id))
    assert transactions == [1, 6], "two share one; after the slow one, each of the other four is alone"


def test_worker_whose_session_is_refused_leaves_its_work_to_the_others(world: World) -> None:
    organizations(world, 8)
    world.run("drop role if exists limited")
    world.run("create role limited login connection limit 2")
    try:
        world.run("grant all on all tables in schema public to limited")
        world.run("grant all on all sequences in schema public to limited")
        database = Database(lambda: make_conninfo(world.url, user="limited"), "DATABASE_URL", "test-1")

        def ledger() -> Ledger:
            return Ledger(database.connect(), world.pricing, "test-1")

        with capture_logs() as logs:
            cycle = Cycle(ledger, ledger, CycleSettings(workers=4, batch_size=2), ScriptedStop(wait=time.sleep))
            result = cycle.run(world.lead())
        assert result.outcome is Outcome.COMPLETED, result.error
        assert result.totals.instances == 8
        assert [each["event"] for each in logs].count("worker.unavailable") >= 1
    finally:
        world.run("drop owned by limited")
        world.run("drop role limited")


def test_history_that_cannot_be_pruned_is_a_warning(world: World) -> None:
    organizations(world, 1)
    world.bill(NOON)
    world.run("update billing_batches set written_at = now() - interval '1 year'")
    with psycopg.connect(world.url) as other:
        other.execute("select from billing_batches for update")
        with capture_logs() as logs:
            result = world.bill(NOON + HOUR)
        assert result.totals == Totals(instances=1, hours=1, amount=D("0.01"))
        other.rollback()
    assert "history.unpruned" in {each["event"] for each in logs}
    world.bill(NOON + 2 * HOUR)
    assert world.one("select count(*) from billing_batches where written_at < now() - interval '1 month'") == 0


def many(world: World, number: int) -> None:
    """Creates this many organizations with ten instances each."""
    organizations(world, 1)
    world.run(
        "insert into organizations (id, name, slug, owner_id)"
        " select md5(n::text)::uuid, 'Org', 'many-' || n, id from users, generate_series(1, %s) n",
        number,
    )
    world.run(
        "insert into wallets (organization_id, balance, currency) select id, 100, 'USD' from organizations o"
        " where not exists (select from wallets w where w.organization_id = o.id)"
    )
    world.run(
        "insert into vps_instances (organization_id, plan_id, created_at, label)"
        " select o.id, i.plan_id, i.created_at, i.label from organizations o, vps_instances i, generate_series(1, 10)"
    )
    world.run("analyze")


def timed(world: World) -> tuple[CycleResult, float]:
    began = time.monotonic()
    result = world.cycle(NOON, batch_size=CycleSettings().batch_size, workers=2).run(world.lead())
    return result, time.monotonic() - began


def test_cycle_in_which_every_charge_fails_ends_early(world: World) -> None:
    many(world, 2000)
    refuse(world, None, "raise sqlstate 'AP001'")
    result, seconds = timed(world)
    assert (result.outcome, result.totals) == (Outcome.FAILED, Totals())
    assert seconds < 10


def test_cycle_in_which_half_of_the_organizations_fail_takes_few_transactions(world: World) -> None:
    """At 5 ms for each, 100,000 organizations take less than half an hour."""
    many(world, 100)
    made = [row["id"] for row in world.rows("select id from organizations order by id")]
    refuse(world, made[::2], "raise sqlstate 'AP001'")
    transactions = 0

    class Counted(LedgerAt):
        @contextmanager
        def fenced(
            self, term: int, *, keep: bool = True, enforce: bool | None = None, needs_heartbeat: bool = False
        ) -> Iterator[None]:
            nonlocal transactions
            transactions += 1
            with super().fenced(term, keep=keep, enforce=enforce, needs_heartbeat=needs_heartbeat):
                yield

    world.ledger_class = Counted
    result, _ = timed(world)
    assert result.totals.failures > 0
    assert result.totals.instances + result.totals.failures == 1011
    assert transactions < 2 * len(made)
