"""The paths show the status, change nothing, and escape everything."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.billing.page_facts import PublicFacts
from controller.billing.status import Status
from controller.election import Role
from controller.errors import DatabaseUnreachableError
from controller.web import Identity, Routes, StatusCache, Vitals
from tests.statuses import NOW, status

HOSTILE = """<script>alert("x")</script>'&"""

HEALTHY = Vitals(Role.STANDBY, None, 0.5)


def run(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of any type
    return {
        "id": 41,
        "term": 7,
        "holder": "host-1",
        "started_at": NOW - timedelta(minutes=40),
        "finished_at": NOW - timedelta(minutes=40) + timedelta(seconds=2.5),
        "outcome": "completed",
        "instances": 1000,
        "hours": 1003,
        "amount": Decimal("12.1"),
        "debts": 3,
        "failures": 0,
        "error": None,
    } | changes


class Database:
    def __init__(self, view: Status | None = None, runs: Sequence[Mapping[str, Any]] = ()) -> None:
        self.view = view
        self.runs = runs
        self.reads = 0

    def read(self) -> PublicFacts:
        self.reads += 1
        if self.view is None:
            raise DatabaseUnreachableError(f"can't connect {HOSTILE}")
        return PublicFacts(self.view, tuple(dict(run) for run in self.runs))


class Response:
    """The answer to one request."""

    def __init__(self, routes: Routes, path: str, method: str = "GET") -> None:
        self.status = ""
        self.headers: dict[str, str] = {}
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "term=1"}
        self.body = b"".join(routes(environ, self._start)).decode()

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status = status
        self.headers = dict(headers)


def make_routes(
    database: Database, vitals: Vitals = HEALTHY, *, pod: str | None = None, separate_worker_url: bool = False
) -> Routes:
    return Routes(
        Identity("host-2", "1.2.3", "the lock", "USD", pod),
        lambda: vitals,
        StatusCache(database.read, lambda: 0.0),
        lambda: b"metric 1.0\n",
        10.0,
        separate_worker_url=separate_worker_url,
    )


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_healthy_probe_answers_ok_without_the_database(path: str) -> None:
    database = Database()
    answer = Response(make_routes(database), path)
    assert (answer.status, answer.body) == ("200 OK", "ok")
    assert database.reads == 0


def test_readyz_answers_one_line_for_each_failed_check() -> None:
    vitals = Vitals(Role.CONNECTING, None, 0.5, ended_threads=("biller",), connect_error="refused")
    answer = Response(make_routes(Database(), vitals), "/readyz")
    assert answer.status == "503 Service Unavailable"
    assert answer.body.splitlines() == ["database: refused", "biller: its thread has ended"]


def test_readyz_of_a_draining_replica_answers_200_and_draining() -> None:
    vitals = Vitals(Role.STOPPED, None, 0.5, draining=True, connect_error="refused")
    answer = Response(make_routes(Database(), vitals), "/readyz")
    assert (answer.status, answer.body) == ("200 OK", "draining: this replica is stopping\n")


def test_livez_answers_why() -> None:
    answer = Response(make_routes(Database(), Vitals(Role.STANDBY, None, 1.0, ended_threads=("heartbeat",))), "/livez")
    assert (answer.status, answer.body) == ("503 Service Unavailable", "heartbeat: its thread has ended\n")


def test_replica_is_ready_once_the_status_was_read_through_the_workers_url() -> None:
    database = Database(status())
    routes = make_routes(database, separate_worker_url=True)
    Response(routes, "/status.json")
    for _ in range(10):
        assert Response(routes, "/readyz").body == "ok"
    assert database.reads == 1


def test_replica_whose_workers_never_reached_the_database_is_not_ready() -> None:
    answer = Response(make_routes(Database(), separate_worker_url=True), "/readyz")
    assert answer.status == "503 Service Unavailable"
    assert "DATABASE_URL" in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "", "get"])
@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/status.json"])
def test_no_path_accepts_another_method(path: str, method: str) -> None:
    answer = Response(make_routes(Database(status())), path, method)
    assert answer.status == "405 Method Not Allowed"
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["", "//", "/livez/", "/drain", "/../etc/passwd", "/status", HOSTILE])
def test_unknown_path_is_not_found_and_not_repeated(path: str) -> None:
    answer = Response(make_routes(Database()), path)
    assert answer.status == "404 Not Found"
    assert "script" not in answer.body


def test_head_answers_without_a_body() -> None:
    answer = Response(make_routes(Database()), "/livez", "HEAD")
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == ("200 OK", "", "2")


def test_metrics_have_the_text_formats_content_type() -> None:
    answer = Response(make_routes(Database()), "/metrics")
    assert (answer.body, answer.headers["Content-Type"]) == (
        "metric 1.0\n",
        "text/plain; version=0.0.4; charset=utf-8",
    )


