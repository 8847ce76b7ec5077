"""Replicas that start while the database is unreachable are Ready soon after it is back, without a restart."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.e2e import manifests
from tests.e2e.installation import DEPLOYMENT, Installation
from tests.e2e.objects import address_of
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE
from tests.e2e.waiting import eventually, scaled

pytestmark = pytest.mark.e2e

#: `migrate --wait` and the elector try every second. The kubelet then runs the next container and its probes.
READY_SECONDS: Final = 45.0
SERVICE: Final = "database"


@dataclass(frozen=True)
class Away:
    """An installation whose database is behind a Service without endpoints."""

    release: Installation
    mode: str
    host: str
    port: int

    def wait_for_reason(self) -> None:
        """Waits until the container that needs the database says that it can't reach it."""
        where = {"init": DEPLOYMENT, "job": "job", "none": DEPLOYMENT}[self.mode]
        container = "controller" if self.mode == "none" else "migrate"

        def check() -> bool:
            name = where
            if where == "job":
                (name,) = self.release.kubectl.names(["jobs.batch"])
            log = self.release.kubectl.logs(name, "--container", container)
            assert "can't connect to PostgreSQL" in log, log[-2000:]
            return True

        eventually(check, f"{container} says what it waits for in mode {self.mode}", 120)

    def come_back(self) -> None:
        """Gives the Service its endpoints."""
        self.release.kubectl.apply(manifests.endpoints(SERVICE, self.host, self.port))


def test_replicas_are_ready_soon_after_the_database_is_back(stage: Stage) -> None:
    parts = urlsplit(stage.server.url.text)
    host, port = parts.hostname or "", parts.port or 5432
    try:
        ip_address(host)
    except ValueError:
        pytest.skip("E2E_DATABASE_URL names a host, and a Service leads to addresses only")
    with ExitStack() as stack:
        installed = []
        for release, mode in (
            (stack.enter_context(stage.prepared("away-init")), "init"),
            (stack.enter_context(stage.prepared("away-job")), "job"),
            (stack.enter_context(stage.prepared("away-none")), "none"),
        ):
            kubectl = release.kubectl
            kubectl.apply(manifests.service(SERVICE, port))
            address = kubectl.read("get", "service", SERVICE)["spec"]["clusterIP"]
            url = urlsplit(release.database.url.text)
            credentials = url.netloc.rpartition("@")[0]
            hidden = urlunsplit(url._replace(netloc=f"{credentials}@{address_of(address)}:{port}"))
            kubectl.apply(manifests.secret(manifests.SECRET, **{manifests.KEY: hidden}))
            if mode == "none":
                assert release.database.command("migrate").status == 0
            release.helm.install(RELEASE, release.values, wait=False)
            installed.append(Away(release, mode, host, port))
        for away in installed:
            away.wait_for_reason()
        for away in installed:
            away.come_back()
        back_at = time.monotonic()
        for away in installed:
            away.release.wait_for_replicas(2, READY_SECONDS)
            assert away.release.restarts() == 0, away.mode
        assert time.monotonic() - back_at < scaled(READY_SECONDS) * 1.5
        for away in installed:
            away.release.leader()
            assert not (found := away.release.database.audit()), found
