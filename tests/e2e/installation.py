"""A release in its own namespace on its own database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.e2e.database import Database
from tests.e2e.helm import Helm
from tests.e2e.kubectl import Kubectl
from tests.e2e.objects import EventView, PodView, address_of, pod_of
from tests.e2e.values import RELEASE
from tests.e2e.waiting import eventually
from tests.e2e.work import Work, paced
from tests.e2e.workbench import HttpResponse

DEPLOYMENT: Final = f"deployment/{RELEASE}"
INSTANCE: Final = f"app.kubernetes.io/instance={RELEASE}"
REPLICAS: Final = f"{INSTANCE},app.kubernetes.io/component=controller"
LEADER: Final = "billing.containerstacks.io/role=leader"


@dataclass(frozen=True)
class Leader:
    """A leader that the label, the Event, the lock and `status` agree on."""

    pod: PodView
    term: int


@dataclass(frozen=True)
class Installation:
    """A release in its own namespace on its own database.

    Attributes:
        kubectl: kubectl for the namespace.
        helm: helm for the namespace.
        database: the release's database.
        values: the chart values of the installation.
    """

    kubectl: Kubectl
    helm: Helm
    database: Database
    values: dict[str, Any]

    def pods(self) -> list[PodView]:
        """The replicas that aren't terminating, sorted by name."""
        return [pod for pod in self.kubectl.pods(REPLICAS) if not pod.terminating]

    def wait_for_replicas(self, count: int, within_seconds: float = 180) -> list[PodView]:
        """Waits until exactly `count` replicas exist, all Ready and none terminating."""

        def check() -> list[PodView] | bool:
            pods = self.kubectl.pods(REPLICAS)
            assert [(pod.ready, pod.terminating) for pod in pods] == [(True, False)] * count, pods
            return pods or True

        found = eventually(check, f"exactly {count} replicas exist and are Ready", within_seconds)
        return found if isinstance(found, list) else []

    def events(self, reason: str) -> list[EventView]:
        """The Deployment's Events with this reason, oldest first."""
        regarding = f"Deployment/{RELEASE}"
        return [e for e in self.kubectl.events() if (e.reason, e.regarding) == (reason, regarding)]

    def own_events(self) -> list[EventView]:
        """The Events that the replicas have written, oldest first."""
        return [event for event in self.kubectl.events() if event.regarding == f"Deployment/{RELEASE}" and event.pod]

    def leader(self, *, after_term: int = 0, within_seconds: float = 90) -> Leader:
        """Waits until label, Event, `pg_locks` and `status` name the same leader, and returns it.

        Args:
            after_term: the leader's term must be newer.
            within_seconds: time limit.
        """

        def check() -> Leader:
            holders = [pod_of(instance) for instance in self.database.holders()]
            assert len(holders) == 1, f"holders of the lock in pg_locks: {holders}"
            status = self.database.status()
            assert status["term"] > after_term, f"still term {status['term']}"
            assert pod_of(status["leader"] or "") == holders[0], f"status names {status['leader']}, pg_locks {holders}"
            labelled = [pod for pod in self.pods() if pod.role == "leader"]
            assert [pod.name for pod in labelled] == holders, f"labelled {labelled}, pg_locks {holders}"
            term = re.compile(rf"\bterm {status['term']}\b")
            announced = [event.pod for event in self.events("LeaderElected") if term.search(event.note)]
            assert announced == holders, f"Events of term {status['term']} name {announced}, pg_locks {holders}"
            return Leader(labelled[0], status["term"])

        return eventually(check, "label, Event, pg_locks and status name one leader", within_seconds)

    @contextmanager
    def working(self, tag: str, seconds_a_batch: float = 0.5) -> Iterator[Work]:
        """Adds work and enters the block in the middle of its cycle, which takes some seconds more."""
        with paced(self.database, tag, seconds_a_batch) as work:
            work.wait_until_under_way()
            yield work

    def readiness(self, pod: PodView) -> HttpResponse:
        """The response of a replica's `/readyz`."""
        return self.http(pod, "/readyz")

    def http(self, pod: PodView, path: str) -> HttpResponse:
        """A replica's response to an HTTP GET."""
        return self.database.bench.get(f"http://{address_of(pod.ip)}:8080{path}")

    def restarts(self) -> int:
        """The container restarts of the current replicas."""
        return sum(pod.restarts for pod in self.pods())

    def scale(self, replicas: int) -> list[PodView]:
        """Runs `kubectl scale`, waits for the replicas and returns them."""
        self.kubectl.run("scale", DEPLOYMENT, "--replicas", str(replicas))
        return self.wait_for_replicas(replicas)
