"""The suite's SQL and commands work on a local PostgreSQL server, with the controller as a plain process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from controller.demo.process import ControllerProcess
from tests.e2e.database import Database, PostgresServer, renamed
from tests.e2e.values import BASE
from tests.e2e.waiting import eventually
from tests.e2e.work import add_work, paced, set_pace
from tests.e2e.workbench import SqlError, Url, Workbench
from tests.support.servers import Server


@pytest.fixture
def postgres(server: Server, quick_bench: Workbench) -> PostgresServer:
    return PostgresServer(quick_bench, Url(server.url("postgres")))


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A seeded and migrated database."""
    with postgres.database("e2e_own") as database:
        database.seed(12, 60)
        assert database.command("migrate").status == 0
        yield database


@pytest.fixture
def start_controller(database: Database) -> Iterator[Callable[[], ControllerProcess]]:
    """Starts controllers with the suite's settings and a drain timeout of 1 s. Kills them after the test."""
    started: list[ControllerProcess] = []

    def start() -> ControllerProcess:
        billing = BASE["billing"]
        process = ControllerProcess(
            database.url.text,
            BILLING_INTERVAL_MINUTES=str(billing["intervalMinutes"]),
            BILLING_BATCH_SIZE=str(billing["batchSize"]),
            BILLING_WORKERS=str(billing["workers"]),
            BILLING_DRAIN_TIMEOUT_SECONDS="1",
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.remove()


def leads(database: Database, process: ControllerProcess) -> bool:
    """True if the process holds the lock."""
    return [holder.rpartition("-")[2] for holder in database.holders()] == [str(process.pid)]


def test_successor_finishes_the_cycle_of_a_drain_that_timed_out(
    database: Database, start_controller: Callable[[], ControllerProcess]
) -> None:
    """The scenario of test_drain.py without a cluster."""
    first = start_controller()
    first.wait_for("cycle.completed")  # it has charged the sample, and would take some of the work into that cycle
    second = start_controller()
    with paced(database, "drained", 0.5) as work:
        work.wait_until_under_way()
        term = database.status()["term"]
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
        eventually(lambda: leads(database, second), "the second leads", 30)
        set_pace(database, 0)
        work.wait_until_charged()
    assert [(run.term, run.outcome) for run in work.runs()] == [(term, "stopped"), (term + 1, "completed")]
    assert first.events("drain.timed_out")
    assert [line["outcome"] for line in first.events("drain.completed")] == ["timed_out"]
    assert database.audit() == ""


def test_work_of_a_killed_leader_is_charged_exactly_once(
    database: Database, start_controller: Callable[[], ControllerProcess]
) -> None:
    first = start_controller()
    first.wait_for("cycle.completed")  # it has charged the sample, and would take some of the work into that cycle
    start_controller()
    with paced(database, "killed", 0.5) as work:
        work.wait_until_under_way()
        first.kill()
        set_pace(database, 0)
        work.wait_until_charged()
    assert [run.outcome for run in work.runs()] == ["abandoned", "completed"]
    assert database.audit() == ""


def test_doubled_hour_is_found_without_the_audit(database: Database) -> None:
    work = add_work(database, "doubled", batches=1)
    assert database.command("bill").status == 0
    work.wait_until_charged()
    database.sql(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status) select c.vps_instance_id, c.organization_id, billing_period_start,"
        " billing_period_end, 0, 0, 'billed' from vps_billing_cycles c join vps_instances i on i.id = vps_instance_id"
        " where i.label = %s limit 1",
        "doubled",
    )
    with pytest.raises(AssertionError, match="some hours aren't charged exactly once"):
        work.wait_until_charged()


def test_audit_reports_a_changed_wallet(database: Database) -> None:
    assert database.command("bill").status == 0
    assert database.audit() == ""
    database.sql("update wallets set balance = balance + 1 where id = (select id from wallets limit 1)")
    assert '"wallet_balance"' in database.audit()
    assert "wallet" in database.audit()


def test_missing_migration_is_applied_again(database: Database) -> None:
    """The scenario of test_rollout.py without a cluster."""
    (last,) = database.sql("select max(name) as name from billing_schema_migrations")
    database.sql("delete from billing_schema_migrations where name = %s", last["name"])
    done = database.command("migrate")
    assert (done.status, done.stdout.strip()) == (0, f"applied {last['name']}")


def test_password_changes_and_sessions_end_for_one_database(postgres: PostgresServer, database: Database) -> None:
    new = postgres.change_password(database, "an0ther")
    assert ":an0ther@" in new.url.text
    assert database.name in new.url.text.rpartition("/")[2]
    assert postgres.end_sessions(new) == 0
    assert postgres.asks_for_passwords(new) is False, "this server accepts any password"
    assert "an0ther" not in repr(new) + repr(postgres)


def test_database_and_role_are_dropped_after_the_block(postgres: PostgresServer) -> None:
    with postgres.database("e2e_gone") as database:
        assert database.one("select current_user as name") == {"name": "e2e_gone"}
    text = (
        "select rolname from pg_roles where rolname = %s union all select datname from pg_database where datname = %s"
    )
    assert postgres.bench.sql(postgres.url, (text, ["e2e_gone", "e2e_gone"])) == []


def test_workbench_runs_statements_and_programs(server: Server, bench: Workbench) -> None:
    url = Url(server.url("postgres"))
    assert bench.sql(url, ("select 1", []), ("select %s::text as word, now() is not null as now", ["naïve"])) == [
        {"word": "naïve", "now": True}
    ]
    with pytest.raises(SqlError) as error:
        bench.sql(url, ("select 1/0", []))
    assert error.value.sqlstate == "22012"
    done = bench.run(["containerstacks-billing", "migrate", "--check"], {"DATABASE_URL": url.text})
    assert (done.status, done.stdout) == (1, "")
    assert "not a ContainerStacks database" in done.stderr


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("postgresql://postgres:x@10.0.0.1:5432/postgres", "postgresql://u:p@10.0.0.1:5432/d"),
        ("postgresql://a:b@[fd00::1]:5432/x?sslmode=require", "postgresql://u:p@[fd00::1]:5432/d?sslmode=require"),
        ("postgresql://a:b@h1,h2/x", "postgresql://u:p@h1,h2/d"),
    ],
)
def test_renamed_url_keeps_the_server_and_its_parameters(url: str, other: str) -> None:
    assert renamed(Url(url), user="u", password="p", database="d").text == other


class UnreadyReplicaHandler(BaseHTTPRequestHandler):
    """Responds like a replica that isn't ready."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/readyz" else 200)
        self.end_headers()
        self.wfile.write(b"database: password authentication failed")

    def log_message(self, *_arguments: object) -> None:
        pass


def test_workbench_returns_status_and_body_of_a_response(bench: Workbench) -> None:
    with HTTPServer(("127.0.0.1", 0), UnreadyReplicaHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        responses = bench.get(f"{address}/readyz"), bench.get(f"{address}/livez")
        server.shutdown()
    assert [response.status for response in responses] == [503, 200]
    assert responses[0].body == "database: password authentication failed"
    assert bench.get(f"{address}/livez").status == 0


def test_workbench_resolves_only_names_that_exist(bench: Workbench) -> None:
    assert bench.resolves("localhost")
    assert not bench.resolves("no-such-name.invalid")
