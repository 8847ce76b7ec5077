"""The HTTP paths on a real database: their content, their cost, and their answers while the database hangs."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller.billing.page_facts import PublicFacts
from controller.billing.status import Status
from controller.billing.values import Pricing
from controller.demo.process import ControllerProcess, run_command
from controller.demo.sample import Size, create_data
from controller.election import Role
from controller.metrics import Metrics
from controller.postgres.connections import HEARTBEAT, Database
from controller.postgres.lock_session import LockName
from controller.web import HttpServer, Identity, OperatorRoutes, Routes, StatusCache, Vitals
from controller.web_reader import WebReader
from tests.integration.world import World
from tests.support.processes import terminate
from tests.support.waiting import eventually

PATIENCE_SECONDS = 30.0
#: The kubelet's default timeout.
PROBE_SECONDS = 1.0
PATHS = ("/", "/status.json", "/metrics")


class Served:
    """Both servers on a real database and real sockets, assembled as in a replica."""

    def __init__(self, url: str) -> None:
        database = Database(lambda: url, "DATABASE_URL", "test-1")
        status = replace(HEARTBEAT, purpose="status")
        pricing = Pricing(Decimal("19.71"), "USD", ())
        self.reader = WebReader(lambda: database.connect(status), pricing, str)
        self.reads = 0
        self.status_cache = StatusCache(self._read, time.monotonic)
        self.metrics = Metrics("0", LockName().name, lambda: False, self._read_status)
        identity = Identity("test-1", "0", LockName().name, "USD")
        vitals = Vitals(Role.STANDBY, None, 0.1)
        routes = Routes(identity, lambda: vitals, self.status_cache, self.metrics.render, 10.0)
        pages = OperatorRoutes(
            identity,
            lambda: vitals,
            routes.failed_checks,
            StatusCache(self.reader.operator_facts, time.monotonic),
            self.reader,
            host="127.0.0.1",
        )
        self.server = HttpServer("127.0.0.1", 0, routes)
        self.page_server = HttpServer("127.0.0.1", 0, pages)

    def _read(self) -> PublicFacts:
        self.reads += 1
        return self.reader.public_facts()

    def _read_status(self) -> Status | None:
        facts = self.status_cache.get().facts
        return facts.status if facts is not None else None

    def page(self, path: str) -> tuple[int, str]:
        return get(self.page_server.port, path)

    def get(self, path: str, timeout_seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
        return get(self.server.port, path, timeout_seconds)


def get(port: int, path: str, timeout_seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@contextmanager
def serving(url: str) -> Iterator[Served]:
    served = Served(url)
    servers = (served.server, served.page_server)
    threads = [threading.Thread(target=server.run, name="http") for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield served
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.stop()
            thread.join(PATIENCE_SECONDS)


@pytest.fixture
def served(database: str) -> Iterator[Served]:
    with serving(database) as running:
        yield running


def status_sessions(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name like 'billing status%'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_fresh_database_shows_no_leader_and_no_run(served: Served) -> None:
    code, text = served.get("/status.json")
    status = json.loads(text)
    assert code == 200, text
    assert (status["leader"], status["standbys"], status["last_run"], status["owed"]) == (None, [], None, "0")
    assert served.get("/")[0] == 200
    assert "no leader" in served.get("/")[1]
    metrics = served.get("/metrics")[1]
    assert "containerstacks_billing_database_up 1.0" in metrics
    assert "containerstacks_billing_heartbeat_age_seconds" not in metrics


def test_probes_do_not_query_the_database(served: Served) -> None:
    for _ in range(50):
        assert served.get("/livez") == (200, "ok")
        assert served.get("/readyz") == (200, "ok")
    assert served.reads == 0


def test_many_requests_cost_one_set_of_queries(served: Served, conn: psycopg.Connection[Any]) -> None:
    assert served.get("/status.json")[0] == 200
    began = time.monotonic()
    with ThreadPoolExecutor(8) as clients:
        codes = list(clients.map(lambda number: served.get(PATHS[number % 3])[0], range(300)))
    intervals = (time.monotonic() - began) / 5
    assert set(codes) == {200}
    assert served.reads <= 2 + intervals
    assert status_sessions(conn) <= 1


def test_no_session_remains_after_a_request(served: Served, conn: psycopg.Connection[Any]) -> None:
    assert served.get("/")[0] == 200
    eventually(lambda: not status_sessions(conn), "no session is left behind", PATIENCE_SECONDS)


def test_probes_answer_while_the_database_hangs(served: Served, conn: psycopg.Connection[Any]) -> None:
    with conn.transaction(), ThreadPoolExecutor(12) as clients:
        conn.execute("lock table billing_leadership in access exclusive mode")
        pages = [clients.submit(served.get, PATHS[number % 3]) for number in range(12)]
        eventually(lambda: served.reads > 0, "a page reads the database", PATIENCE_SECONDS)
        for _ in range(20):
            assert served.get("/livez", PROBE_SECONDS) == (200, "ok")
            assert served.get("/readyz", PROBE_SECONDS) == (200, "ok")
        answers = [page.result(PATIENCE_SECONDS) for page in pages]
    assert {code for code, _ in answers} == {200, 503}
    assert any("the database has not answered within 2 s" in text for _, text in answers)
    assert any("containerstacks_billing_database_up 0.0" in text for code, text in answers if code == 200)
    assert served.reads == 1


def test_database_without_migrations_is_reported(empty_database: str) -> None:
    with serving(empty_database) as served:
        code, text = served.get("/status.json")
    assert code == 503
    assert 'relation "' in json.loads(text)["error"]


@contextmanager
def replica(url: str, port: int) -> Iterator[ControllerProcess]:
    process = ControllerProcess(url, BILLING_HTTP_ADDRESS=f"127.0.0.1:{port}")
    try:
        yield process
    finally:
        process.remove()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def becomes(port: int, path: str, code: int, containing: str = "") -> str:
    """Polls until the path gives this answer, because a process does not report that it listens."""
    until = time.monotonic() + PATIENCE_SECONDS
    answer = "nothing"
    while time.monotonic() < until:
        try:
            got, answer = get(port, path)
        except OSError as error:
            answer = str(error)
        else:
            if got == code and containing in answer:
                return answer
        threading.Event().wait(0.02)
    pytest.fail(f"{path} did not become {code} {containing!r}: {answer}")


def test_replica_shows_itself_and_stops_cleanly(database: str, conn: psycopg.Connection[Any]) -> None:
    create_data(conn, Size(organizations=6, instances=30))
    port = free_port()
    with replica(database, port) as process:
        becomes(port, "/readyz", 200)
        becomes(port, "/metrics", 200, 'containerstacks_billing_cycles_total{outcome="completed_with_failures"} 1.0')
        assert 'leader_election_master_status{name="containerstacks-billing"} 1.0' in get(port, "/metrics")[1]
        status = json.loads(becomes(port, "/status.json", 200, '"outcome": "completed_with_failures"'))
        assert status["leader"] == status["replica"]["instance"]
        assert status["replica"]["leads_in_term"] == status["term"]
        shown = {re.split("[{ ]", line, maxsplit=1)[0] for line in get(port, "/metrics")[1].splitlines()}
        assert queried_metrics() - shown == set()
        assert terminate(process) == 0


def queried_metrics() -> set[str]:
    """The metrics that the alerts and the dashboard of the chart query."""
    chart = Path(__file__).parents[2] / "charts" / "containerstacks-billing"
    files = (chart / "templates" / "prometheusrule.yaml", *chart.glob("dashboards/*.json"))
    text = "".join(file.read_text("utf-8") for file in files)
    return set(re.findall(r"\b(?:containerstacks_billing|leader_election|process)_\w+(?=[{\\])", text))


def test_replica_that_cannot_connect_is_live_and_says_why_without_the_password(database: str) -> None:
    port = free_port()
    address = database.rpartition("@")[2]
    with replica(f"postgresql://nobody:hunter2@{address}", port):
        reason = becomes(port, "/readyz", 503, "can't connect to PostgreSQL")
        assert get(port, "/livez") == (200, "ok")
        page = get(port, "/")[1]
    assert "hunter2" not in reason + page
    assert 'role "nobody"' in reason or 'user "nobody"' in reason


def test_replica_exits_with_status_2_if_the_port_is_in_use(database: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_command("run", folder=tmp_path, DATABASE_URL=database, BILLING_HTTP_ADDRESS=address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: BILLING_HTTP_ADDRESS={address}: can't listen: address already in use")
    assert done.stderr.count("\n") == 1


POISON = "Poisoned Customer"


def poison(conn: psycopg.Connection[Any]) -> None:
    """Gives every row a name that must not reach the HTTP port, and lets errors quote it."""
    conn.execute("update organizations set name = %s || id, slug = 'poisoned-customer-' || left(id::text, 8)", [POISON])
    conn.execute("update vps_instances set label = %s || left(id::text, 8)", [POISON])
    conn.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " if (select o.id = new.organization_id from organizations o order by o.id limit 1) then"
        "   raise 'Poisoned Customer % may not be billed', new.organization_id;"
        " end if; return new; end $$;"
        "create trigger refuse before insert on payment_transactions for each row execute function refuse()"
    )


def customers(world: World) -> list[str]:
    """Every id and name of a customer."""
    rows = world.rows(
        "select id::text, name, slug from organizations"
        " union all select id::text, label, provider_instance_id from vps_instances"
        " union all select id::text, id::text, id::text from wallets"
    )
    return ["poison", *(value.lower() for row in rows for value in row.values() if value)]


def test_http_port_names_no_customer_and_the_operators_page_does(world: World) -> None:
    create_data(world.conn, Size(organizations=12, instances=60))
    poison(world.conn)
    world.bill()
    world.conn.execute("update billing_runs set error = 'Poisoned Customer broke the cycle'")
    world.conn.execute(
        "insert into billing_suspensions (organization_id, reason, detail)"
        " select id, 'audit_violation', name from organizations order by id desc limit 1"
    )
    world.conn.execute(
        "insert into billing_commands (command, given_by, reason) values ('pause', 'anna on host', 'Poisoned Customer')"
    )
    names = customers(world)
    with serving(world.url) as served:
        for path in (*PATHS, "/livez", "/readyz", "/elsewhere"):
            text = served.get(path)[1].lower()
            assert [name for name in names if name in text] == [], path
        code, page = served.page("/")
        link = re.search(r'href="(/explain/[^"]+)"', page)
        assert link is not None
        explained = served.page(link[1])
        found = served.page("/explain?name=poisoned")
    assert (code, explained[0], found[0]) == (200, 200, 404)
    for shown in (
        POISON,
        "may not be billed",
        "Poisoned Customer broke the cycle",
        "Audit violation",
        "by anna on host: Poisoned",
    ):
        assert shown in page
    assert POISON in explained[1]


def test_error_that_quotes_a_row_does_not_reach_the_http_port(world: World) -> None:
    create_data(world.conn, Size(organizations=4, instances=40))
    world.conn.execute("update vps_plans set base_price = null")
    world.bill()
    world.conn.execute(
        "create or replace function billing_owed(metadata jsonb, total_amount numeric) returns numeric"
        " language sql immutable as $$ select 'Poisoned Customer'::text::numeric + length(metadata::text) $$"
    )
    with serving(world.url) as served:
        for path in PATHS:
            assert "Poison" not in served.get(path)[1]
        assert "SQLSTATE 22P02" in json.loads(served.get("/status.json")[1])["error"]
        assert "Poisoned Customer" in served.page("/")[1]
