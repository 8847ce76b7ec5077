"""A replica that can't work gives the reason in its log and on `/readyz`, and recovers without intervention."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e import manifests
from tests.e2e.installation import DEPLOYMENT, Installation
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE
from tests.e2e.waiting import eventually, throughout

pytestmark = pytest.mark.e2e

#: Covers the kubelet's update of a Secret, and the 30 seconds between two attempts at a refused login.
RECOVERY_SECONDS = 240.0


def wait_for_log(release: Installation, container: str, *words: str) -> str:
    """Waits until a line in the container's log contains all of these words, and returns the whole log."""

    def check() -> str:
        log = release.kubectl.logs(DEPLOYMENT, "--container", container)
        assert any(all(word in line for word in words) for line in log.splitlines()), log[-2000:]
        return log

    return eventually(check, f"a log line of {container} contains: {' '.join(words)}", 180)


def check_never_ready(release: Installation) -> None:
    """Checks for longer than two readiness probes that no replica is Ready."""
    throughout(lambda: not any(pod.ready for pod in release.pods()), "no replica is Ready", 12)


def wait_for_reason(release: Installation, words: str) -> str:
    """Waits until `/readyz` of every replica gives this reason, and returns the bodies."""

    def check() -> str:
        responses = [release.readiness(pod) for pod in release.pods()]
        assert responses
        assert all(response.status == 503 and words in response.body for response in responses), responses
        return "\n".join(response.body for response in responses)

    return eventually(check, f"/readyz gives the reason: {words}", 60)


def check_recovery(release: Installation) -> None:
    """Waits until the replicas are Ready, one leads and a cycle completes, without intervention."""
    release.wait_for_replicas(2, RECOVERY_SECONDS)
    release.leader()
    eventually(lambda: release.database.status()["last_completed_at"], "a cycle completes", 120)
    assert not (found := release.database.audit()), found


@pytest.mark.parametrize(
    ("purpose", "container"),
    [("wrong-password", "migrate"), ("wrong-password-unmigrated", "controller")],
)
def test_wrong_password_is_reported_without_showing_it(stage: Stage, purpose: str, container: str) -> None:
    with stage.prepared(purpose) as release:
        if not stage.server.asks_for_passwords(release.database):
            pytest.skip("the server of E2E_DATABASE_URL accepts any password")
        if container == "controller":
            assert release.database.command("migrate").status == 0
        in_secret, in_server = "f0rgotten-w0rd", "r1ght-w0rd"
        database = stage.server.change_password(release.database, in_secret)
        release.kubectl.apply(manifests.secret(manifests.SECRET, **{manifests.KEY: database.url.text}))
        stage.server.change_password(database, in_server)
        release.helm.install(RELEASE, release.values, wait=False)

        log = wait_for_log(release, container, "can't connect to PostgreSQL", "password authentication failed")
        check_never_ready(release)
        assert in_secret not in log
        if container == "controller":
            assert in_secret not in wait_for_reason(release, "password authentication failed")
        assert release.restarts() == 0, "a restart doesn't fix a wrong password"

        stage.server.change_password(database, in_secret)
        check_recovery(replace(release, database=database))


def test_missing_key_of_the_secret_is_reported(stage: Stage) -> None:
    with stage.prepared("missing-key", secret={"SOMETHING_ELSE": "x"}) as release:
        release.helm.install(RELEASE, release.values, wait=False)
        wait_for_log(release, "migrate", f"{manifests.SECRET}/{manifests.KEY}", "can't be read")
        check_never_ready(release)
        assert release.restarts() == 0, "a restart doesn't add a key"

        release.kubectl.apply(manifests.secret(manifests.SECRET, **{manifests.KEY: release.database.url.text}))
        check_recovery(release)


def test_missing_tables_are_reported(stage: Stage) -> None:
    with stage.prepared("missing-tables", seeded=False) as release:
        release.helm.install(RELEASE, release.values, wait=False)
        wait_for_log(release, "controller", "not a ContainerStacks database", "wallets")
        check_never_ready(release)
        wait_for_reason(release, "not a ContainerStacks database")

        release.database.seed()
        assert release.database.command("migrate").status == 0
        check_recovery(release)
