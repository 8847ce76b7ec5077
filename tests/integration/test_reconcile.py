"""A wallet that the application overwrote is found, explained, and corrected or accepted by command."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from controller import sql
from controller.billing import reconcile as reconciliation
from controller.billing.answers import find
from controller.billing.audit import audit
from controller.billing.guard import Guard
from controller.billing.reconcile import Comparison, Correction, Order, RefusedError, compare, reconcile
from controller.billing.statement import read_statement
from controller.billing.status import read_status
from controller.billing.verdict import verdict
from tests.integration.world import ScriptedStop, World
from tests.model import HOUR, NOON
from tests.support.waiting import eventually

D = Decimal
#: A plan of 10.00 an hour.
HOURLY: Final = "7300"


def check(world: World) -> list[Any]:
    """The guard's check after a cycle. Returns what it logged."""
    with capture_logs() as logs:
        Guard(world.ledger, ScriptedStop()).check(world.term())
    return [line for line in logs if line["event"] != "guard.passed"]


def compared(world: World, organization: UUID) -> Comparison:
    found = compare(world.conn, organization)
    assert found is not None
    return found


def payment(world: World, organization: UUID, amount: str, status: str = "completed", **metadata: object) -> UUID:
    """A payment of the application, without its wallet."""
    row: UUID = world.one(
        "insert into payment_transactions (organization_id, amount, status, payment_method, metadata)"
        " values (%s, %s, %s, 'card', %s) returning id",
        organization,
        amount,
        status,
        Jsonb(metadata),
    )
    return row


def write_back(world: World, organization: UUID, read: str, amount: str) -> None:
    """A top-up as the application makes it: an absolute balance, computed from a balance that it read earlier."""
    after = D(read) + D(amount)
    world.run("update wallets set balance = %s where organization_id = %s", after, organization)
    payment(world, organization, amount, balance_before=read, balance_after=str(after))


def age(world: World) -> None:
    """Makes every payment an hour older, so that nothing is in flight."""
    with world.conn.transaction():
        world.run("set local session_replication_role = replica")
        hour = "interval '1 hour'"
        world.run(f"update payment_transactions set created_at = created_at - {hour}, updated_at = updated_at - {hour}")  # noqa: S608


@pytest.fixture
def charged(world: World) -> UUID:
    """An organization that was charged 10.00 of 100.00 for one hour. A second hour is due at NOON."""
    organization = world.organization("100.00")
    world.instance(organization, world.plan(HOURLY), NOON - 2 * HOUR)
    world.bill(NOON - HOUR)
    assert world.balance(organization) == D(90)
    return organization


@pytest.fixture
def overwritten(world: World, charged: UUID) -> UUID:
    """The same organization, after a top-up of 20.00 that had read the wallet before the debit."""
    write_back(world, charged, "100.00", "20.00")
    return charged


def test_overwritten_debit_is_found_at_the_next_charge_and_reported_once(world: World, overwritten: UUID) -> None:
    assert check(world) == [], "nothing has charged the wallet since"
    world.bill(NOON)
    (logged,) = check(world)
    assert (logged["event"], logged["difference"], logged["explanation"]) == (
        "wallet.mismatched",
        "10.00",
        {"overwritten_debit": "10.00"},
    )
    assert check(world) == []
    assert world.rows("select * from billing_suspensions") == []
    status = read_status(world.conn)
    assert (status.differing_wallets, status.difference) == (1, D(10))
    assert "1 wallet differs from the transactions by 10.00; `audit` lists them" in verdict(status).line
    report = audit(world.conn, overwritten)
    assert report.clean, "the application may change wallets"
    (finding,) = [each for each in report.findings if each.exempt]
    assert (finding.invariant, finding.exempt) == ("wallet_balance", 1)
    assert finding.exempt_examples[0].endswith("overwritten_debit 10.00")


def test_difference_that_is_gone_is_forgotten(world: World, overwritten: UUID) -> None:
    world.bill(NOON)
    check(world)
    world.run("update wallets set balance = balance - 10 where organization_id = %s", overwritten)
    world.bill(NOON + HOUR)
    check(world)
    assert world.rows("select * from billing_wallet_differences") == []


