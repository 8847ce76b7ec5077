"""The tables that hold one row. If one was emptied or doubled, no replica leads until `migrate` has repaired it."""

from typing import Final

from controller import sql
from controller.errors import BillingError

#: A repair waits for batches in flight, which are short, and blocks later ones until it is done.
LOCK_TIMEOUT: Final = "5s"


class StateTableError(BillingError):
    """A table that holds one row was emptied or doubled."""


def check(connection: sql.Connection) -> None:
    """Raises StateTableError, with the remedy, if a table doesn't hold exactly the rows that it should."""
    if wrong := sql.rows(connection, "wrong_state_tables"):
        raise StateTableError(
            f"{wrong[0]['name']} has {wrong[0]['found']} rows instead of one;"
            " run `containerstacks-billing migrate`, which repairs it"
        )


def repair(connection: sql.Connection, *, generation: int, version: str) -> list[str]:
    """Restores the rows of every table that was emptied or doubled, and returns the names of these tables.

    The term is restored from the rows that were written under it, so no term is ever minted twice.

    Args:
        connection: a session of the tables' owner.
        generation: this program's generation, used if no term has recorded one.
        version: this program's version.
    """
    with sql.transaction(connection, settings={"lock_timeout": LOCK_TIMEOUT}):
        wrong = [row["name"] for row in sql.rows(connection, "wrong_state_tables")]
        if wrong:
            sql.run(connection, "lock_state_tables")
            sql.run(connection, "remove_doubled_leadership")
            sql.run(connection, "remove_doubled_guard")
            sql.run(connection, "remove_doubled_price_check")
            sql.run(connection, "restore_leadership", generation=generation, version=version)
            sql.run(connection, "restore_guard")
            for row in sql.rows(connection, "state_tables_without_key"):
                sql.execute(connection, f"alter table {row['name']} add primary key (only_row)")
    return wrong
