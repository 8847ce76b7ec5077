"""The operator's pages show who is not charged and why, and only to browsers that meant to reach this server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from controller.billing.answers import Explanation, NameNotFoundError, Subject
from controller.billing.page_facts import OperatorFacts
from controller.election import Role
from controller.errors import DatabaseUnreachableError
from controller.web import Identity, OperatorRoutes, StatusCache, Vitals
from controller.web.operator_routes import MAX_EXPLAINING, is_expected_host
from controller.web.status_cache import FRESH_SECONDS
from tests.page_samples import NAMES, explanation, healthy, organization_id, troubled

PATIENCE_SECONDS = 10.0


class Database:
    """The facts that the pages read; None raises."""

    def __init__(self, facts: OperatorFacts | None = None, found: Sequence[Subject] = ()) -> None:
        self.facts = facts
        self.found = found
        self.now = 1000.0
        self.asked = threading.Semaphore(0)
        self.answers = threading.Event()
        self.answers.set()

    def read(self) -> OperatorFacts:
        if self.facts is None:
            raise DatabaseUnreachableError("can't connect: refused")
        return self.facts

    def find(self, name: str) -> Sequence[Subject]:
        assert name
        return self.found

    def explain(self, subject: UUID) -> Explanation:
        self.asked.release()
        assert self.answers.wait(PATIENCE_SECONDS)
        if self.facts is None:
            raise DatabaseUnreachableError("canceling statement due to statement timeout")
        if subject != organization_id(3):
            raise NameNotFoundError(f"no organization or instance has the id {subject}")
        return explanation()


class Browser:
    """Asks the pages as a browser does."""

    def __init__(self, database: Database, checks: Sequence[str] = (), host: str = "127.0.0.1") -> None:
        vitals = Vitals(Role.STANDBY, None, 0.5)
        cache = StatusCache(database.read, lambda: database.now)
        identity = Identity("host-2", "1.2.3", "the lock", "USD")
        self._routes = OperatorRoutes(identity, lambda: vitals, lambda _: checks, cache, database, host=host)
        self.status = 0
        self.headers: dict[str, str] = {}

    def get(self, path: str, query: str = "", host: str = "localhost:8081", method: str = "GET") -> str:
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": host}
        return b"".join(self._routes(environ, self._start)).decode()

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status = int(status.split(maxsplit=1)[0])
        self.headers = dict(headers)


def test_overview_lists_failures_and_debts_by_reason_with_a_link_to_each_explanation() -> None:
    browser = Browser(Database(troubled()))
    body = browser.get("/")
    assert browser.status == 200
    assert body.index("ATTENTION") < body.index("Next cycle") < body.index("<svg") < body.index("Wallet missing")
    for shown in ("give the organization a wallet".capitalize(), "118.40", "plan_known", "One payment each"):
        assert shown in body
    assert f'<a href="/explain/{organization_id(2)}">Cedar &amp; Sons</a>' in body
    assert "14 organizations; these 10 have waited longest" in body


@pytest.mark.parametrize("path", ["/", f"/explain/{organization_id(3)}"])
def test_names_are_escaped(path: str) -> None:
    body = Browser(Database(troubled())).get(path)
    assert NAMES[3] not in body
    assert "&lt;b&gt;Delta&lt;/b&gt;" in body


def test_page_without_trouble_says_so() -> None:
    body = Browser(Database(healthy())).get("/")
    assert "OK</span>: host-1 leads" in body
    assert "Every instance can be charged." in body
    assert "No organization owes anything." in body


def test_page_without_a_database_shows_the_last_known_facts_their_age_and_the_error_once() -> None:
    database = Database(troubled())
    browser = Browser(database, ["database: can't connect: refused"])
    browser.get("/")
    database.facts = None
    database.now += 60 + FRESH_SECONDS
    body = browser.get("/")
    assert browser.status == 503
    assert body.count("can&#x27;t connect: refused") == 1
    assert "The facts below were read 1 min 5 s ago" in body
    assert "Cedar &amp; Sons" in body
    assert 'class="stale"' in body


def test_page_that_never_had_a_database_says_why() -> None:
    browser = Browser(Database())
    body = browser.get("/")
    assert (browser.status, body.count("can&#x27;t connect: refused")) == (503, 1)
    assert "was read" not in body


def test_page_reloads_until_it_is_told_to_stop() -> None:
    browser = Browser(Database(healthy()))
    browser.get("/")
    assert browser.headers["Refresh"] == "30"
    browser.get("/", "reload=off")
    assert "Refresh" not in browser.headers


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:1234",
        "LOCALHOST:8081",
        "127.0.0.1:8081",
        "127.0.0.1",
        "[::1]:8081",
        "[::1]",
        "localhost.",
    ],
)
def test_loopback_is_an_expected_host_with_any_port(host: str) -> None:
    assert is_expected_host(host, "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8081", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.7:8081",
     "[::2]:8081", "[::1", "localhost@evil.example", "127.0.0.1\nX: y"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/explain", f"/explain/{organization_id(3)}"])
def test_page_is_not_read_by_dns_rebinding(host: str, path: str) -> None:
    browser = Browser(Database(troubled()))
    body = browser.get(path, host=host)
    assert browser.status == 421
    assert "Cedar" not in body


def test_configured_address_is_an_expected_host() -> None:
    assert is_expected_host("ops.internal:8081", "ops.internal")
    assert is_expected_host("[fd00::5]:8081", "fd00::5")
    assert not is_expected_host("other.internal:8081", "ops.internal")


@pytest.mark.parametrize("listening_on", ["*", "0.0.0.0", "::"])  # noqa: S104 - the values of a setting
def test_every_interface_expects_addresses_but_no_foreign_name(listening_on: str) -> None:
    assert is_expected_host("10.0.0.7:8081", listening_on)
    assert is_expected_host("[fd00::5]:8081", listening_on)
    assert not is_expected_host("evil.example:8081", listening_on)


def test_explanation_gives_the_reason_the_remedy_and_what_the_next_cycle_does() -> None:
    browser = Browser(Database(troubled()))
    body = browser.get(f"/explain/{organization_id(3)}")
    assert browser.status == 200
    for shown in ("Insufficient balance: top up the wallet", "0.31 USD", "web-1", "vm-771", "5 h, insufficient balance",
                  "2026-11-22 12:20:00 UTC"):  # fmt: skip
        assert shown in body


def test_search_leads_to_the_only_match() -> None:
    browser = Browser(Database(troubled(), [Subject(organization_id(3), "Delta", "delta")]))
    browser.get("/explain", "name=delta")
    assert (browser.status, browser.headers["Location"]) == (303, f"/explain/{organization_id(3)}")


def test_search_lists_several_matches_and_repeats_the_name_escaped() -> None:
    found = [Subject(organization_id(3), "Delta", "delta", UUID(int=number), "web-1") for number in (1, 2)]
    body = Browser(Database(troubled(), found)).get("/explain", "name=%22%3E%3Cscript%3E")
    assert all(f"/explain/{UUID(int=number)}" in body for number in (1, 2))
    assert "<script" not in body


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/explain", "name=nothing", 404),
        ("/explain", "", 404),
        ("/explain/not-an-id", "", 404),
        (f"/explain/{UUID(int=5)}", "", 404),
        ("/explain/a/b", "", 404),
        ("/elsewhere", "", 404),
        ("/status.json", "", 404),
    ],
)
def test_unknown_page_is_not_found(path: str, query: str, status: int) -> None:
    browser = Browser(Database(troubled()))
    body = browser.get(path, query)
    assert browser.status == status
    assert body.startswith("<!doctype html>")


def test_explanation_without_a_database_says_why() -> None:
    browser = Browser(Database())
    assert "statement timeout" in browser.get(f"/explain/{organization_id(3)}")
    assert browser.status == 503


def test_only_a_few_explanations_are_read_at_once_and_the_overview_still_answers() -> None:
    database = Database(troubled())
    browser = Browser(database)
    database.answers.clear()
    threads = [
        threading.Thread(target=browser.get, args=(f"/explain/{organization_id(3)}",)) for _ in range(MAX_EXPLAINING)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert database.asked.acquire(timeout=PATIENCE_SECONDS)
    assert "Other explanations are being read" in browser.get(f"/explain/{organization_id(3)}")
    assert "ATTENTION" in browser.get("/")
    database.answers.set()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert "vm-771" in browser.get(f"/explain/{organization_id(3)}")


@pytest.mark.parametrize("path", ["/", "/explain", f"/explain/{organization_id(3)}"])
def test_pages_have_no_script_load_nothing_and_forbid_both(path: str) -> None:
    browser = Browser(Database(troubled()))
    body: Any = browser.get(path)
    assert "<script" not in body
    assert " style=" not in body
    assert 'src="' not in body
    policy = browser.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert browser.headers["Referrer-Policy"] == "no-referrer"
    assert browser.headers["Cross-Origin-Resource-Policy"] == "same-origin"
