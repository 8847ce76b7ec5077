"""Compares what billing wrote with the model, and returns a sentence for each defect.

A wallet's lock serializes its charges and top-ups. So they can be ordered by any moment at which their transactions
held that lock. For a charge this moment is its commit. A top-up that wrote an absolute balance undoes the charges since
the application read it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from typing import Final
from uuid import UUID

from tests.faults.soak_ledger import Ledger, Run
from tests.faults.soak_model import Instance, Model, Payment, Period, TopUp
from tests.faults.soak_prices import Prices
from tests.model import HOUR, charge_of, whole_hours

EARLIER: Final = datetime.min.replace(tzinfo=UTC)
LATER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class LeftOut:
    """An organization that a cycle did not charge because another session held its rows."""

    organization: UUID
    at: datetime


@dataclass
class Timeline:
    """A wallet's balance from each of these moments on."""

    balances: list[Decimal]
    moments: list[datetime] = field(default_factory=lambda: [EARLIER])
    defects: list[str] = field(default_factory=list)

    def top_up(self, moment: datetime, top_up: TopUp) -> None:
        """Adds a top-up."""
        self._hold(moment, self.balances[-1] + top_up.amount if top_up.balance is None else top_up.balance)

    def charge(self, moment: datetime, charged: Sequence[tuple[Period, Decimal | None]]) -> None:
        """Adds periods charged one after the other, each with the cost of a due hour that it left unpaid."""
        balance = self.balances[-1]
        for period, next_hour in charged:
            balance -= period.amount
            if next_hour is not None and next_hour <= balance:
                self.defects.append(
                    f"{period.instance} paid to {period.end} only, although {balance} could pay {next_hour} more"
                )
        if balance < 0:
            self.defects.append(f"a wallet fell to {balance} at {moment}: {charged}")
        self._hold(moment, balance)

    def _hold(self, moment: datetime, balance: Decimal) -> None:
        self.moments.append(moment)
        self.balances.append(balance)

    def between(self, begin: datetime, end: datetime) -> list[Decimal]:
        """Every balance between two moments."""
        first = max(bisect_right(self.moments, begin) - 1, 0)
        return self.balances[first : bisect_right(self.moments, end)]


