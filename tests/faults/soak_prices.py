"""Checks the prices of a soak: what billing recorded for each plan, and what an hour may cost.

An hour costs what its plan's record says for the time when it began. Records are checked against the prices that the
application set. If a cycle charged an hour before it recorded the plan, the hour may also cost what that cycle saw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Final

from tests.faults.soak_ledger import Ledger, PriceRecord
from tests.faults.soak_model import Acknowledged, History, Instance, Model
from tests.model import DEFAULT_PRICE, HOUR

#: A cycle looks at the prices before its row says that it began. The server ends a transaction that is idle for 5 s.
LOOK: Final = timedelta(seconds=6)
#: A change that a look can't see yet counts from the next look. This is the longest time between two looks.
NEXT_LOOK: Final = timedelta(seconds=60)


@dataclass
class Prices:
    """The records of a ledger, beside the prices that the application set."""

    model: Model
    ledger: Ledger

    @cached_property
    def records(self) -> Mapping[str, list[PriceRecord]]:
        """The records of each plan, oldest first."""
        records: dict[str, list[PriceRecord]] = defaultdict(list)
        for each in self.ledger.prices:
            records[each.key].append(each)
        return records

    def defects(self) -> Iterator[str]:
        """Each record holds a price that the plan had, and applies from the change on. The newest holds the newest."""
        for key, prices in self.model.prices.items():
            records = self.records.get(key, [])
            for record in records:
                if not _is_true(record, prices):
                    yield f"plan {key}: {record} is no price that it had"
            if not records or records[0].valid_from is not None:
                yield f"plan {key}: the first record does not apply to all earlier hours"
            elif records[-1].price != prices.newest:
                yield f"plan {key}: the newest record is {records[-1].price}, the price {prices.newest}"
            yield from self._unrecorded(key, prices, records)

    def of_hour(self, instance: Instance, start: datetime, seen_until: datetime) -> set[Decimal]:
        """What the hour from `start` may cost if billing first saw it between its end and `seen_until`."""
        seen_from = max(start + HOUR, instance.made.asked_at)
        prices: set[Decimal] = set()
        for key in instance.plan_ids.seen(seen_from, seen_until):
            records = self.records.get(key or "", [])
            recorded = [each for each in records if each.valid_from is None or each.valid_from <= start]
            prices.add(DEFAULT_PRICE if not recorded or recorded[-1].price is None else recorded[-1].price)
            if key in self.model.prices and records and records[0].committed_at > seen_from:
                prices |= set(self.model.prices[key].seen(seen_from, records[0].committed_at))
        return prices

    def _unrecorded(self, key: str, prices: History[Decimal], records: list[PriceRecord]) -> Iterator[str]:
        """A price that held while a whole cycle ran was recorded before that cycle ended."""
        for run in self.ledger.runs.values():
            looked_from = run.as_of - LOOK
            seen = prices.seen(looked_from, run.finished_at)
            if not run.is_whole_cycle or len(seen) != 1 or prices.values[0][1].at > looked_from:
                continue
            known = [each.price for each in records if each.committed_at <= run.finished_at]
            if known[-1:] != seen:
                yield f"plan {key}: run {run.id} ended with the prices {known}, the price was {seen[0]}"


def _is_true(record: PriceRecord, prices: History[Decimal]) -> bool:
    """True if the plan had this price when it was recorded, and the record applies from the change on."""
    if record.price not in prices.seen(record.recorded_at, record.committed_at):
        return False
    changes = [since for price, since in prices.values if price == record.price]
    return record.valid_from is None or any(_applies_from_change(record, record.valid_from, each) for each in changes)


def _applies_from_change(record: PriceRecord, valid_from: datetime, change: Acknowledged) -> bool:
    """True if a record is dated by the change, or by its own look because the last look couldn't see the change."""
    if change.asked_at <= valid_from <= change.at:
        return True
    return valid_from == record.recorded_at and change.asked_at <= valid_from <= change.at + NEXT_LOOK
