"""The leader becomes visible, and an API server in any state costs billing nothing but a warning."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.billing.values import CycleResult, Outcome, Totals
from controller.k8s.announcer import CYCLE_NEWS_SECONDS, FLUSH_SECONDS, MAX_EVENTS, Announcer
from controller.k8s.pod import Pod
from controller.lifecycle.drain import DrainOutcome
from tests.unit.test_k8s_api import PATIENCE_SECONDS, PLACE, ApiServer, Request, configuration

ROLE = "billing.containerstacks.io/role"


class Running:
    """An announcer on its thread."""

    def __init__(self, url: str, place: Pod | str = PLACE, **more: Any) -> None:  # noqa: ANN401 - as the class takes them
        self.announcer = Announcer(place, lambda: configuration(url), **more)
        self.thread = threading.Thread(target=self.announcer.run, name="cluster", daemon=True)

    def end(self, within_seconds: float = PATIENCE_SECONDS) -> None:
        self.announcer.stop()
        self.thread.join(within_seconds)
        assert not self.thread.is_alive()


@contextmanager
def running(url: str, place: Pod | str = PLACE, **more: Any) -> Iterator[Announcer]:  # noqa: ANN401 - as above
    made = Running(url, place, **more)
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


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            return False
        threading.Event().wait(0.01)
    return True


def completed(failures: int = 0) -> CycleResult:
    return CycleResult(Outcome.COMPLETED, Totals(10, 12, Decimal("1.20"), 0, failures), 2.0)


def untold(logged: list[Any]) -> list[tuple[str, str]]:
    """The warnings, by resource and the first word of their error."""
    return [(line["resource"], line["error"].split(":")[0]) for line in logged if line["log_level"] == "warning"]


def test_replica_is_a_standby_until_it_leads_and_after(server: ApiServer) -> None:
    with running(server.url) as announcer:
        assert role(server.next("pods")) == ("standby", "0")
        announcer.elected(7)
        assert role(server.next("pods")) == ("leader", "100")
        announcer.deposed(7, "no good ping")
        assert role(server.next("pods")) == ("standby", "0")


def test_events_tell_what_happened_in_its_order(server: ApiServer) -> None:
    with running(server.url) as announcer:
        announcer.elected(7)
        announcer.cycle_ended(completed())
        announcer.cycle_ended(CycleResult(Outcome.FAILED, Totals(), 0.1, error="disk full"))
        announcer.drain_started("SIGTERM")
        announcer.resigned(7)
        announcer.drain_ended(DrainOutcome.COMPLETED)
        announcer.drain_ended(DrainOutcome.TIMED_OUT)
        announcer.deposed(7, "no good ping")
        told = [server.next("events").body for _ in range(8)]
    assert [(body["reason"], body["type"]) for body in told] == [
        ("LeaderElected", "Normal"),
        ("CycleCompleted", "Normal"),
        ("CycleFailed", "Warning"),
        ("DrainStarted", "Normal"),
        ("LeadershipResigned", "Normal"),
        ("DrainCompleted", "Normal"),
        ("DrainTimedOut", "Warning"),
        ("LeadershipLost", "Warning"),
    ]
    assert told[0]["note"] == "billing-7d4-x2 leads in term 7"
    assert told[3]["note"] == "billing-7d4-x2 drains: SIGTERM"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["eventTime"]) for body in told)
    assert len({body["metadata"]["name"] for body in told}) == 8


def test_standbys_drain_is_not_announced(server: ApiServer) -> None:
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
        told = [server.next("events").body for _ in range(3)]
    assert {body["regarding"]["uid"] for body in told} == {"deployment-uid"}
    assert {body["related"]["uid"] for body in told} == {"pod-uid"}


def test_events_regard_the_pod_where_no_deployment_is_named(server: ApiServer) -> None:
    with running(server.url, replace(PLACE, deployment=None)) as announcer:
        announcer.elected(7)
        body = server.next("events").body
    assert body["regarding"]["kind"] == "Pod"


@pytest.mark.parametrize("status", [403, 404])
def test_deployment_that_can_not_be_read_costs_a_warning_and_events_regard_the_pod(
    server: ApiServer, status: int
) -> None:
    server.status["deployments"] = status
    with capture_logs() as logged, running(server.url) as announcer:
        for term in range(3):
            announcer.elected(term)
        told = [server.next("events").body for _ in range(3)]
    assert {body["regarding"]["kind"] for body in told} == {"Pod"}
    assert [resource for resource, _ in untold(logged)] == ["deployments"]


def test_completed_cycles_are_news_now_and_then_and_failed_instances_always(server: ApiServer) -> None:
    now = [1000.0]
    with running(server.url, clock=lambda: now[0]) as announcer:
        announcer.cycle_ended(completed())
        announcer.cycle_ended(completed())
        announcer.cycle_ended(completed(failures=4))
        now[0] += CYCLE_NEWS_SECONDS
        announcer.cycle_ended(completed())
        announcer.cycle_ended(CycleResult(Outcome.STOPPED, Totals(), 1.0))
        announcer.cycle_ended(CycleResult(Outcome.DEPOSED, Totals(), 1.0))
        announcer.elected(8)
        told = [server.next("events").body for _ in range(4)]
    assert [(body["reason"], body["type"]) for body in told] == [
        ("CycleCompleted", "Normal"),
        ("CycleCompleted", "Warning"),
        ("CycleCompleted", "Normal"),
        ("LeaderElected", "Normal"),
    ]


def test_no_permission_costs_one_warning_a_resource(server: ApiServer) -> None:
    server.status = {"pods": 403, "events": 403, "deployments": 403}
    with capture_logs() as logged:
        made = Running(server.url)
        made.thread.start()
        for term in range(5):
            made.announcer.elected(term)
            made.announcer.deposed(term, "no good ping")
        server.next("events")
        made.end()
    assert sorted(resource for resource, _ in untold(logged)) == ["deployments", "events", "pods"]
    assert all("not permitted" in line["error"] for line in logged if line["log_level"] == "warning")


def test_label_becomes_true_once_the_api_server_is_back(server: ApiServer) -> None:
    server.status["pods"] = 503
    with capture_logs() as logged, running(server.url) as announcer:
        assert role(server.next("pods")) == ("standby", "0")
        announcer.elected(7)
        server.status.pop("pods")
        assert role(server.next("pods")) == ("leader", "100")
        announcer.deposed(7, "no good ping")
        assert role(server.next("pods")) == ("standby", "0")
    assert untold(logged) == [("pods", "the API server does not answer, or is too busy")]


def test_event_is_sent_again_under_the_same_name(server: ApiServer) -> None:
    server.status["events"] = 500
    with running(server.url) as announcer:
        announcer.elected(7)
        first = server.next("events")
        server.status["events"] = 409
        assert server.next("events").body == first.body


def test_api_server_that_refuses_costs_one_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with capture_logs() as logged:
        made = Running(url)
        made.thread.start()
        for term in range(5):
            made.announcer.elected(term)
        assert eventually(lambda: len([line for line in logged if line["event"] == "cluster.failed"]) >= 3)
        made.end()
    assert len(untold(logged)) == 1


def test_api_server_that_hangs_holds_no_caller_and_no_exit(server: ApiServer) -> None:
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


def test_oldest_event_gives_way_when_nobody_takes_them(server: ApiServer) -> None:
    server.answer_now.clear()
    with running(server.url) as announcer:
        server.next("pods")
        for term in range(MAX_EVENTS + 10):
            announcer.elected(term)
        server.answer_now.set()
        told = [server.next("events").body["note"] for _ in range(MAX_EVENTS)]
    assert told[0] == "billing-7d4-x2 leads in term 10"
    assert told[-1] == f"billing-7d4-x2 leads in term {MAX_EVENTS + 9}"


def test_what_happened_last_gets_out_before_the_end(server: ApiServer) -> None:
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


def test_announcer_stopped_before_it_runs_still_tells(server: ApiServer) -> None:
    made = Running(server.url)
    made.announcer.elected(7)
    made.announcer.stop()
    made.thread.start()
    made.end()
    assert {request.kind for request in server.all()} == {"pods", "deployments", "events"}


def test_secrets_do_not_reach_an_event(server: ApiServer) -> None:
    with running(server.url, redact=lambda text: text.replace("hunter2", "***")) as announcer:
        announcer.cycle_ended(CycleResult(Outcome.FAILED, Totals(), 0.1, error="password hunter2"))
        assert "password ***;" in server.next("events").body["note"]


def test_outside_a_cluster_there_is_one_line_at_debug_and_nothing_else() -> None:
    with capture_logs() as logged:
        made = Running("http://127.0.0.1:1", "not in a cluster")
        made.announcer.elected(7)
        made.announcer.run()
        made.announcer.deposed(7, "no good ping")
        made.announcer.stop()
    assert [(line["event"], line["log_level"], line["reason"]) for line in logged] == [
        ("cluster.skipped", "debug", "not in a cluster")
    ]


def test_client_that_can_not_be_set_up_costs_one_warning() -> None:
    def unreadable() -> object:
        raise ValueError("no certificate")

    announcer = Announcer(PLACE, unreadable)
    with capture_logs() as logged:
        announcer.run()
        announcer.elected(7)
    assert [(line["event"], line["log_level"]) for line in logged] == [("cluster.unavailable", "warning")]


def test_client_is_imported_by_nobody_who_does_not_need_it() -> None:
    program = (
        "import sys, controller.app, controller.k8s, controller.web, controller.metrics\n"
        "controller.k8s.Announcer('not in a cluster').run()\n"
        "sys.exit('kubernetes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_generated_classes_are_not_imported_by_those_who_do() -> None:
    program = (
        "import sys\n"
        "from kubernetes.client import Configuration\n"
        "from controller.k8s.api import Api\n"
        "from controller.k8s import Pod\n"
        "Api(Configuration(), Pod('n', 'p'))\n"
        "sys.exit('kubernetes.client.api.core_v1_api' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
