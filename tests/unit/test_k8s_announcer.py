"""The leader becomes visible, and a failing API server costs one warning and never delays billing."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.billing.values import CycleResult, Outcome, Totals
from controller.k8s.announcer import CYCLE_EVENT_SECONDS, FLUSH_SECONDS, MAX_EVENTS, Announcer
from controller.k8s.events import cycle_note
from controller.k8s.pod import Pod
from controller.lifecycle.drain import DrainOutcome
from tests.support.waiting import eventually
from tests.unit.test_k8s_api import PATIENCE_SECONDS, POD, ApiServer, Request, configuration

ROLE = "billing.containerstacks.io/role"


class Running:
    """An announcer on its thread."""

    def __init__(self, url: str, pod: Pod | str = POD, **more: Any) -> None:  # noqa: ANN401 - as the class takes them
        self.announcer = Announcer(pod, lambda: configuration(url), **more)
        self.thread = threading.Thread(target=self.announcer.run, name="k8s", daemon=True)

    def end(self, within_seconds: float = PATIENCE_SECONDS) -> None:
        self.announcer.stop()
        self.thread.join(within_seconds)
        assert not self.thread.is_alive()


@contextmanager
def running(url: str, pod: Pod | str = POD, **more: Any) -> Iterator[Announcer]:  # noqa: ANN401 - as above
    made = Running(url, pod, **more)
    made.thread.start()
    try:
        yield made.announcer
    finally:
        made.end()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer().serving() as running:
        yield running


def role(request: Request) -> tuple[str, str]:
    metadata = request.body["metadata"]
    return metadata["labels"][ROLE], metadata["annotations"]["controller.kubernetes.io/pod-deletion-cost"]


def completed(failures: int = 0) -> CycleResult:
    return CycleResult(Outcome.COMPLETED, Totals(10, 12, Decimal("1.20"), 0, failures), 2.0)


def warnings(logged: list[Any]) -> list[tuple[str, str]]:
    """Returns resource and kind of failure of each warning."""
    return [(line["resource"], line["error"].split(":")[0]) for line in logged if line["log_level"] == "warning"]


def test_label_follows_the_leadership(server: ApiServer) -> None:
    with running(server.url) as announcer:
        assert role(server.next("pods")) == ("standby", "0")
        announcer.elected(7)
        assert role(server.next("pods")) == ("leader", "100")
        announcer.deposed(7, "no good ping")
        assert role(server.next("pods")) == ("standby", "0")


def test_events_are_sent_in_order(server: ApiServer) -> None:
    with running(server.url) as announcer:
        announcer.elected(7)
        announcer.cycle_ended(completed())
        announcer.cycle_ended(CycleResult(Outcome.FAILED, Totals(), 0.1, error="disk full"))
        announcer.drain_started("SIGTERM")
        announcer.resigned(7)
        announcer.drain_ended(DrainOutcome.COMPLETED)
        announcer.drain_ended(DrainOutcome.TIMED_OUT)
        announcer.deposed(7, "no good ping")
        bodies = [server.next("events").body for _ in range(8)]
    assert [(body["reason"], body["type"]) for body in bodies] == [
        ("LeaderElected", "Normal"),
        ("CycleCompleted", "Normal"),
        ("CycleFailed", "Warning"),
        ("DrainStarted", "Normal"),
        ("LeadershipResigned", "Normal"),
        ("DrainCompleted", "Normal"),
        ("DrainTimedOut", "Warning"),
        ("LeadershipLost", "Warning"),
    ]
    assert bodies[0]["note"] == "billing-7d4-x2 leads in term 7"
    assert bodies[3]["note"] == "billing-7d4-x2 drains: SIGTERM"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["eventTime"]) for body in bodies)
    assert len({body["metadata"]["name"] for body in bodies}) == 8


def test_drain_of_a_standby_is_not_announced(server: ApiServer) -> None:
    with running(server.url) as announcer:
        announcer.drain_started("SIGTERM")
        announcer.drain_ended(DrainOutcome.COMPLETED)
        announcer.elected(7)
        assert server.next("events").body["reason"] == "LeaderElected"


def test_replica_that_was_deposed_drains_as_a_standby(server: ApiServer) -> None:
    with running(server.url) as announcer:
        announcer.elected(7)
        announcer.deposed(7, "no good ping")
        announcer.drain_started("SIGTERM")
        announcer.drain_ended(DrainOutcome.COMPLETED)
    assert [request.body["reason"] for request in server.all() if request.kind == "events"] == [
        "LeaderElected",
        "LeadershipLost",
    ]


def test_deployment_is_looked_up_once_for_all_events(server: ApiServer) -> None:
    with running(server.url) as announcer:
        for term in range(3):
            announcer.elected(term)
        bodies = [server.next("events").body for _ in range(3)]
    assert {body["regarding"]["uid"] for body in bodies} == {"deployment-uid"}
    assert {body["related"]["uid"] for body in bodies} == {"pod-uid"}


def test_events_are_about_the_pod_without_a_deployment(server: ApiServer) -> None:
    with running(server.url, replace(POD, deployment=None)) as announcer:
        announcer.elected(7)
        body = server.next("events").body
    assert body["regarding"]["kind"] == "Pod"


@pytest.mark.parametrize("status", [403, 404])
def test_unreadable_deployment_costs_a_warning_and_events_are_about_the_pod(server: ApiServer, status: int) -> None:
    server.status["deployments"] = status
    with capture_logs() as logged, running(server.url) as announcer:
        for term in range(3):
            announcer.elected(term)
        bodies = [server.next("events").body for _ in range(3)]
    assert {body["regarding"]["kind"] for body in bodies} == {"Pod"}
    assert [resource for resource, _ in warnings(logged)] == ["deployments"]


def test_cycle_is_announced_if_it_ended_differently_or_after_some_time(server: ApiServer) -> None:
    now = [1000.0]
    failed = CycleResult(Outcome.FAILED, Totals(), 0.1, error="disk full")
    with running(server.url, clock=lambda: now[0]) as announcer:
        for result in (
            completed(),
            completed(),
            completed(failures=4),
            completed(failures=4),
            failed,
            failed,
            completed(),
        ):
            announcer.cycle_ended(result)
        now[0] += CYCLE_EVENT_SECONDS
        announcer.cycle_ended(completed())
        announcer.cycle_ended(CycleResult(Outcome.STOPPED, Totals(), 1.0))
        announcer.cycle_ended(CycleResult(Outcome.DEPOSED, Totals(), 1.0))
        announcer.elected(8)
        bodies = [server.next("events").body for _ in range(6)]
    assert [(body["reason"], body["type"]) for body in bodies] == [
        ("CycleCompleted", "Normal"),
        ("CycleCompletedWithFailures", "Warning"),
        ("CycleFailed", "Warning"),
        ("CycleCompleted", "Normal"),
        ("CycleCompleted", "Normal"),
        ("LeaderElected", "Normal"),
    ]


def test_cycles_without_anything_due_and_customers_debts_make_no_noise(server: ApiServer) -> None:
    now = [1000.0]
    with running(server.url, clock=lambda: now[0]) as announcer:
        for _ in range(20):
            announcer.cycle_ended(CycleResult(Outcome.COMPLETED, Totals(), 0.1))
            announcer.cycle_ended(CycleResult(Outcome.COMPLETED, Totals(debts=3), 0.1))
            now[0] += CYCLE_EVENT_SECONDS
        announcer.elected(8)
        assert server.next("events").body["reason"] == "LeaderElected"
        announcer.cycle_ended(replace(completed(), totals=Totals(10, 12, Decimal(1), 3)))
        body = server.next("events").body
    assert (body["reason"], body["type"]) == ("CycleCompleted", "Normal")


def test_resignation_says_if_the_replica_stops(server: ApiServer) -> None:
    with running(server.url) as announcer:
        announcer.resigned(7)
        announcer.drain_started("SIGTERM")
        announcer.resigned(8)
        notes = [server.next("events").body["note"] for _ in range(2)]
    assert notes == [
        "billing-7d4-x2 resigned from term 7 to let another replica try",
        "billing-7d4-x2 resigned from term 8 to stop",
    ]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_permissions_that_are_gone_during_a_drain_cost_no_warning(server: ApiServer, status: int) -> None:
    """An uninstallation deletes the Role before its pods have ended."""
    with capture_logs() as logged, running(server.url) as announcer:
        announcer.elected(7)
        assert role(server.next("pods")) == ("standby", "0")
        server.status = dict.fromkeys(("pods", "events", "deployments"), status)
        announcer.drain_started("SIGTERM")
        announcer.resigned(7)
        announcer.drain_ended(DrainOutcome.COMPLETED)
    assert warnings(logged) == []
    assert {line["log_level"] for line in logged if line["event"] == "k8s.request_failed"} == {"debug"}


def test_missing_permissions_cost_one_warning_for_each_resource(server: ApiServer) -> None:
    server.status = {"pods": 403, "events": 403, "deployments": 403}
    with capture_logs() as logged:
        made = Running(server.url)
        made.thread.start()
        for term in range(5):
            made.announcer.elected(term)
            made.announcer.deposed(term, "no good ping")
        server.next("events")
        made.end()
    assert sorted(resource for resource, _ in warnings(logged)) == ["deployments", "events", "pods"]
    assert all("not permitted" in line["error"] for line in logged if line["log_level"] == "warning")


def test_label_is_set_once_the_api_server_is_back(server: ApiServer) -> None:
    server.status["pods"] = 503
    with capture_logs() as logged, running(server.url) as announcer:
        assert role(server.next("pods")) == ("standby", "0")
        announcer.elected(7)
        server.status.pop("pods")
        assert role(server.next("pods")) == ("leader", "100")
        announcer.deposed(7, "no good ping")
        assert role(server.next("pods")) == ("standby", "0")
    assert warnings(logged) == [("pods", "the API server does not answer or is too busy")]


def test_event_is_sent_again_with_the_same_name(server: ApiServer) -> None:
    server.status["events"] = 500
    with running(server.url) as announcer:
        announcer.elected(7)
        first = server.next("events")
        server.status["events"] = 409
        assert server.next("events").body == first.body


def test_api_server_that_refuses_connections_costs_one_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with capture_logs() as logged:
        made = Running(url)
        made.thread.start()
        for term in range(5):
            made.announcer.elected(term)
        eventually(
            lambda: len([line for line in logged if line["event"] == "k8s.request_failed"]) >= 3,
            "three failures are logged",
        )
        made.end()
    assert len(warnings(logged)) == 1


def test_hanging_api_server_delays_neither_callers_nor_the_end(server: ApiServer) -> None:
    server.answer_now.clear()
    made = Running(server.url)
    made.thread.start()
    server.next("pods")
    began = time.monotonic()
    for term in range(1000):
        made.announcer.elected(term)
        made.announcer.deposed(term, "no good ping")
    assert time.monotonic() - began < 1.0
    began = time.monotonic()
    made.end()
    assert time.monotonic() - began < FLUSH_SECONDS + 1.0


def test_full_queue_drops_the_oldest_event(server: ApiServer) -> None:
    server.answer_now.clear()
    with running(server.url) as announcer:
        server.next("pods")
        for term in range(MAX_EVENTS + 10):
            announcer.elected(term)
        server.answer_now.set()
        bodies = [server.next("events").body["note"] for _ in range(MAX_EVENTS)]
    assert bodies[0] == "billing-7d4-x2 leads in term 10"
    assert bodies[-1] == f"billing-7d4-x2 leads in term {MAX_EVENTS + 9}"


def test_pending_label_and_events_are_sent_before_the_end(server: ApiServer) -> None:
    server.status = {"events": 503, "pods": 503}
    made = Running(server.url)
    made.thread.start()
    made.announcer.elected(7)
    server.next("events")
    server.status = {}
    made.announcer.drain_started("SIGTERM")
    made.announcer.resigned(7)
    made.announcer.drain_ended(DrainOutcome.COMPLETED)
    made.end()
    left = server.all()
    assert [request.body["reason"] for request in left if request.kind == "events"][-2:] == [
        "LeadershipResigned",
        "DrainCompleted",
    ]
    assert role([request for request in left if request.kind == "pods"][-1]) == ("standby", "0")


def test_announcer_stopped_before_it_runs_still_announces(server: ApiServer) -> None:
    made = Running(server.url)
    made.announcer.elected(7)
    made.announcer.stop()
    made.thread.start()
    made.end()
    assert {request.kind for request in server.all()} == {"pods", "deployments", "events"}


def test_secrets_do_not_reach_an_event(server: ApiServer) -> None:
    with running(server.url, redact=lambda text: text.replace("hunter2", "***")) as announcer:
        announcer.deposed(7, "password hunter2")
        assert server.next("events").body["note"].endswith("password ***")


def test_error_of_a_cycle_does_not_reach_an_event() -> None:
    assert "Acme" not in cycle_note(CycleResult(Outcome.FAILED, Totals(), 0.1, error="Acme may not be billed"))


def test_announcer_outside_a_cluster_only_logs_one_debug_line() -> None:
    with capture_logs() as logged:
        made = Running("http://127.0.0.1:1", "not in a cluster")
        made.announcer.elected(7)
        made.announcer.run()
        made.announcer.deposed(7, "no good ping")
        made.announcer.stop()
    assert [(line["event"], line["log_level"], line["reason"]) for line in logged] == [
        ("k8s.skipped", "debug", "not in a cluster")
    ]


def test_client_that_cannot_be_configured_costs_one_warning() -> None:
    def unreadable() -> object:
        raise ValueError("no certificate")

    announcer = Announcer(POD, unreadable)
    with capture_logs() as logged:
        announcer.run()
        announcer.elected(7)
    assert [(line["event"], line["log_level"]) for line in logged] == [("k8s.client_failed", "warning")]


def test_client_is_not_imported_outside_a_cluster() -> None:
    program = (
        "import sys, controller.app, controller.k8s, controller.web, controller.metrics\n"
        "controller.k8s.Announcer('not in a cluster').run()\n"
        "sys.exit('kubernetes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_generated_classes_of_the_client_are_not_imported() -> None:
    program = (
        "import sys\n"
        "from kubernetes.client import Configuration\n"
        "from controller.k8s.api import Api\n"
        "from controller.k8s import Pod\n"
        "Api(Configuration(), Pod('n', 'p'))\n"
        "sys.exit('kubernetes.client.api.core_v1_api' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
