"""docs/queries.md: each of its queries runs in psql, and every fact is in it. So do those of docs/operations.md."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from controller import sql
from controller.demo.sample import Size, create_data
from tests.integration.world import World

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
QUERIES = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
#: Queries in the tables of docs/operations.md.
INLINE = re.findall(r"`(select [^`]+)`", PAGE.with_name("operations.md").read_text("utf-8"))


@pytest.fixture
def billed(world: World) -> World:
    create_data(world.conn, Size(organizations=12, instances=60))
    world.bill()
    return world


def as_json(query: str) -> str:
    """The query with each row as JSON, because Python has no infinite times."""
    body = query.strip().removesuffix(";").replace("%", "%%")
    return f"select to_jsonb(q) as q from ({body}) q"  # noqa: S608 - ours


def test_queries_of_the_page_run_and_the_price_clock_gives_each_charge_again(billed: World) -> None:
    for query in QUERIES:
        rows = [row["q"] for row in billed.rows(as_json(query))]
        assert all(row.get("recomputed") == row.get("charged") for row in rows), query
        empty = (
            "lost_debts|suspensions|notices|replicas|pause|commands|waived|differences|corrections|backlogs|unrecorded"
        )
        assert rows or re.search(empty, query), query
    for query in INLINE:
        billed.rows(f"select count(q) from ({query.replace('PID', '0')}) q")  # noqa: S608 - ours
    if psql := shutil.which("psql"):
        script = "\n".join(QUERIES)
        command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", billed.url]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_queries_of_the_page_write_nothing_and_lock_no_row(billed: World) -> None:
    """The weakest lock on a table conflicts with nothing but dropping, rewriting or truncating it."""
    modes = "select array_agg(distinct mode) from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid'"
    for query in QUERIES:
        with billed.conn.transaction():
            billed.run("set transaction read only")
            billed.rows(as_json(query))
            assert billed.one(modes) == ["AccessShareLock"], query
            assert billed.one("select pg_current_xact_id_if_assigned()") is None, query


def test_page_has_every_fact_that_commands_read() -> None:
    read = {
        fact
        for name, text in sql.load().items()
        if name in {"status", "history", "find", "instance_debts", "lost_debts", "organization", "instances", "outlook",
                    "statement", "statement_balance", "runway", "run", "run_failures", "names", "next_cycle_at",
                    "last_day", "uncharged"}
        for fact in re.findall(r"\bfrom (billing_\w+)", text)
    }  # fmt: skip
    text = "\n".join(QUERIES)
    assert {fact for fact in read - {"billing_leadership"} if fact not in text} == set()
