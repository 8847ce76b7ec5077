"""Billing refuses a database that hides rows from its role, denies it a right, or can't hold what it writes."""

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from controller.billing import access
from controller.billing.access import AccessError
from controller.billing.values import Outcome
from tests.integration.world import World
from tests.model import HOUR, NOON

ROLE = "billing_access_test"


@pytest.fixture
def limited(database: str) -> Iterator[World]:
    """A world whose controller uses a role that has every right on every table but owns none."""
    with World(database) as owner:
        owner.run(f"drop role if exists {ROLE}")
        owner.run(f"create role {ROLE}")
        owner.run(f"grant select, insert, update, delete on all tables in schema public to {ROLE}")
        owner.run(f"grant usage on all sequences in schema public to {ROLE}")
        owner.instance(owner.organization(), owner.plan("7.30"), NOON - 5 * HOUR)
        with World(make_conninfo(database, options=f"-c role={ROLE}")) as world:
            world.owner = owner  # type: ignore[attr-defined]
            yield world
        owner.run(f"drop owned by {ROLE}")
        owner.run(f"drop role {ROLE}")


def as_owner(world: World, statement: str) -> None:
    world.owner.run(statement)  # type: ignore[attr-defined]


def problem(world: World, accepted: tuple[str, ...] = ()) -> str:
    with world.database.connect() as connection, pytest.raises(AccessError) as refused:
        access.check(connection, accepted)
    return str(refused.value)


def test_role_with_every_right_is_accepted_and_bills(limited: World) -> None:
    with limited.database.connect() as connection:
        access.check(connection, ())
    assert limited.bill(NOON).totals.instances == 1


@pytest.mark.parametrize(
    "table", ["organizations", "wallets", "vps_plans", "vps_instances", "payment_transactions", "vps_billing_cycles",
              "billing_runs", "billing_daemon_status"]
)  # fmt: skip
def test_row_level_security_without_an_open_policy_is_refused(limited: World, table: str) -> None:
    as_owner(limited, f"alter table {table} enable row level security")
    assert f"rows of {table} from role {ROLE}" in problem(limited)
    result = limited.cycle(NOON).run(limited.lead())
    assert (result.outcome, result.totals.instances) == (Outcome.FAILED, 0)
    as_owner(limited, f"create policy billing on {table} to {ROLE} using (true) with check (true)")
    assert limited.bill(NOON).totals.instances == 1


@pytest.mark.parametrize(
    "policy",
    [
        "create policy narrow on vps_instances to public using (organization_id is not null)",
        "create policy narrow on vps_instances as restrictive to public using (true)",
        "create policy narrow on vps_instances for select to public using (true)",
        "create policy narrow on vps_instances to public using (true) with check (false)",
    ],
)
def test_policy_that_may_hide_rows_is_refused_beside_an_open_one(limited: World, policy: str) -> None:
    as_owner(limited, "alter table vps_instances enable row level security")
    as_owner(limited, f"create policy billing on vps_instances to {ROLE} using (true) with check (true)")
    as_owner(limited, policy)
    assert "its other policies (narrow)" in problem(limited)


def test_policy_for_another_role_is_accepted(limited: World) -> None:
    as_owner(limited, "alter table wallets enable row level security")
    as_owner(limited, f"create policy billing on wallets to {ROLE} using (true) with check (true)")
    as_owner(limited, "create policy other on wallets to pg_monitor using (false)")
    assert limited.bill(NOON).totals.instances == 1


def test_owner_of_the_tables_bypasses_their_policies(world: World) -> None:
    world.instance(world.organization(), world.plan("7.30"), NOON - 5 * HOUR)
    world.run("alter table vps_instances enable row level security")
    assert world.bill(NOON).totals.instances == 1


@pytest.mark.parametrize(
    ("right", "table"),
    [
        ("select", "vps_plans"), ("insert", "payment_transactions"), ("update", "wallets"), ("update", "vps_instances"),
        ("delete", "vps_billing_cycles"), ("insert", "billing_daemon_status"), ("update", "billing_leadership"),
    ],
)  # fmt: skip
def test_missing_right_is_named_with_its_remedy(limited: World, right: str, table: str) -> None:
    as_owner(limited, f"revoke {right} on {table} from {ROLE}")
    found = problem(limited)
    assert f"lacks the right to {right} on {table}" in found
    assert "manifests/role.sql" in found


def test_missing_right_on_a_sequence_is_named(limited: World) -> None:
    as_owner(limited, f"revoke usage on sequence billing_daemon_status_id_seq from {ROLE}")
    assert "lacks the right to use the sequence public.billing_daemon_status_id_seq" in problem(limited)


def test_view_in_the_place_of_a_table_is_refused(limited: World) -> None:
    as_owner(limited, "alter table vps_instances rename to all_instances")
    as_owner(limited, "create view vps_instances as select * from all_instances where status = 'active'")
    as_owner(limited, f"grant select, update on vps_instances to {ROLE}")
    assert "vps_instances is not a table" in problem(limited)


@pytest.mark.parametrize(
    ("table", "column", "kind"),
    [
        ("vps_instances", "last_billed_at", "timestamptz(0)"),
        ("vps_billing_cycles", "billing_period_end", "timestamp"),
        ("payment_transactions", "amount", "numeric(10,1)"),
        ("vps_billing_cycles", "hourly_rate", "numeric(10,2)"),
        ("wallets", "balance", "double precision"),
    ],
)
def test_type_that_cannot_hold_what_is_written_is_refused(limited: World, table: str, column: str, kind: str) -> None:
    as_owner(limited, f"alter table {table} alter column {column} type {kind}")
    assert f"{table}.{column} is" in problem(limited)


@pytest.mark.parametrize(
    ("table", "column", "kind"), [("wallets", "balance", "numeric(12,4)"), ("wallets", "balance", "numeric")]
)
def test_wider_type_is_accepted(limited: World, table: str, column: str, kind: str) -> None:
    as_owner(limited, f"alter table {table} alter column {column} type {kind}")
    assert limited.bill(NOON).totals.instances == 1


def test_unknown_price_column_is_refused_until_it_is_accepted(limited: World) -> None:
    as_owner(limited, "alter table vps_plans add column backup_price numeric(10,2) default 0")
    as_owner(limited, "alter table vps_instances add column ip_fee integer")
    as_owner(limited, "alter table vps_instances add column rate_note text")
    assert "vps_instances.ip_fee looks like a price" in problem(limited)
    assert "vps_plans.backup_price" in problem(limited, ("ip_fee",))
    with limited.database.connect() as connection:
        access.check(connection, ("ip_fee", "vps_plans.backup_price"))
