"""The databases that rounds are run on: templates, made once a run, and fresh copies of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from controller.demo import sample
from controller.demo.server import Server
from controller.postgres import migrations
from tests.servers import ORIGINS, installation_of

_MEMORY: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
#: As an operator would set it: the quarter of the memory that PostgreSQL's manual advises. Durable: what is committed
#: survives a power cut.
DURABLE: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": f"{_MEMORY // 4 // 2**20}MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "wal_compression": "off",
}
#: An organization has twenty instances on average and nine in the median. Of a million instances the largest one owns
#: 86,000, the next ones 14,000 and 9,000.
INSTANCES_AN_ORGANIZATION: Final = 20
SKEW: Final = 4.5

#: The floor assumes that every wallet can pay, and every plan has a price.
_EVERYBODY_PAYS: Final = (
    "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)",
    "update wallets set balance = balance + 1000000",
    """
    update vps_instances i set plan_id = (select id::text from vps_plans order by id limit 1)
    where not exists (select from vps_plans p where i.plan_id in (p.id::text, p.provider_plan_id))
    """,
)
#: Billing has stood still for a week more.
_OUTAGE: Final = (
    """
    update vps_instances
    set created_at = created_at - interval '168 hours', last_billed_at = last_billed_at - interval '168 hours'
    """,
)
#: Billed hours of years ago, by another program's hand: nothing of it concerns a cycle.
_HISTORY: Final = """
with charge as materialized (
    select i.id, i.organization_id, gen_random_uuid() as payment_id,
        timestamptz '2020-01-01 00:00:00+00' + n * interval '1 hour' as hour
    from vps_instances i, generate_series(1, %s) n
), paid as (
    insert into payment_transactions (id, organization_id, amount, status, description, created_at)
    select payment_id, organization_id, -0.01, 'completed', 'VPS', hour from charge
)
insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate,
    total_amount, status, payment_transaction_id, created_at)
select id, organization_id, hour, hour + interval '1 hour', 0.0068, 0.01, 'billed', payment_id, hour from charge
"""


@dataclass(frozen=True)
class Template:
    """A database to copy.

    Attributes:
        as_of: when it was made. Every round bills what was due then, so that all of them do the very same work.
    """

    name: str
    instances: int
    as_of: datetime


def durable_server(origin: str | None, more: dict[str, str] | None = None) -> Server:
    """Not started yet. `origin` is installed or embedded; None takes the first there is."""
    installation = next((installation_of(each) for each in ORIGINS if each == origin), None) if origin else None
    return Server(installation, DURABLE | (more or {}))


def make_payable(server: Server, instances: int, history_rows: int = 0) -> Template:
    """Every wallet can pay for everything: what the floor assumes. `history_rows`: an instance's old billed hours."""
    return _make(server, f"payable_{instances}", instances, _EVERYBODY_PAYS, history_rows)


def make_plausible(server: Server, instances: int, *, outage: bool = False) -> Template:
    """One organization in twelve is short of money, one has no wallet; after an outage, everyone is a week behind."""
    return _make(server, f"plausible_{instances}{'_outage' if outage else ''}", instances, _OUTAGE if outage else ())


def _make(server: Server, name: str, instances: int, changes: tuple[str, ...], history_rows: int = 0) -> Template:
    url = server.create_database(name)
    with psycopg.connect(url) as connection:
        sample.create_schema(connection)
        organizations = max(40, instances // INSTANCES_AN_ORGANIZATION)
        sample.create_data(connection, sample.Size(organizations, instances, SKEW))
        for change in changes:
            connection.execute(change.encode())
        if history_rows:
            connection.execute("set local session_replication_role = replica")  # checks of foreign keys, saved
            connection.execute(_HISTORY.encode(), [history_rows])
        ((as_of,),) = connection.execute("select now()").fetchall()
    migrations.migrate_url(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum full vps_instances" if changes else "select")
        connection.execute("vacuum analyze")
    return Template(name, instances, as_of)


@contextmanager
def fresh_copy(server: Server, template: Template) -> Iterator[str]:
    """A database of its own, removed afterwards. What copying has left to be written is written before it is given."""
    url = server.create_database("round", template.name)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("checkpoint")
        yield url
    finally:
        server.drop_database("round")
