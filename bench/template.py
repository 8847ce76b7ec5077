"""Template databases, made once per run, and the fresh copies that rounds run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from controller.demo import sample
from tests.support.servers import Server, migrate_url

#: With this skew the median organization has nine instances. Of a million instances the largest organization owns
#: 86,000, the next ones 14,000 and 9,000.
INSTANCES_PER_ORGANIZATION: Final = 20
SKEW: Final = 4.5

#: The floor assumes that every wallet can pay and that every plan has a price.
_FUND_EVERY_WALLET: Final = (
    "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)",
    "update wallets set balance = balance + 1000000",
    """
    update vps_instances i set plan_id = (select id::text from vps_plans order by id limit 1)
    where not exists (select from vps_plans p where i.plan_id in (p.id::text, p.provider_plan_id))
    """,
)
#: Puts every instance another week behind.
_ADD_BACKLOG: Final = (
    """
    update vps_instances
    set created_at = created_at - interval '168 hours', last_billed_at = last_billed_at - interval '168 hours'
    """,
)
#: Hours from 2020 that another program billed. A cycle must not read them.
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
        as_of: when the rows were made. Every round bills what was due at this time, so all rounds do the same work.
    """

    name: str
    instances: int
    as_of: datetime


def funded_template(server: Server, instances: int, history_rows: int = 0) -> Template:
    """Every wallet can pay for everything, as the floor assumes.

    With `history_rows`, each instance has that many hours that were billed long ago.
    """
    template = seed_funded(server, f"funded_{instances}", instances, history_rows)
    migrate_url(server.url(template.name))
    vacuum(server.url(template.name))
    return template


def mixed_template(server: Server, instances: int, *, backlog: bool = False) -> Template:
    """One organization in twelve is short of money, and one has no wallet. `backlog` puts all a week behind."""
    name = f"mixed_{instances}{'_backlog' if backlog else ''}"
    template = _seed(server, name, instances, _ADD_BACKLOG if backlog else ())
    migrate_url(server.url(template.name))
    vacuum(server.url(template.name))
    return template


def seed_funded(server: Server, name: str, instances: int, history_rows: int = 0) -> Template:
    """The rows of `funded_template` in the application's schema, without our migrations."""
    return _seed(server, name, instances, _FUND_EVERY_WALLET, history_rows)


def vacuum(url: str) -> None:
    """Brings the planner's statistics up to date, as autovacuum would in time."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")


@contextmanager
def fresh_copy(server: Server, template: str) -> Iterator[str]:
    """The URL of a copy that is dropped after the block.

    A checkpoint first writes the pages that copying has left dirty. The round would pay for them otherwise.
    """
    url = server.create_database("round", template)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("checkpoint")
        yield url
    finally:
        server.drop_database("round")


def _seed(server: Server, name: str, instances: int, changes: tuple[str, ...], history_rows: int = 0) -> Template:
    url = server.create_database(name)
    with psycopg.connect(url) as connection:
        sample.create_schema(connection)
        organizations = max(40, instances // INSTANCES_PER_ORGANIZATION)
        sample.create_data(connection, sample.Size(organizations, instances, SKEW))
        for change in changes:
            connection.execute(change.encode())
        if history_rows:
            connection.execute("set local session_replication_role = replica")  # skips the foreign key checks
            connection.execute(_HISTORY.encode(), [history_rows])
        ((as_of,),) = connection.execute("select now()").fetchall()
    if changes:  # removes the old row versions that the updates left behind
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("vacuum full vps_instances")
    return Template(name, instances, as_of)
