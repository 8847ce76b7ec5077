"""A replica that can't work says why, in its log and to whoever probes it, and goes on by itself when it can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e import manifests
from tests.e2e.installation import DEPLOYMENT, Installation
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE
from tests.e2e.waiting import eventually, throughout

pytestmark = pytest.mark.e2e

#: For a container to be restarted after its back-off, and for the kubelet to bring a Secret.
RECOVERY_SECONDS = 420.0


def says(release: Installation, container: str, *words: str) -> str:
    """Blocks until the container's log has a line with all of these words; the whole log."""

    def look() -> str:
        log = release.kubectl.logs(DEPLOYMENT, "--container", container)
        assert any(all(word in line for word in words) for line in log.splitlines()), log[-2000:]
        return log

    return eventually(look, f"the log of {container} says: {' '.join(words)}", 180)


def stays_unready(release: Installation) -> None:
    """Watches for longer than two readiness probes."""
    throughout(lambda: not any(pod.ready for pod in release.pods()), "no replica is Ready", 12)


def explains(release: Installation, words: str) -> str:
    """Blocks until `/readyz` of every replica says so; what they answered."""

    def look() -> str:
        answers = [release.readiness(pod) for pod in release.pods()]
        assert answers
        assert all(answer.status == 503 and words in answer.body for answer in answers), answers
        return "\n".join(answer.body for answer in answers)

    return eventually(look, f"/readyz says: {words}", 60)


def recovers(release: Installation) -> None:
    """Blocks until all is as it should be, without anyone's help."""
    release.wait_for_replicas(2, RECOVERY_SECONDS)
    release.leader()
    eventually(lambda: release.database.status()["last_completed_at"], "a cycle is completed", 120)
    assert not (found := release.database.audit()), found


@pytest.mark.parametrize(
    ("purpose", "container"),
    [("wrong-password", "migrate"), ("wrong-password-unmigrated", "controller")],
)
def test_wrong_password_is_told(stage: Stage, purpose: str, container: str) -> None:
    with stage.prepared(purpose) as release:
        if not stage.server.asks_for_passwords(release.database):
            pytest.skip(
                "this PostgreSQL trusts whoever comes: E2E_DATABASE_URL names a server that asks for no password"
            )
        if container == "controller":
            assert release.database.command("migrate").status == 0
        in_secret, in_server = "f0rgotten-w0rd", "r1ght-w0rd"
        database = stage.server.change_password(release.database, in_secret)
        release.kubectl.apply(manifests.secret(manifests.SECRET, **{manifests.KEY: database.url.text}))
        stage.server.change_password(database, in_server)
        release.helm.install(RELEASE, release.values, wait=False)

        log = says(release, container, "can't connect to PostgreSQL", "password authentication failed")
        stays_unready(release)
        assert in_secret not in log
        if container == "controller":
            assert in_secret not in explains(release, "password authentication failed")
            assert release.restarts() == 0, "restarting does not help against a wrong password"

        stage.server.change_password(database, in_secret)
        recovers(replace(release, database=database))


def test_missing_key_of_the_secret_is_told(stage: Stage) -> None:
    with stage.prepared("missing-key", secret={"SOMETHING_ELSE": "x"}) as release:
        release.helm.install(RELEASE, release.values, wait=False)
        says(release, "migrate", f"{manifests.SECRET}/{manifests.KEY}", "can't be read")
        stays_unready(release)

        release.kubectl.apply(manifests.secret(manifests.SECRET, **{manifests.KEY: release.database.url.text}))
        recovers(release)


def test_missing_tables_are_told(stage: Stage) -> None:
    with stage.prepared("missing-tables", seeded=False) as release:
        release.helm.install(RELEASE, release.values, wait=False)
        says(release, "controller", "not a ContainerStacks database", "wallets")
        stays_unready(release)
        explains(release, "not a ContainerStacks database")

        release.database.seed()
        assert release.database.command("migrate").status == 0
        recovers(release)
