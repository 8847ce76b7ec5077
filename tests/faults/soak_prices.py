"""Checks the prices of a soak: what billing recorded of each plan, and what an hour may cost.

An hour costs what its plan's record says for the time when it began. Records are checked against the prices that the
application set. If a plan was new when a cycle began, an hour may also cost what that cycle saw.
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
from tests.faults.soak_model import History, Instance, Model
from tests.model import DEFAULT_PRICE, HOUR

#: A cycle looks at the prices before its row says that it began. The server ends a transaction that is idle for longer.
LOOK: Final = timedelta(seconds=6)


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
        """Each record is a price that the plan had, from when it had it. The newest is the plan's newest price."""
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
        """A price that held while a whole cycle ran was recorded by its end."""
        for run in self.ledger.runs.values():
            looked_from = run.as_of - LOOK
            seen = prices.seen(looked_from, run.finished_at)
            whole = run.kind == "cycle" and run.outcome == "completed"
            if not whole or len(seen) != 1 or prices.values[0][1].at > looked_from:
                continue
            known = [each.price for each in records if each.committed_at <= run.finished_at]
            if known[-1:] != seen:
                yield f"plan {key}: run {run.id} ended with the prices {known}, the price was {seen[0]}"


def _is_true(record: PriceRecord, prices: History[Decimal]) -> bool:
    """True if the plan had this price when it was recorded, and from `valid_from` on."""
    if record.valid_from is None:
        return record.price in prices.seen(record.recorded_at, record.committed_at)
    return any(
        price == record.price and since.asked_at <= record.valid_from <= record.committed_at
        for price, since in prices.values
    ) and record.price in prices.seen(record.recorded_at, record.committed_at)
