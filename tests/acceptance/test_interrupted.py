"""A command that a signal interrupts says so."""

from __future__ import annotations

import signal
import subprocess

import psycopg
import pytest

from tests.acceptance.program import Program
from tests.support.waiting import eventually

INTERRUPTIONS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
#: Each batch takes a second.
SLOW = """
create function rest() returns trigger language plpgsql as $$ begin perform pg_sleep(1); return null; end $$;
create trigger rest after insert on payment_transactions for each statement execute function rest()
"""


def interrupted(
    program: Program, watching: psycopg.Connection, event: str, number: int, *arguments: str
) -> tuple[int, str, str]:
    """Sends a command a signal once it waits for this event on the server. Returns its exit status and its output."""
    command = subprocess.Popen(
        [*program.words, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=program.folder,
        env=program.environment,
    )
    query = "select from pg_stat_activity where datname = current_database() and %s in (wait_event_type, wait_event)"
    eventually(lambda: watching.execute(query, (event,)).rowcount > 0, f"the command waits: {event}")
    command.send_signal(number)
    out, err = command.communicate(timeout=30)
    return command.returncode, out, err


@INTERRUPTIONS
def test_interrupted_audit_says_so(program: Program, database: str, number: signal.Signals) -> None:
    with psycopg.connect(database) as other, psycopg.connect(database, autocommit=True) as watching:
        other.execute("lock table vps_billing_cycles in access exclusive mode")
        ended = interrupted(program, watching, "Lock", number, "audit")
    assert ended == (128 + number, "", f"error: interrupted by {number.name} before the command had finished\n")


@INTERRUPTIONS
def test_interrupted_dry_run_shows_what_it_has_calculated_and_says_so(
    program: Program, database: str, number: signal.Signals
) -> None:
    program.settings["BILLING_BATCH_SIZE"] = "5"
    with psycopg.connect(database, autocommit=True) as watching:
        watching.execute(SLOW)
        status, out, err = interrupted(program, watching, "PgSleep", number, "bill", "--dry-run")
        charged = watching.execute(
            "select count(*) from payment_transactions where billing_is_ours(metadata)"
        ).fetchone()
    assert status == 1, err
    assert "stopped (dry run: rolled back)" in out
    assert "stopped after the batch in hand" in out
    assert charged == (0,)