@dataclass
class Verdict:
    """Checks a ledger against the model."""

    model: Model
    ledger: Ledger
    left_out: Sequence[LeftOut]

    def defects(self) -> list[str]:
        """All defects; an empty list if there are none."""
        return [
            *self._wallets(),
            *self._acknowledged(),
            *self.prices.defects(),
            *(each for instance in self.model.instances.values() for each in self._chain(instance)),
            *self._transactions(),
            *self._terms(),
            *self._paid_in_parts(),
            *(each for instance in self.model.instances.values() for each in self._passed_over(instance)),
            *self._open_rows(),
        ]

    @cached_property
    def prices(self) -> Prices:
        """The prices of this ledger."""
        return Prices(self.model, self.ledger)

    @cached_property
    def billed(self) -> list[Period]:
        """The billed periods, including those that deletions took with them."""
        return [each for each in [*self.ledger.periods, *self.model.taken_periods] if each.status == "billed"]

    @cached_property
    def payments(self) -> list[Payment]:
        """The payments, including those that deletions took with them."""
        return [*self.ledger.payments, *self.model.taken_payments]

    @cached_property
    def differences(self) -> Mapping[UUID, Decimal]:
        """What each wallet holds beyond its baseline and its payments, if the application has overwritten something."""
        sums = dict(self.ledger.baselines)
        for each in self.ledger.payments:
            if each.organization in sums:
                sums[each.organization] += each.amount
        beyond = {organization: self.ledger.wallets[organization] - expected for organization, expected in sums.items()}
        return {organization: difference for organization, difference in beyond.items() if difference}

    @cached_property
    def chains(self) -> Mapping[UUID, list[Period]]:
        """The billed periods of each instance, oldest first."""
        chains: dict[UUID, list[Period]] = defaultdict(list)
        for each in sorted(self.billed, key=lambda period: (period.start, period.end)):
            chains[each.instance].append(each)
        return chains

    @cached_property
    def whole_cycles(self) -> list[Run]:
        """The cycles that went through all organizations, in order."""
        return sorted((each for each in self.ledger.runs.values() if each.is_whole_cycle), key=lambda run: run.id)

    def _wallets(self) -> Iterator[str]:
        """Each balance follows from the opening balance, the acknowledged top-ups and the charges, in their order.

        For a deleted organization, this is the balance that its deletion saw.
        """
        if self.ledger.wallets.keys() != set(self.model.open):
            yield f"wallets: {len(self.ledger.wallets)}, acknowledged {len(self.model.open)}"
        for organization, balance in {**self.ledger.wallets, **self.model.taken_balances}.items():
            expected = self._timelines[organization].balances[-1]
            if balance != expected:
                yield f"wallet of {organization} holds {balance}, should hold {expected}"
        overwritten = {each.organization for each in self.model.top_ups.values() if each.balance is not None}
        for organization, baseline in self.ledger.baselines.items():
            opening = self.model.opening[organization]
            if organization not in overwritten and baseline != opening:
                yield f"wallet of {organization} has the baseline {baseline}, should have {opening}"

    def _acknowledged(self) -> Iterator[str]:
        """The database holds exactly the acknowledged top-ups and instances."""
        paid_in = {each.id: each.amount for each in self.payments if each.instance is None}
        if paid_in != {key: each.amount for key, each in self.model.top_ups.items()}:
            yield f"the {len(paid_in)} top-ups are not the acknowledged ones"
        if self.ledger.paid_until.keys() != {each.id for each in self.model.live}:
            yield f"the {len(self.ledger.paid_until)} instances are not the acknowledged ones"

    def _chain(self, instance: Instance) -> Iterator[str]:
        """Periods are contiguous from the start. Each costs what the price clock says, at the price of its hours."""
        name, moment = f"instance {instance.id}", instance.created_at
        for each in self.chains.get(instance.id, []):
            if each.start != moment:
                yield f"{name}: a period starts at {each.start}, should start at {moment}"
            if each.hours < 1 or each.end != each.start + each.hours * HOUR:
                yield f"{name}: {each.hours} hours from {each.start} to {each.end}"
            batch, run = self.ledger.batches.get(each.transaction), self.ledger.runs.get(each.run)
            if (
                batch is None
                or run is None
                or (batch.run, batch.term) != (each.run, each.term)
                or run.term != each.term
            ):
                yield f"{name}: the period from {each.start} belongs to no batch of its run and term"
                continue
            if each.end > run.as_of:
                yield f"{name}: billed to {each.end}, beyond its run's {run.as_of}"
            if each.organization not in instance.organizations.seen(each.begun_at, batch.written_at):
                yield f"{name}: the period from {each.start} was charged to {each.organization}"
            yield from self._prices_of(instance, each, batch.written_at)
            if each.price is not None and each.amount != charge_of(each.price, each.start, each.hours):
                yield f"{name}: charged {each.amount} for {each.hours} hours at {each.price} from {each.start}"
            moment = each.end
        paid_until = self.ledger.paid_until.get(instance.id)
        if paid_until is not None and paid_until != moment:
            yield f"{name}: last billed at {paid_until}, its periods end at {moment}"

    def _transactions(self) -> Iterator[str]:
        """One transaction wrote period, payment and batch, and they agree."""
        payments = {each.id: each for each in self.payments if each.instance is not None}
        hours: Counter[str] = Counter()
        amounts: dict[str, Decimal] = defaultdict(Decimal)
        for each in self.billed:
            hours[each.transaction] += each.hours
            amounts[each.transaction] += each.amount
            payment = payments.pop(each.payment, None) if each.payment else None
            said = payment and (
                payment.transaction, payment.organization, payment.instance, payment.hours, -payment.amount
            )  # fmt: skip
            mine = each.transaction, each.organization, each.instance, each.hours, each.amount
            if said != (mine if each.amount else None):
                yield f"period of {mine} was paid by {said}"
        for payment in payments.values():
            yield f"payment {payment.id} of {-payment.amount} for {payment.instance} has no period"
        run_hours: Counter[int] = Counter()
        run_amounts: dict[int, Decimal] = defaultdict(Decimal)
        for transaction, batch in self.ledger.batches.items():
            run_hours[batch.run] += batch.hours
            run_amounts[batch.run] += batch.amount
            if (hours[transaction], amounts[transaction]) != (batch.hours, batch.amount):
                yield f"batch at {batch.written_at} says {batch.hours} h {batch.amount}, has {hours[transaction]} h"
        for run in self.ledger.runs.values():
            batches = run_hours[run.id], run_amounts[run.id]
            if batches != (run.hours, run.amount):
                yield f"run {run.id} says {run.hours} hours and {run.amount}, its batches {batches}"

    def _terms(self) -> Iterator[str]:
        """Every batch committed before the next term was minted."""
        for batch in self.ledger.batches.values():
            later = self.ledger.minted_at.get(batch.term + 1, LATER)
            if batch.committed_at >= later:
                yield f"batch of term {batch.term} committed at {batch.committed_at}, the next term began at {later}"

    def _paid_in_parts(self) -> Iterator[str]:
        """No wallet fell below zero, and a partial payment left too little for one more hour."""
        for timeline in self._timelines.values():
            yield from timeline.defects

    @cached_property
    def _timelines(self) -> Mapping[UUID, Timeline]:
        """The timeline of each wallet."""
        events: dict[UUID, list[tuple[datetime, TopUp | list[Period]]]] = defaultdict(list)
        for top_up in self.model.top_ups.values():
            events[top_up.organization].append((top_up.held_at, top_up))
        together: dict[tuple[str, UUID], list[Period]] = defaultdict(list)
        for each in sorted(
            self.billed, key=lambda each: (self.model.instances[each.instance].created_at, each.instance, each.start)
        ):
            together[each.transaction, each.organization].append(each)
        for (transaction, organization), periods in together.items():
            if batch := self.ledger.batches.get(transaction):
                events[organization].append((batch.committed_at, periods))
        timelines = {}
        for organization, opening in self.model.opening.items():
            timelines[organization] = timeline = Timeline([opening])
            for moment, what in sorted(events[organization], key=lambda event: event[0]):
                if isinstance(what, TopUp):
                    timeline.top_up(moment, what)
                else:
                    timeline.charge(moment, [(each, self._next_hour(each)) for each in what])
        return timelines

    def _next_hour(self, period: Period) -> Decimal | None:
        """What the hour after a period cost, if it was due and its transaction did not pay it. None if unknown."""
        run, following = self.ledger.runs.get(period.run), self._following.get((period.instance, period.end))
        if run is None or following is None or following.transaction == period.transaction:
            return None
        plans = self.model.instances[period.instance].plan_ids.values
        if following.price is None or len(plans) > 1 or whole_hours(period.end, run.as_of) < 1:
            return None
        return charge_of(following.price, following.start, 1)

    @cached_property
    def _following(self) -> Mapping[tuple[UUID, datetime], Period]:
        """The billed or open period of an instance that begins at a moment."""
        every = [*self.model.taken_periods, *self.ledger.periods]
        return {(each.instance, each.start): each for each in sorted(every, key=lambda each: each.status == "billed")}

    def _passed_over(self, instance: Instance) -> Iterator[str]:
        """If a whole cycle left an instance owing, its wallet was short or another session held its rows."""
        gone_at = instance.deleted.asked_at if instance.deleted else LATER
        chain = self.chains.get(instance.id, [])
        for before, following in pairwise([None, *chain, None]):
            moment = before.end if before else instance.created_at
            for run in self._whole_cycles_since(max(moment + HOUR, instance.made.at), before.run if before else 0):
                if run.finished_at > gone_at or (following and run.id >= following.run):
                    break
                hour = max(
                    charge_of(each, moment, 1) for each in self.prices.of_hour(instance, moment, run.finished_at)
                )
                organization, *others = instance.organizations.seen(run.as_of, run.finished_at)
                had = min(self._timelines[organization].between(run.as_of, run.finished_at))
                if hour <= had and not others and not self._was_left_out(organization, run):
                    yield f"instance {instance.id}: run {run.id} skipped the hour from {moment}, {had} could pay {hour}"
                    break

    def _whole_cycles_since(self, moment: datetime, run: int) -> list[Run]:
        """The whole cycles that began after a moment, from a run on."""
        first = bisect_left(self.whole_cycles, moment, key=lambda each: each.as_of)
        return self.whole_cycles[max(first, bisect_left(self.whole_cycles, run, key=lambda each: each.id)) :]

    def _was_left_out(self, organization: UUID, run: Run) -> bool:
        return any(
            each.organization == organization and run.as_of <= each.at <= run.finished_at for each in self.left_out
        )

    def _open_rows(self) -> Iterator[str]:
        """After the last cycle, open rows hold exactly the hours owed, and no wallet can pay its next hour."""
        as_of = next(each.as_of for each in reversed(self.whole_cycles) if each.outcome == "completed")
        latest = max(each.as_of for each in self.ledger.runs.values())
        rows: dict[UUID, list[Period]] = defaultdict(list)
        for each in sorted(self.ledger.periods, key=lambda each: each.start):
            if each.status == "failed":
                rows[each.instance].append(each)
        for instance in self.model.live:
            owed, moment = rows.pop(instance.id, []), self.ledger.paid_until.get(instance.id, instance.created_at)
            if owed and owed[0].start == moment:
                balance = self.ledger.wallets.get(instance.organizations.newest, Decimal(0))
                if charge_of(owed[0].price or Decimal(0), moment, 1) <= balance:
                    yield f"instance {instance.id} could pay the hour from {moment} with {balance}"
            for each in owed:
                yield from self._open_row(instance, each, moment)
                moment = each.end
            if whole_hours(moment, as_of) > 0 or (owed and moment > latest):
                yield f"instance {instance.id}: its open rows end at {moment}, the last cycle began at {as_of}"
        for instance_id in rows:
            yield f"instance {instance_id} has open rows but does not exist"

    def _open_row(self, instance: Instance, row: Period, begins_at: datetime) -> Iterator[str]:
        """An open row follows the one before it, and records what its hours cost."""
        name = f"instance {instance.id}: the open row from {row.start}"
        if row.start != begins_at or row.end != row.start + row.hours * HOUR:
            yield f"{name} to {row.end} has {row.hours} hours and should begin at {begins_at}"
        if row.reason != "insufficient_balance":
            yield f"{name} has the reason {row.reason}"
        yield from self._prices_of(instance, row, LATER)
        if row.price is None or row.owed != charge_of(row.price, row.start, row.hours):
            yield f"{name} owes {row.owed} for {row.hours} hours at {row.price}"

    def _prices_of(self, instance: Instance, period: Period, written_at: datetime) -> Iterator[str]:
        """Every hour of a period cost the period's price."""
        for start in (period.start + hour * HOUR for hour in range(period.hours)):
            allowed = self.prices.of_hour(instance, start, written_at)
            if period.price not in allowed:
                yield f"instance {instance.id}: the hour from {start} cost {period.price}, should cost {allowed}"
                break