def test_wallet_that_only_we_changed_is_never_compared(world: World, charged: UUID) -> None:
    world.bill(NOON)
    assert world.rows("select * from billing_wallet_baselines where changed_at is not null or left_balance <> 80") == []
    world.top_up(charged, "5.00")
    world.bill(NOON + HOUR)
    assert world.one("select changed_at is not null from billing_wallet_baselines")
    assert check(world) == [], "a top-up with its transaction explains itself"
    assert world.one("select changed_at is null and checked_at is not null from billing_wallet_baselines")


def test_every_path_keeps_the_balance_that_it_left(world: World) -> None:
    plan = world.plan(HOURLY)
    rich, poor, empty, cheap = (world.organization(each) for each in ("100.00", "15.00", "0.00", "100.0"))
    for organization in (rich, poor, empty):
        world.instance(organization, plan, NOON - 3 * HOUR)
    world.instance(cheap, world.plan("0.00"), NOON - 3 * HOUR)
    for hours in (2, 1, 0):
        world.bill(NOON - hours * HOUR)
        wrong = world.rows(
            "select w.balance, b.left_balance, b.changed_at from wallets w join billing_wallet_baselines b"
            " on b.wallet_id = w.id where w.balance <> b.left_balance or b.changed_at is not null"
        )
        assert wrong == []
    assert [world.balance(each) for each in (rich, poor, empty)] == [D(70), D(5), D(0)]


def test_top_up_between_two_statements_of_a_batch_is_compared_and_explained(world: World, charged: UUID) -> None:
    world.run(
        "create function top_up() returns trigger language plpgsql as 'begin update wallets set balance = balance + 5;"
        " return null; end'; create trigger top_up after insert on billing_batches execute function top_up()"
    )
    payment(world, charged, "5.00")
    world.bill(NOON)
    world.run("drop trigger top_up on billing_batches")
    assert world.one("select left_balance from billing_wallet_baselines") == world.balance(charged) == D(85)
    assert check(world) == []
    assert compared(world, charged).difference == 0


def half_cents(world: World, organization: UUID) -> None:
    for _ in range(3):
        balance = world.balance(organization)
        write_back(world, organization, str(balance), "5.00")
        world.run("update wallets set balance = balance + 0.01")
        world.run(
            "update payment_transactions set metadata = metadata || jsonb_build_object('balance_after', %s::numeric)"
            " where metadata ->> 'balance_before' = %s",
            balance + D("5.01"),
            str(balance),
        )


def deleted_row(world: World, organization: UUID) -> None:
    write_back(world, organization, "90.00", "50.00")
    world.bill(NOON)
    check(world)  # a clean comparison
    world.run("delete from payment_transactions where amount = 50")


def two_top_ups(world: World, organization: UUID) -> None:
    write_back(world, organization, "90.00", "30.00")
    write_back(world, organization, "90.00", "5.00")


def both(*acts: Callable[[World, UUID], object]) -> Callable[[World, UUID], None]:
    def act(world: World, organization: UUID) -> None:
        for each in acts:
            each(world, organization)

    return act


def move(amount: str) -> Callable[[World, UUID], object]:
    return lambda world, _: world.run("update wallets set balance = balance + %s", D(amount))


def aged(world: World, _organization: UUID) -> None:
    age(world)


def fresh_without_balance(world: World, _organization: UUID) -> None:
    world.run("alter table payment_transactions disable trigger user")
    world.run("update payment_transactions set updated_at = now() - interval '14 minutes' where amount = 5")


def overwritten_and_changed_by_hand(world: World, organization: UUID) -> None:
    write_back(world, organization, "100.00", "20.00")
    world.run("update wallets set balance = balance + 1.50")


