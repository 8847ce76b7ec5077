"""Checks of the tables: that they exist, hold what billing writes, show every row, and are indexed."""

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from controller import sql
from controller.billing import access
from controller.doctor.findings import Finding, Level, as_finding
from controller.doctor.patient import Patient
from controller.postgres import migrations

#: In a smaller table a scan is fast.
SMALL: Final = 10_000
#: Table, index, and a column: any other index that begins with this column will do.
INDEXES: Final = (
    ("vps_billing_cycles", "billing_ledger", ""),
    ("vps_billing_cycles", "billing_open_rows", ""),
    ("vps_billing_cycles", "billing_foreign_periods_created_at", ""),
    ("payment_transactions", "billing_payments", ""),
    ("payment_transactions", "billing_payment_transactions_organization", "organization_id"),
    ("vps_instances", "billing_vps_instances_organization", "organization_id"),
    ("wallets", "billing_wallets_organization", "organization_id"),
)
#: Indexes that refuse a second period of an instance with the same start. Billing relies on them at every size.
UNIQUE: Final = ("billing_ledger", "billing_open_rows")


def tables(patient: Patient) -> Iterator[Finding]:
    """Checks that the application's tables and columns exist, and that they are tables."""
    with patient.reading() as connection:
        missing = migrations.missing(connection)
        views = access.not_tables(connection)
    if missing:
        yield Finding(
            "schema",
            Level.FAILURE,
            f"not a ContainerStacks database: {', '.join(missing)} missing",
            "check the database's name in DATABASE_URL, or run the application's own migrations first",
        )
    for text in views:
        yield as_finding("schema", Level.FAILURE, text)
    if not missing and not views:
        yield Finding("schema", Level.OK, f"{len(migrations.REQUIRED)} tables of the application, with their columns")


def types(patient: Patient) -> Iterator[Finding]:
    """Checks that the columns can hold what billing writes, and that no unknown column may be a price."""
    accepted = patient.application.pricing.accepted_columns
    with patient.reading() as connection:
        unfit, prices = access.unfit_columns(connection), access.unknown_prices(connection, accepted)
    for text in (*unfit, *prices):
        yield as_finding("types", Level.FAILURE, text)
    if not unfit and not prices:
        yield Finding("types", Level.OK, "every column can hold what billing writes")


def applied(patient: Patient) -> Iterator[Finding]:
    """Checks the migrations, the tables that hold one row, and the generation. Raises SchemaError or a subclass."""
    with patient.reading() as connection:
        migrations.check(connection)
    yield Finding("migrations", Level.OK, f"all {len(migrations.available())} applied")


def privileges(patient: Patient) -> Iterator[Finding]:
    """Checks each right that billing needs, table by table."""
    with patient.reading() as connection:
        rows = access.missing_rights(connection)
        role = sql.row(connection, "doctor_server")["role"]
    missing = {table: [row["right"] for row in of] for table, of in groupby(rows, key=lambda row: row["table_name"])}
    for table, rights in access.RIGHTS.items():
        if lacks := missing.get(table):
            remedy = "run manifests/role.sql as the owner of the tables"
            yield Finding("privileges", Level.FAILURE, f"{role} lacks the right to {', '.join(lacks)}", remedy)
        else:
            has = ", ".join(f"{right} ({columns})" if columns else right for right, columns in rights.items())
            yield Finding("privileges", Level.OK, f"{table}: {has}")


def policies(patient: Patient) -> Iterator[Finding]:
    """Checks that row-level security hides no row from this role."""
    with patient.reading() as connection:
        hidden = access.hidden_rows(connection)
    for text in hidden:
        yield as_finding("row policies", Level.FAILURE, text)
    if not hidden:
        yield Finding("row policies", Level.OK, "no policy hides a row from this role")


def indexes(patient: Patient) -> Iterator[Finding]:
    """Checks that indexes exist, are valid and are used. In small tables only those that keep charges unique matter."""
    with patient.reading() as connection:
        names, found, columns = (list(each) for each in zip(*INDEXES, strict=True))
        rows = sql.rows(connection, "doctor_indexes", tables=names, indexes=found, columns=columns)
    if all(row["rows"] <= SMALL for row in rows):
        yield Finding("indexes", Level.OK, f"no table has more than {SMALL:,} rows, so no scan is slow yet")
    for row in rows:
        unique = row["index_name"] in UNIQUE
        about = f"{row['index_name']} on {row['table_name']} ({row['rows']} rows)"
        if unique and not (row["present"] and row["valid"]):
            remedy = "create it as in migrations/schema.sql; drop it first if it is invalid"
            message = f"{about} is missing or invalid, so the database doesn't refuse a second charge"
            yield Finding("indexes", Level.FAILURE, message, remedy)
        elif row["rows"] <= SMALL:
            continue
        elif not (row["present"] and row["valid"]):
            if row["present"]:
                state, remedy = "is invalid", f"run `reindex index concurrently {row['index_name']}` as the owner"
            else:
                state = "is missing"
                remedy = "create it as in migrations/schema.sql; `migrate` doesn't, because its migration is recorded"
            yield Finding("indexes", Level.WARNING, f"{about} {state}, so cycles are slow", remedy)
        elif not row["analyzed"]:
            remedy = f"run `analyze {row['table_name']}`, and see why autovacuum doesn't"
            yield Finding("indexes", Level.WARNING, f"{about}: the table was never analyzed", remedy)
        elif row["scans"] == 0:
            remedy = f"run `analyze {row['table_name']}` if cycles have run since the statistics were reset"
            yield Finding("indexes", Level.WARNING, f"{about} has never been used", remedy)
        else:
            yield Finding("indexes", Level.OK, f"{about}: used {row['scans']} times")
