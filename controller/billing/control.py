"""Operators' commands: `pause`, `resume` and the others that tell the leader what to do.

A command adds a row to `billing_commands` and takes no lock, so it works while a replica leads. Migration 042
creates the table, and decides which commands apply. The leader learns of a new row with its ping, reads the table
between two batches, and writes its answer into the row.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from controller import sql
from controller.billing import access

#: How long a command waits for the leader's answer.
ANSWER_SECONDS: Final = 10.0
#: How long a command waits for a replica to become leader. A failover takes about a second.
LEADER_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.2
#: The rights that every command needs.
RIGHTS: Final = {"billing_commands": {"select": "", "insert": ""}, "billing_leadership": {"select": ""}}
SUSPENSION_RIGHTS: Final = {**RIGHTS, "billing_suspensions": {"select": "", "insert": "", "delete": ""}}


@dataclass(frozen=True)
class Command:
    """A row of `billing_commands`. Times are the database's.

    Attributes:
        until: when a pause or a suspension ends; None if only another command ends it.
        acknowledged_at: when a leader first read the command; None if none has.
        acknowledged_by: instance id of that leader.
        finished_at: when the leader had nothing left to do for it.
        run_id: the run that carried it out.
        refusal: why the leader refused the command.
        outcome: that run's outcome.
        leader: instance id of the replica that leads now; None if no replica does.
    """

    id: int
    command: str
    given_at: datetime
    given_by: str
    reason: str | None
    until: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    finished_at: datetime | None
    run_id: int | None
    refusal: str | None
    outcome: str | None
    leader: str | None

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Wish:
    """What an operator wants, who the operator is, and why.

    Attributes:
        command: its name in `billing_commands`.
        given_by: the operator, for the record.
        reason: the operator's reason, for the record; None if there is none.
        until: when it ends.
        for_seconds: how long it lasts, by the database's clock; used if `until` is None. None: indefinitely.
        organization_id: the organization that it applies to.
        instance_id: the instance that it applies to.
    """

    command: str
    given_by: str
    reason: str | None = None
    until: datetime | None = None
    for_seconds: float | None = None
    organization_id: UUID | None = None
    instance_id: UUID | None = None


def give(connection: sql.Connection, wish: Wish) -> Command:
    """Records a command.

    Args:
        connection: a session in autocommit mode.
        wish: what to record.

    Raises:
        AccessError: this role may not give commands; one line with the missing right and the remedy.
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    access.require(connection, RIGHTS, "to give commands")
    return read(connection, sql.row(connection, "give_command", **asdict(wish))["id"])


def suspend(connection: sql.Connection, wish: Wish) -> Command:
    """Excludes an organization from billing at once, in place of an earlier suspension by an operator.

    Raises:
        AccessError, psycopg.Error: as `give`.
    """
    access.require(connection, SUSPENSION_RIGHTS, "to suspend an organization")
    with sql.transaction(connection):
        sql.rows(connection, "unsuspend", organization_id=wish.organization_id)
        row = sql.row(connection, "give_command", **asdict(wish))
        sql.run(connection, "suspend", id=row["id"])
    return read(connection, row["id"])


def unsuspend(connection: sql.Connection, wish: Wish) -> tuple[Command, sql.Row] | None:
    """Ends an operator's suspension of an organization; one by the guard stays.

    Returns:
        The command and the suspension that it ended. None if no operator has suspended the organization; then no
        command is recorded.

    Raises:
        AccessError, psycopg.Error: as `give`.
    """
    access.require(connection, SUSPENSION_RIGHTS, "to end a suspension")
    with sql.transaction(connection):
        ended = sql.optional_row(connection, "unsuspend", organization_id=wish.organization_id)
        if ended is None:
            return None
        row = sql.row(connection, "give_command", **asdict(wish))
    return read(connection, row["id"]), ended


def read(connection: sql.Connection, command: int) -> Command:
    """Reads a command's row."""
    return Command(**sql.row(connection, "command", id=command))


def read_waived(connection: sql.Connection, command: Command) -> sql.Row:
    """Reads how many instances and hours a `waive` has waived, and the amount."""
    return sql.row(connection, "waived", id=command.id)


def wait(
    connection: sql.Connection,
    command: Command,
    until: Callable[[Command], bool],
    *,
    seconds: float = ANSWER_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Command:
    """Reads a command until a condition holds, or no answer can be expected.

    Args:
        connection: a session in autocommit mode.
        command: the command, as `give` returned it.
        until: the condition.
        seconds: how long to wait.
        clock: monotonic seconds.
        sleep: waits between two reads.
    """
    led_at = began_at = clock()
    while not until(command) and clock() < min(began_at + seconds, led_at + LEADER_SECONDS):
        sleep(POLL_SECONDS)
        command = read(connection, command.id)
        led_at = clock() if command.leader else led_at
    return command


def answer(connection: sql.Connection, *, between_cycles: bool) -> None:
    """Records that the leader has read every command, and which ones it refuses. Needs the fence.

    Args:
        connection: a session of the leader.
        between_cycles: True if no batch is in hand, which is what a pause waits for.
    """
    sql.run(connection, "answer_commands", between_cycles=between_cycles)


def waits_for_cycle(connection: sql.Connection) -> bool:
    """True if the leader will carry out a command once its running cycle has ended."""
    return bool(sql.row(connection, "command_waits")["waits"])


def take_step_down(connection: sql.Connection) -> Mapping[str, str] | None:
    """Finishes a `step-down` that this leader carries out. Needs the fence. Returns who gave it and why, or None."""
    return next(iter(sql.rows(connection, "take_step_down")), None)