def test_status_json_has_the_status_the_runs_and_this_replica() -> None:
    vitals = Vitals(Role.LEADER, 7, 0.25)
    answer = Response(
        make_routes(Database(status(), [run(outcome="running", id=42), run()]), vitals, pod="pod-b"), "/status.json"
    )
    shown = json.loads(answer.body)
    assert answer.status == "200 OK"
    assert shown["leader"] == "host-1"
    assert shown["owed"] == "4.50"
    assert shown["database_time"] == "2026-11-22T12:00:00+00:00"
    assert shown["replica"] == {
        "instance": "host-2",
        "version": "1.2.3",
        "lock": "the lock",
        "currency": "USD",
        "pod": "pod-b",
        "node": None,
        "role": "leader",
        "leads_in_term": 7,
        "draining": False,
        "silent_seconds": 0.25,
        "not_live": [],
        "not_ready": [],
    }
    assert [each["id"] for each in shown["runs"]] == [42, 41]


def test_last_run_comes_from_the_history_with_its_amount_as_text() -> None:
    answer = json.loads(Response(make_routes(Database(status(), [run(outcome="running"), run()])), "/status.json").body)
    assert (answer["last_run"]["amount"], answer["last_run"]["error"]) == ("12.1", None)


def test_status_json_without_a_database_still_shows_this_replica() -> None:
    answer = Response(make_routes(Database()), "/status.json")
    shown = json.loads(answer.body)
    assert answer.status == "503 Service Unavailable"
    assert shown["error"].startswith("can't connect")
    assert shown["replica"]["role"] == "standby"


def test_page_shows_who_leads_and_how_billing_stands() -> None:
    answer = Response(make_routes(Database(status(), [run()])), "/")
    assert answer.status == "200 OK"
    for shown in ("host-1", "term 7", "host-2", "in 20 min 0 s", "12 s ago", "4.50 USD", "12.10", "2.5", "1003"):
        assert shown in answer.body


@pytest.mark.parametrize(
    "database",
    [
        Database(
            status(
                leader=None,
                leading_since=None,
                standbys=(),
                next_cycle_at=None,
                waiting_for="leader",
                heartbeat_age_seconds=None,
            )
        ),
        Database(
            status(running_since=NOW - timedelta(seconds=70), waiting_for="running"),
            [run(finished_at=None, outcome="running")],
        ),
        Database(
            status(next_cycle_at=NOW - timedelta(days=2, hours=3), waiting_for="nothing", failures=2),
            [run(outcome="unknown")],
        ),
        Database(),
    ],
    ids=["fresh", "running", "overdue", "away"],
)
def test_page_is_complete_in_every_state(database: Database) -> None:
    body = Response(make_routes(database), "/").body
    assert body.count("<") == body.count(">")
    assert body.startswith("<!doctype html>")
    assert body.endswith("</html>\n")
    assert "None" not in body.replace("None yet", "")


def test_page_without_a_database_says_why() -> None:
    answer = Response(make_routes(Database()), "/")
    assert answer.status == "503 Service Unavailable"
    assert "can&#x27;t connect" in answer.body


def test_page_shows_why_the_replica_is_not_ready() -> None:
    body = Response(
        make_routes(Database(status()), Vitals(Role.CONNECTING, None, 1.0, connect_error=HOSTILE)), "/"
    ).body
    assert "not ready" in body
    assert "This replica: database: &lt;script&gt;" in body


def test_page_escapes_every_value() -> None:
    view = status(leader=HOSTILE, standbys=(HOSTILE,), term=HOSTILE)
    runs = [run(holder=HOSTILE, error=HOSTILE, outcome=HOSTILE, id=HOSTILE, debts=HOSTILE)]
    for database in (Database(view, runs), Database()):
        body = Response(make_routes(database, pod=HOSTILE), "/").body
        assert "<script" not in body
        assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#x27;&amp;" in body


def test_page_loads_nothing_and_its_policy_forbids_it() -> None:
    answer = Response(make_routes(Database(status(), [run()])), "/")
    assert not re.search(r"(src|href)=\"(?!/|data:,|#)|https?:|//|@import|url\(", answer.body)
    style = re.search(r"<style>(.*?)</style>", answer.body, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert " style=" not in answer.body


@pytest.mark.parametrize("path", ["/", "/livez", "/metrics", "/status.json", "/elsewhere"])
def test_every_answer_has_the_security_headers(path: str) -> None:
    headers = Response(make_routes(Database(status())), path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_defect_in_a_page_is_answered_without_details_and_logged_once() -> None:
    def fail() -> bytes:
        raise KeyError("hunter2")

    broken = Routes(
        Identity("host-2", "1.2.3", "the lock", "USD"),
        lambda: HEALTHY,
        StatusCache(Database(status()).read, lambda: 0.0),
        fail,
        10.0,
    )
    with capture_logs() as logged:
        answers = [Response(broken, "/metrics") for _ in range(3)]
    assert [answer.status for answer in answers] == ["500 Internal Server Error"] * 3
    assert "hunter2" not in answers[0].body
    assert [line["log_level"] for line in logged] == ["error", "debug", "debug"]
    assert Response(broken, "/livez").body == "ok"
