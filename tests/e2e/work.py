"""Adds billable work to a database: instances with whole unbilled hours, wallets that can pay, and a delay per batch.

Each wallet's balance equals the sum of its completed transactions, as the application would leave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.e2e.database import Database
from tests.e2e.values import BATCH
from tests.e2e.waiting import eventually

BATCHES: Final = 40
_INSTANCES_EACH: Final = 5

_ADD: Final = """
with organization as (
    insert into organizations (name, slug, owner_id)
    select 'e2e ' || number, %(tag)s || '-' || number, (select id from users order by id limit 1)
    from generate_series(1, %(organizations)s) as number
    returning id
), wallet as (
    insert into wallets (organization_id, balance, currency) select id, 10000, 'USD' from organization
), payment as (
    insert into payment_transactions
        (organization_id, amount, currency, payment_method, payment_provider, status, description)
    select id, 10000, 'USD', 'card', 'stripe', 'completed', 'Wallet top-up' from organization
)
insert into vps_instances (organization_id, plan_id, label, status, created_at)
select organization.id, (select id::text from vps_plans where active order by base_price desc limit 1), %(tag)s,
    'running', now() - interval '5 hours 5 minutes'
from organization, generate_series(1, %(instances_each)s)
"""

#: `exact` counts instances whose hours up to last_billed_at are each in exactly one billed period.
_PROGRESS: Final = """
select count(*) as instances,
    count(*) filter (where i.last_billed_at is not null) as charged,
    count(*) filter (where i.last_billed_at >= i.created_at + interval '5 hours'
        and i.last_billed_at - i.created_at = p.billed) as exact
from vps_instances i
left join lateral (
    select sum(billing_period_end - billing_period_start) as billed
    from vps_billing_cycles where vps_instance_id = i.id and status = 'billed'
) p on true
where i.label = %s
"""

_RUNS: Final = """
select distinct r.id, r.term, r.outcome
from vps_billing_cycles c
join vps_instances i on i.id = c.vps_instance_id
join billing_runs r on r.id = (c.metadata ->> 'run')::bigint
where i.label = %s
order by r.id
"""

#: Every batch ends with an insert into billing_batches. A trigger that sleeps there makes a cycle last.
_PACED: Final = """
create table if not exists e2e_pace (seconds float8 not null);
create or replace function e2e_keep_pace() returns trigger language plpgsql as
'begin perform pg_sleep((select max(seconds) from e2e_pace)); return null; end';
do $$
begin
    if not exists (select from pg_trigger where tgname = 'e2e_keep_pace') then
        create trigger e2e_keep_pace after insert on billing_batches for each statement
        execute function e2e_keep_pace();
    end if;
end
$$;
"""


@dataclass(frozen=True)
class Run:
    """A cycle that charged some of the work."""

    id: int
    term: int
    outcome: str


@dataclass(frozen=True)
class Work:
    """Instances to charge, all with one label."""

    database: Database
    tag: str

    def progress(self) -> dict[str, int]:
        """The number of `instances`, of those `charged`, and of those `exact` to the hour."""
        return {key: int(count) for key, count in self.database.one(_PROGRESS, self.tag).items()}

    def wait_until_under_way(self) -> None:
        """Waits until a cycle has charged some, but not all, of the work."""

        def check() -> bool:
            seen = self.progress()
            assert 0 < seen["charged"] < seen["instances"], seen
            return True

        eventually(check, "a cycle is in the middle of its work", 60)

    def wait_until_charged(self, within_seconds: float = 180) -> None:
        """Waits until all work is charged and its cycles have ended. Every hour must be charged exactly once."""

        def check() -> bool:
            seen = self.progress()
            assert seen["charged"] == seen["instances"], seen
            return all(run.outcome != "running" for run in self.runs())

        eventually(check, "all of the work is charged", within_seconds)
        seen = self.progress()
        assert seen["exact"] == seen["instances"], f"some hours aren't charged exactly once: {seen}"

    def runs(self) -> list[Run]:
        """The cycles that charged the work, in order."""
        return [Run(int(row["id"]), int(row["term"]), row["outcome"]) for row in self.database.sql(_RUNS, self.tag)]


@contextmanager
def paced(database: Database, tag: str, seconds_a_batch: float) -> Iterator[Work]:
    """Adds work whose batches take at least this long. Removes the delay afterwards."""
    set_pace(database, seconds_a_batch)
    try:
        yield add_work(database, tag)
    finally:
        set_pace(database, 0)


def add_work(database: Database, tag: str, batches: int = BATCHES) -> Work:
    """Adds due work for this many batches."""
    parameters: dict[str, Any] = {
        "tag": tag,
        "organizations": batches * BATCH // _INSTANCES_EACH,
        "instances_each": _INSTANCES_EACH,
    }
    database.bench.sql(database.url, (_ADD, parameters))
    return Work(database, tag)


def set_pace(database: Database, seconds_a_batch: float) -> None:
    """Sets the minimum duration of a batch, from the next batch on."""
    database.bench.sql(
        database.url,
        (_PACED, []),
        ("with cleared as (delete from e2e_pace) insert into e2e_pace values (%s)", [seconds_a_batch]),
    )
