"""The doctor reports what it can without a database, and what a service account may do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controller import settings
from controller.doctor import Finding, Level, examine
from controller.doctor.examination import CHECKS
from controller.doctor.findings import lines
from controller.doctor.kubernetes import permissions_of
from controller.errors import SettingsError
from tests.unit.test_k8s_api import POD, ApiServer, configuration


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    with ApiServer().serving() as running:
        yield running


def test_wrong_setting_is_a_failure_and_skips_every_check() -> None:
    def load() -> settings.Settings:
        raise SettingsError("BILLING_WORKERS=0 must be at least 1")

    first, *others = examine(load)
    assert (first.level, first.message) == (Level.FAILURE, "BILLING_WORKERS=0 must be at least 1")
    assert [(each.check, each.level) for each in others] == [(check.name, Level.SKIPPED) for check in CHECKS]


def test_unreachable_database_is_a_failure_and_what_needs_it_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://billing:secret@127.0.0.1:1/nowhere")
    monkeypatch.setenv("BILLING_KUBERNETES", "off")
    monkeypatch.setenv("BILLING_WORKER", "3")
    findings = examine(lambda: settings.load(None))
    assert "secret" not in "".join(lines(findings))
    found = {each.check: each for each in findings}
    assert found["connection"].level is Level.FAILURE
    assert found["connection"].remedy == "check DATABASE_URL and that the server is up"
    assert found["privileges"].message == "skipped, because the schema check failed"
    assert (found["variables"].level, found["variables"].remedy) == (Level.WARNING, "set BILLING_WORKERS instead")
    assert {each.level for each in findings[5:]} == {Level.SKIPPED}


def test_every_need_of_a_check_is_an_earlier_check() -> None:
    names = [check.name for check in CHECKS]
    assert all(names.index(need) < position for position, check in enumerate(CHECKS) for need in check.needs)


def test_summary_counts_what_needs_attention() -> None:
    found = [Finding("a", Level.OK, "fine"), Finding("b", Level.FAILURE, "broken", "fix it")]
    assert list(lines(found)) == [
        "ok       a  fine",
        "FAILURE  b  broken",
        "            remedy: fix it",
        "1 failure",
    ]
    assert list(lines(found[:1]))[-1] == "everything is in order"


def test_missing_permission_is_a_warning_with_its_remedy(api_server: ApiServer) -> None:
    api_server.permitted = {("patch", "pods"), ("create", "events")}
    found = list(permissions_of(POD, configuration(api_server.url)))
    assert [(each.level, each.message) for each in found] == [
        (Level.OK, "may patch pods in billing"),
        (Level.WARNING, "may not get deployments billing in billing"),
        (Level.OK, "may create events in billing"),
    ]
    assert "rbac" in found[1].remedy


def test_api_server_that_refuses_is_a_warning(api_server: ApiServer) -> None:
    api_server.status["selfsubjectaccessreviews"] = 500
    (found,) = permissions_of(POD, configuration(api_server.url))
    assert found.level is Level.WARNING
