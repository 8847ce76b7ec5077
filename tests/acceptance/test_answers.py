"""The commands that answer questions, as a person or a script uses them."""

from __future__ import annotations

import psycopg

from controller.demo.process import ControllerProcess
from tests.acceptance.program import Program


def test_status_check_is_0_only_while_everyone_is_billed(
    program: Program, replica: ControllerProcess, database: str
) -> None:
    done = program("status", "--check")
    assert (done.status, done.out) == (1, "ATTENTION: 4 instances can't be charged\n")
    assert program("status").status == 0, "a report is not a check"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)"
        )
    done = program("status", "--check")
    assert (done.status, done.out) == (0, f"OK: {replica.instance} leads, and everything due has been billed\n")
    judged = program("status", "--check", "--json").json
    assert (judged["verdict"], judged.keys()) == ("ok", {"verdict", "reasons"})
    replica.kill()
    done = program("status", "--check")
    assert (done.status, done.out) == (1, "DOWN: no replica leads\n")
