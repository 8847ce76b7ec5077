"""Compares what billing wrote with the model, and returns a sentence for each defect.

A wallet's lock serializes its charges and top-ups. So they can be ordered by any moment at which their transactions
held that lock. For a charge this moment is its commit.
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
from tests.faults.soak_model import Instance, Model, Period
from tests.model import HOUR, Owed, charge_of, settle, whole_hours

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

    def pass_on(self, moment: datetime, paid_in: Decimal, charged: Sequence[tuple[Period, int]]) -> None:
        """Adds a top-up, or periods charged one after the other, each with the hours that were due."""
        balance = self.balances[-1] + paid_in
        for each, due in charged:
            balance -= each.amount
            if each.price is not None and each.hours < due:
                one_more = charge_of(each.price, each.start, each.hours + 1) - each.amount
                if one_more <= balance:
                    self.defects.append(f"{each.instance} paid {each.hours} of {due} hours although {balance} was left")
        if balance < 0:
            self.defects.append(f"a wallet fell to {balance} at {moment}: {charged}")
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
            *(each for instance in self.model.instances.values() for each in self._chain(instance)),
            *self._transactions(),
            *self._terms(),
            *self._paid_in_parts(),
            *(each for instance in self.model.instances.values() for each in self._passed_over(instance)),
            *self._open_rows(),
        ]

    @cached_property
    def billed(self) -> list[Period]:
        """The billed periods of live and deleted instances."""
        archived = [each for instance in self.model.instances.values() for each in instance.archive]
        return [each for each in [*self.ledger.periods, *archived] if each.status == "billed"]

    @cached_property
    def chains(self) -> Mapping[UUID, list[Period]]:
        """The billed periods of each instance, oldest first."""
        chains: dict[UUID, list[Period]] = defaultdict(list)
        for each in sorted(self.billed, key=lambda period: (period.start, period.end)):
            chains[each.instance].append(each)
        return chains

    @cached_property
    def completed(self) -> list[Run]:
        """The completed cycles in order."""
        return sorted(
            (each for each in self.ledger.runs.values() if each.outcome == "completed"), key=lambda run: run.id
        )

    def _wallets(self) -> Iterator[str]:
        """Each balance is opening + acknowledged top-ups - charges."""
        charges: dict[UUID, Decimal] = defaultdict(Decimal)
        for each in self.ledger.payments:
            if each.instance is not None:
                charges[each.organization] -= each.amount
        if self.ledger.wallets.keys() != self.model.opening.keys():
            yield f"wallets: {len(self.ledger.wallets)}, acknowledged {len(self.model.opening)}"
        for organization, balance in self.ledger.wallets.items():
            expected = self.model.expected_balance(organization, charges[organization])
            if balance != expected:
                yield f"wallet of {organization} holds {balance}, should hold {expected}"

    def _acknowledged(self) -> Iterator[str]:
        """Every acknowledged row exists, and no other."""
        paid_in = {each.id: each.amount for each in self.ledger.payments if each.instance is None}
        if paid_in != {key: each.amount for key, each in self.model.top_ups.items()}:
            yield f"the {len(paid_in)} top-ups are not the acknowledged ones"
        if self.ledger.paid_until.keys() != {each.id for each in self.model.live}:
            yield f"the {len(self.ledger.paid_until)} instances are not the acknowledged ones"

    def _chain(self, instance: Instance) -> Iterator[str]:
        """Periods are contiguous from the start. Each costs what the price clock says, at a price that it could see."""
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
            seen = instance.plan.seen(each.begun_at, batch.written_at)
            if each.price not in seen:
                yield f"{name}: priced at {each.price} between {each.begun_at} and {batch.written_at}, but saw {seen}"
            elif each.amount != charge_of(each.price, each.start, each.hours):
                yield f"{name}: charged {each.amount} for {each.hours} hours at {each.price} from {each.start}"
            moment = each.end
        paid_until = self.ledger.paid_until.get(instance.id)
        if paid_until is not None and paid_until != moment:
            yield f"{name}: last billed at {paid_until}, its periods end at {moment}"

    def _transactions(self) -> Iterator[str]:
        """One transaction wrote period, payment and batch, and they agree."""
        payments = {each.id: each for each in self.ledger.payments if each.instance is not None}
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
        runs: Counter[int] = Counter()
        for transaction, batch in self.ledger.batches.items():
            runs[batch.run] += batch.hours
            if (hours[transaction], amounts[transaction]) != (batch.hours, batch.amount):
                yield f"batch at {batch.written_at} says {batch.hours} h {batch.amount}, has {hours[transaction]} h"
        for run in self.ledger.runs.values():
            if runs[run.id] != run.hours:
                yield f"run {run.id} says {run.hours} hours, its batches {runs[run.id]}"

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
        events: dict[UUID, list[tuple[datetime, Decimal, list[Period]]]] = defaultdict(list)
        for top_up in self.model.top_ups.values():
            events[top_up.organization].append((top_up.held_at, top_up.amount, []))
        together: dict[tuple[str, UUID], list[Period]] = defaultdict(list)
        for each in sorted(
            self.billed, key=lambda each: (self.model.instances[each.instance].created_at, each.instance)
        ):
            together[each.transaction, each.organization].append(each)
        for (transaction, organization), periods in together.items():
            if batch := self.ledger.batches.get(transaction):
                events[organization].append((batch.committed_at, Decimal(0), periods))
        timelines = {}
        for organization, opening in self.model.opening.items():
            timelines[organization] = timeline = Timeline([opening])
            for moment, amount, periods in sorted(events[organization], key=lambda event: event[0]):
                timeline.pass_on(moment, amount, [(each, self._due(each)) for each in periods])
        return timelines

    def _due(self, period: Period) -> int:
        """The hours that the period's cycle could have billed."""
        run = self.ledger.runs.get(period.run)
        return whole_hours(period.start, run.as_of) if run else period.hours

    def _passed_over(self, instance: Instance) -> Iterator[str]:
        """If a completed cycle left an instance owing, its wallet was short or another session held its rows."""
        gone_at = instance.deleted.asked_at if instance.deleted else LATER
        chain = self.chains.get(instance.id, [])
        for before, following in pairwise([None, *chain, None]):
            moment = before.end if before else instance.created_at
            for run in self._completed_since(max(moment + HOUR, instance.made.at), before.run if before else 0):
                if run.finished_at > gone_at or (following and run.id >= following.run):
                    break
                hour = max(charge_of(price, moment, 1) for price in instance.plan.seen(run.as_of, run.finished_at))
                had = min(self._timelines[instance.organization].between(run.as_of, run.finished_at))
                if hour <= had and not self._was_left_out(instance.organization, run):
                    yield f"instance {instance.id}: run {run.id} skipped the hour from {moment}, {had} could pay {hour}"
                    break

    def _completed_since(self, moment: datetime, run: int) -> list[Run]:
        """The completed cycles that began after a moment, from a run on."""
        first = bisect_left(self.completed, moment, key=lambda each: each.as_of)
        return self.completed[max(first, bisect_left(self.completed, run, key=lambda each: each.id)) :]

    def _was_left_out(self, organization: UUID, run: Run) -> bool:
        return any(
            each.organization == organization and run.as_of <= each.at <= run.finished_at for each in self.left_out
        )

    def _open_rows(self) -> Iterator[str]:
        """After the last cycle, an owing instance has one debt with its hours, and its wallet can't pay one."""
        as_of = self.completed[-1].as_of
        rows = {each.instance: each for each in self.ledger.periods if each.status == "failed"}
        owed: dict[UUID, list[Owed]] = defaultdict(list)
        for instance in sorted(self.model.live, key=lambda each: (each.created_at, each.id)):
            start = self.ledger.paid_until.get(instance.id, instance.created_at)
            debt = Owed(instance.plan.price, start, whole_hours(start, as_of))
            row = rows.pop(instance.id, None)
            said = row and (row.start, row.hours, row.reason, row.owed, row.price)
            expected = start, debt.hours, "insufficient_balance", debt.cost(debt.hours), debt.monthly_price
            if said != (expected if debt.hours > 0 else None):
                yield f"instance {instance.id}: its open row is {said}, should be {expected if debt.hours else None}"
            owed[instance.organization].append(debt)
        for organization, debts in owed.items():
            if any(settle(self.ledger.wallets[organization], debts)):
                yield f"{organization} could pay with {self.ledger.wallets[organization]} and was not charged"
        for row in rows.values():
            yield f"instance {row.instance} has an open row but owes nothing"
