"""The story's end: the audit, and sums that a person can do again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import ROUND_HALF_UP
from typing import Final

from controller.demo.books import CENT, HOURS_A_MONTH, Books, Funds, Period
from controller.demo.replicas import ExpectationError, Troupe, expect
from controller.demo.teller import Teller, dollars

#: For the example: longer is better to check, but a few days are enough.
EXAMPLE_HOURS: Final = range(24, 100)
DEFAULT_HOURLY_RATE: Final = "0.027"


def prove(teller: Teller, troupe: Troupe, books: Books, url: str, funds: Funds) -> None:
    """Tells what was verified, or raises ExpectationError where something does not add up."""
    teller.chapter("prove")
    with teller.waiting("auditing"):
        invariants = _audit(troupe, url)
    teller.verified(f"audit clean: {invariants} invariants of the money hold")
    _money(teller, books, funds)
    _hours(teller, books)
    with teller.waiting("doing the sums again"):
        periods = books.periods()
    _prices(teller, periods)


def _audit(troupe: Troupe, url: str) -> int:
    """How many invariants hold, by the command as people run it."""
    done = troupe.run("audit", "--json", settings={"DATABASE_URL": url})
    if done.returncode not in {0, 1}:
        raise ExpectationError(f"`audit` ends with 0 or 1; it ended with {done.returncode}: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    broken = [f"{each['invariant']}: {each['examples'][0]}" for each in report["findings"] if each["violations"]]
    expect(done.returncode == 0 and not broken, f"the audit is clean; it found {'; '.join(broken)}")
    return len(report["findings"])


def _money(teller: Teller, books: Books, funds: Funds) -> None:
    money = books.money()
    spent = funds.before + funds.paid_in - money.wallets
    expect(
        0 < spent == money.charges == money.debits,
        f"wallets fall by what is charged; they fell by {spent}, charged is {money.charges}, debited {money.debits}",
    )
    teller.verified(
        f"wallets: {dollars(funds.before)} + {dollars(funds.paid_in)} paid in - {dollars(money.wallets)} left"
    )
    teller.more(f"= {dollars(spent)} = all charges = all debits")


def _hours(teller: Teller, books: Books) -> None:
    hours, unpaid, amiss = books.hours(), books.unpaid(), books.charged_amiss()
    expect(amiss == 0, f"no hour is charged twice or left out; on {amiss:,} instances one is")
    expect(
        0 < hours.charged == hours.due - hours.unpaid,
        f"hours due are charged or recorded as unpaid; {hours.due} were due, {hours.charged} are charged,"
        f" {hours.unpaid} unpaid",
    )
    teller.verified(f"hours: {hours.due:,} due = {hours.charged:,} charged + {hours.unpaid:,} unpaid")
    expect(unpaid.others == 0, f"only want of money keeps an hour unpaid; for {unpaid.others} instances it is another")
    teller.more(
        f"unpaid: {unpaid.short:,} instances owe {dollars(unpaid.owed)}, {unpaid.without_wallet:,} have no wallet"
    )


def _prices(teller: Teller, periods: Sequence[Period]) -> None:
    wrong = [each for each in periods if abs(each.amount - each.by_hand) >= CENT]
    expect(not wrong, f"no charge is a cent off its price / {HOURS_A_MONTH} x hours; {len(wrong):,} are: {wrong[:1]}")
    teller.verified(f"{len(periods):,} charges, none a cent off its price / {HOURS_A_MONTH} x hours")
    example = _example([each for each in periods if each.plan])
    teller.more(
        f"{example.label}, {example.plan}: ${example.monthly_price:.2f} / {HOURS_A_MONTH} x {example.hours} h"
        f" = ${example.by_hand:.4f} -> ${example.amount:.2f}"
    )
    planless = _example([each for each in periods if each.price_source == "default"])
    teller.more(
        f"{planless.label}, plan gone: ${DEFAULT_HOURLY_RATE} x {planless.hours} h = ${planless.by_hand:.4f}"
        f" -> ${planless.amount:.2f}"
    )


def _example(periods: Sequence[Period]) -> Period:
    """One that is neither short nor very long, and whose charge is what the sum by hand is rounded to, if there is."""
    expect(bool(periods), "a charge of each kind makes an example; one kind is not there")

    def fitness(each: Period) -> tuple[bool, bool]:
        return each.amount == each.by_hand.quantize(CENT, ROUND_HALF_UP), each.hours in EXAMPLE_HOURS

    return max(periods, key=fitness)