CAUSES: Final[dict[str, tuple[Callable[[World, UUID], object], dict[str, Decimal]]]] = {
    "changed by hand": (move("-3"), {"unexplained": D(-3)}),
    "rounded": (move("0.01"), {"half_cents": D("0.01")}),
    "rounded three times": (half_cents, {"half_cents": D("0.03")}),
    "a capture whose wallet follows": (lambda world, each: payment(world, each, "25.00"), {"in_flight": D(-25)}),
    "a wallet whose capture follows": (
        both(move("25"), lambda world, each: payment(world, each, "25.00", "pending")),
        {"in_flight": D(25)},
    ),
    "a deleted top-up": (deleted_row, {"deleted_rows": D(50)}),
    "two top-ups at once": (two_top_ups, {"overwritten_credit": D(-30)}),
    "two causes": (overwritten_and_changed_by_hand, {"overwritten_debit": D(10), "unexplained": D("1.5")}),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_difference_is_explained(world: World, charged: UUID, cause: str) -> None:
    act, parts = CAUSES[cause]
    act(world, charged)
    found = compared(world, charged)
    assert found.explanation == parts
    assert found.difference == sum(parts.values())


def test_other_wallets_transactions_and_odd_metadata_never_count(world: World, charged: UUID) -> None:
    payment(world, charged, "40.00", wallet_type="caas")
    payment(world, charged, "0.00", balance_before="NaN", balance_after={"a": 1})
    world.run("update payment_transactions set metadata = '[]' where amount = 0")
    found = compared(world, charged)
    assert (found.difference, found.other_wallets) == (D(0), D(40))


def test_lost_organization_and_unusable_wallet_are_not_compared(world: World, overwritten: UUID) -> None:
    world.bill(NOON)
    check(world)
    world.wallet(overwritten, "1.00")
    assert compared(world, overwritten).not_compared == "wallet_duplicate"
    assert check(world) == []
    assert world.rows("select * from billing_wallet_differences") == []
    world.run("update billing_wallet_baselines set changed_at = now()")
    world.run("delete from organizations")
    assert check(world) == []
    assert world.one("select changed_at is null from billing_wallet_baselines")
    assert compare(world.conn, overwritten) is None


def order(kind: str, amount: str) -> Order:
    return Order(kind, D(amount), "overwritten", "tester")


def carry_out(
    world: World, organization: UUID, kind: str, amount: str, wait: Callable[[float], None] = lambda _seconds: None
) -> Correction:
    return reconcile(world.conn, organization, order(kind, amount), wait)


def test_correction_moves_the_wallet_and_the_statement_still_adds_up(world: World, overwritten: UUID) -> None:
    age(world)
    waits: list[float] = []
    done = carry_out(world, overwritten, "correct", "10.00", waits.append)
    assert (done.amount, done.rest, done.overwritten, done.after.difference) == (D(-10), D(0), False, D(0))
    assert waits == [5]
    assert world.balance(overwritten) == D(110)
    world.bill(NOON)
    assert check(world) == []
    shown = read_statement(world.conn, find(world.conn, str(overwritten)), "2020-01-01", None)
    assert shown.difference == 0
    assert [(line["amount"], line["description"]) for line in shown.lines if line["kind"] == "correction"] == [
        (D(0), "wallet corrected by -10.00: overwritten")
    ]
    report = audit(world.conn)
    assert (report.clean, report.corrections, report.corrected) == (True, 1, D(10))
    made = world.rows("select kind, difference, amount, made_by, explanation from billing_corrections")
    assert made[0]["made_by"].startswith("tester (role ")
    assert (made[0]["kind"], made[0]["difference"], made[0]["explanation"]) == (
        "correct",
        D(10),
        {"overwritten_debit": "10.00"},
    )


def test_accepted_difference_is_a_dated_line_of_the_statement(world: World, overwritten: UUID) -> None:
    age(world)
    done = carry_out(world, overwritten, "accept", "10.00")
    assert (done.after.difference, world.balance(overwritten)) == (D(0), D(120))
    subject = find(world.conn, str(overwritten))
    accepted_at = world.one("select made_at from billing_corrections")
    before = read_statement(world.conn, subject, "2020-01-01", accepted_at.isoformat())
    after = read_statement(world.conn, subject, accepted_at.isoformat(), None)
    assert (before.balance["opening"], before.balance["closing"]) == (D(100), D(110))
    assert (after.balance["opening"], after.balance["closing"], after.difference) == (D(110), D(120), D(0))
    assert [(line["kind"], line["amount"]) for line in after.lines] == [("correction", D(10))]
    whole = read_statement(world.conn, subject, "2020-01-01", (accepted_at + timedelta(seconds=1)).isoformat())
    assert whole.balance["closing"] - whole.balance["opening"] == sum(line["amount"] for line in whole.lines)


REFUSALS: Final[dict[str, tuple[Callable[[World, UUID], object], str]]] = {
    "another difference": (both(aged, move("1")), "the difference is 11.00, not 10.00"),
    "no difference": (both(aged, move("-10")), "the difference is 0.00, not 10.00"),
    "a payment of this minute": (lambda _world, _: None, "a payment has changed in the last 60 seconds"),
    "a top-up without its balance": (
        both(lambda world, each: payment(world, each, "5.00"), move("5"), aged, fresh_without_balance),
        "less than 15 minutes ago has no balance_after",
    ),
    "a duplicate wallet": (lambda world, each: world.wallet(each, "0.00"), "wallet_duplicate"),
    "no baseline": (lambda world, _: world.run("delete from billing_wallet_baselines"), "not_adopted"),
}


@pytest.mark.parametrize("cause", REFUSALS)
@pytest.mark.parametrize("kind", ["correct", "accept"])
def test_correction_is_refused(world: World, overwritten: UUID, cause: str, kind: str) -> None:
    act, message = REFUSALS[cause]
    act(world, overwritten)
    before = world.dump("wallets", "billing_wallet_baselines", "billing_corrections")
    with pytest.raises(RefusedError, match=message):
        carry_out(world, overwritten, kind, "10.00")
    assert world.dump("wallets", "billing_wallet_baselines", "billing_corrections") == before


@pytest.mark.parametrize("second", ["accept", "correct"])
@pytest.mark.parametrize("first", ["accept", "correct"])
def test_two_corrections_at_once_apply_the_difference_once(
    world: World, overwritten: UUID, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(world)
    waiting = (
        "select count(*) = 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    act, others = getattr(reconciliation, f"_{first}"), list[Future[Correction]]()

    def with_another(connection: sql.Connection, found: Any) -> Decimal:  # noqa: ANN401 - passed on
        if not others:
            others.append(pool.submit(from_another_session, second))
            eventually(lambda: others[0].done() or world.one(waiting), "the other session has not waited")
        moved: Decimal = act(connection, found)
        return moved

    def from_another_session(kind: str) -> Correction:
        with world.database.connect() as other:
            return reconcile(other, overwritten, order(kind, "10.00"), lambda _seconds: None)

    monkeypatch.setattr(reconciliation, f"_{first}", with_another)
    with ThreadPoolExecutor(1) as pool:
        done = from_another_session(first)
    assert done.after.difference == 0
    with pytest.raises(RefusedError, match="the difference is 0"):
        others[0].result()
    assert world.one("select count(*) from billing_corrections") == 1


def test_correction_takes_no_more_than_the_wallet_holds(world: World, overwritten: UUID) -> None:
    age(world)
    world.run("update wallets set balance = 4")
    payment(world, overwritten, "-116.00", balance_before="120.00", balance_after="4.00")
    age(world)
    done = carry_out(world, overwritten, "correct", "10.00")
    assert (done.amount, done.rest, done.overwritten) == (D(-4), D(6), False)
    assert world.balance(overwritten) == 0
    with pytest.raises(RefusedError, match="the wallet is empty"):
        carry_out(world, overwritten, "correct", "6.00")
    assert read_status(world.conn).difference == D(6)


def test_correction_gives_back_what_is_missing(world: World, charged: UUID) -> None:
    two_top_ups(world, charged)
    age(world)
    done = carry_out(world, charged, "correct", "-30.00")
    assert (done.amount, done.after.difference, world.balance(charged)) == (D(30), D(0), D(125))


def test_correction_that_the_application_overwrites_says_so(world: World, overwritten: UUID) -> None:
    age(world)
    done = carry_out(
        world, overwritten, "correct", "10.00", lambda _seconds: write_back(world, overwritten, "120.00", "7.00")
    )
    assert (done.overwritten, done.after.difference) == (True, D(10))
