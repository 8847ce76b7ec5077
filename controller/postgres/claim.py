"""Refuses a second controller on the same instances: one with another lock name, or with another search path.

A lock name keeps the replicas of one controller apart from those of another. Two controllers that bill the same
instances would charge the same hours. So a leader also claims the table of the instances, with a second advisory lock
on the table's oid. A replica whose name differs from the claimant's doesn't join the election.
"""

from typing import Final

from psycopg.sql import Identifier

from controller import sql
from controller.errors import AnotherLeaderError
from controller.postgres.connections import application_name

#: The first integer of the claim's key: the letters "csb".
SPACE: Final = 0x637362
#: Tries for the claim, 50 ms apart. The server releases the locks of an ending session one by one.
TRIES: Final = 6


class OtherControllerError(AnotherLeaderError):
    """A controller with another lock name bills the same instances."""


def refuse_other_controller(connection: sql.Connection, lock_name: str, lock_key: int) -> None:
    """Raises OtherControllerError if a leader with another lock name has claimed the instances.

    Args:
        connection: the session of a replica that contends for the lock, or of a command.
        lock_name: this controller's lock name.
        lock_key: the key of that name.

    Raises:
        psycopg.Error: the session is lost.
    """
    holder = sql.optional_row(connection, "claim_holder", space=SPACE)
    if holder is None or lock_key in holder["lock_keys"]:
        return
    instance = holder["application_name"].removeprefix(application_name("elector", ""))
    raise OtherControllerError(
        f"BILLING_LOCK_NAME={lock_name} can't bill here: {instance or 'a controller'} bills the same instances under"
        f" {_name_of(connection, holder['lock_keys'])}; stop it, or give both the same name, schema and search_path"
    )


def claim(connection: sql.Connection, lock_name: str, lock_key: int) -> None:
    """Claims the instances for this session, which holds the lock of that name. The claim ends with the session.

    The arguments are those of `refuse_other_controller`.

    Raises:
        OtherControllerError: a leader with another lock name has claimed them.
        psycopg.Error: the session is lost.
    """
    for _ in range(TRIES):
        if sql.row(connection, "claim_instances", space=SPACE)["claimed"]:
            return
        sql.run(connection, "wait_for_claim")
    refuse_other_controller(connection, lock_name, lock_key)
    raise OtherControllerError("another session has claimed the instances and is about to end; trying again")


def _name_of(connection: sql.Connection, lock_keys: list[int]) -> str:
    """Returns the lock's name. The key doesn't contain it, but the leader has written it to its leadership table."""
    found = [
        (term["elected_at"], f"BILLING_LOCK_NAME={term['lock_name']} (schema {table['schema']})")
        for table in sql.rows(connection, "leadership_tables")
        for term in _newest_term(connection, table["schema"])
        if term["lock_key"] in lock_keys
    ]
    return max(found)[1] if found else "another BILLING_LOCK_NAME"


def _newest_term(connection: sql.Connection, schema: str) -> list[sql.Row]:
    table = Identifier(schema, "billing_leadership").as_string(connection)
    query = f"select lock_name, billing_lock_key(lock_name) as lock_key, elected_at from {table}"  # noqa: S608 - quoted
    return sql.execute(connection, query)
