"""A release on its own database in its own namespace, and what a test asks of it."""

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
from tests.e2e.workbench import Answer

DEPLOYMENT: Final = f"deployment/{RELEASE}"
INSTANCE: Final = f"app.kubernetes.io/instance={RELEASE}"
REPLICAS: Final = f"{INSTANCE},app.kubernetes.io/component=controller"
LEADER: Final = "billing.containerstacks.io/role=leader"


@dataclass(frozen=True)
class Leader:
    """A leader on whom the label, the Event, the lock and `status` agree."""

    pod: PodView
    term: int


@dataclass(frozen=True)
class Installation:
    """See above.

    Attributes:
        values: that it was installed with.
    """

    kubectl: Kubectl
    helm: Helm
    database: Database
    values: dict[str, Any]

    def pods(self) -> list[PodView]:
        """The replicas that are not on their way out, by name."""
        return [pod for pod in self.kubectl.pods(REPLICAS) if not pod.terminating]

    def wait_for_replicas(self, count: int, within_seconds: float = 180) -> list[PodView]:
        """Blocks until so many are Ready, and none is on its way in or out."""

        def look() -> list[PodView] | bool:
            pods = self.kubectl.pods(REPLICAS)
            assert [(pod.ready, pod.terminating) for pod in pods] == [(True, False)] * count, pods
            return pods or True

        found = eventually(look, f"{count} replicas are Ready, and no others there", within_seconds)
        return found if isinstance(found, list) else []

    def events(self, reason: str) -> list[EventView]:
        """The Deployment's, for one reason, the oldest first."""
        regarding = f"Deployment/{RELEASE}"
        return [e for e in self.kubectl.events() if (e.reason, e.regarding) == (reason, regarding)]

    def leader(self, *, after_term: int = 0, within_seconds: float = 90) -> Leader:
        """The one leader, when all four witnesses name the same pod.

        Args:
            after_term: it must have been elected since.
            within_seconds: how long they may take to agree.
        """

        def look() -> Leader:
            holders = [pod_of(instance) for instance in self.database.holders()]
            assert len(holders) == 1, f"holders of the lock by pg_locks: {holders}"
            status = self.database.status()
            assert status["term"] > after_term, f"still term {status['term']}"
            assert pod_of(status["leader"] or "") == holders[0], f"status names {status['leader']}, pg_locks {holders}"
            labelled = [pod for pod in self.pods() if pod.role == "leader"]
            assert [pod.name for pod in labelled] == holders, f"labelled {labelled}, pg_locks {holders}"
            term = re.compile(rf"\bterm {status['term']}\b")
            told = [event.pod for event in self.events("LeaderElected") if term.search(event.note)]
            assert told == holders, f"Events of term {status['term']} name {told}, pg_locks {holders}"
            return Leader(labelled[0], status["term"])

        return eventually(look, "label, Event, pg_locks and status name one leader", within_seconds)

    @contextmanager
    def working(self, tag: str, seconds_a_batch: float = 0.5) -> Iterator[Work]:
        """In the middle of a cycle that takes some seconds more."""
        with paced(self.database, tag, seconds_a_batch) as work:
            work.wait_until_under_way()
            yield work

    def readiness(self, pod: PodView) -> Answer:
        """What `/readyz` of a replica answers."""
        return self.http(pod, "/readyz")

    def http(self, pod: PodView, path: str) -> Answer:
        """What a replica answers."""
        return self.database.bench.get(f"http://{address_of(pod.ip)}:8080{path}")

    def restarts(self) -> int:
        """Of the replicas that are there."""
        return sum(pod.restarts for pod in self.pods())

    def scale(self, replicas: int) -> list[PodView]:
        """`kubectl scale`, and what is there when it is done."""
        self.kubectl.run("scale", DEPLOYMENT, "--replicas", str(replicas))
        return self.wait_for_replicas(replicas)
