"""After the database password changes, the replicas read the new one from their Secret's file without a restart."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from tests.e2e import manifests
from tests.e2e.installation import Installation
from tests.e2e.stage import Stage
from tests.e2e.waiting import eventually
from tests.e2e.work import add_work
from tests.e2e.workbench import SqlError

pytestmark = pytest.mark.e2e

FILE = f"/etc/containerstacks-billing/secrets/{manifests.SECRET}/{manifests.KEY}"
DIGEST = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"


def test_rotated_password_needs_no_restart(stage: Stage) -> None:
    with stage.installed("rotation") as release:
        if not stage.server.asks_for_passwords(release.database):
            pytest.skip("the server of E2E_DATABASE_URL accepts any password")
        before, leader = release.wait_for_replicas(2), release.leader()
        old = release.database
        new = stage.server.change_password(old, "rotated-w0rd")

        release.kubectl.apply(manifests.secret(manifests.SECRET, **{manifests.KEY: new.url.text}))
        digest = hashlib.sha256(new.url.text.encode()).hexdigest()
        eventually(lambda: every_pod_has(release, digest), "the kubelet has updated the Secret in every pod", 240)
        with pytest.raises(SqlError):
            old.sql("select 1")
        stage.server.end_sessions(new)

        rotated = replace(release, database=new)
        rotated.leader(after_term=leader.term, within_seconds=240)
        add_work(new, "rotated").wait_until_charged(300)
        after = rotated.wait_for_replicas(2)
        assert [(pod.uid, pod.restarts) for pod in after] == [(pod.uid, pod.restarts) for pod in before]
        assert not (found := new.audit()), found


def every_pod_has(release: Installation, digest: str) -> bool:
    """True if the Secret's file in every pod has this digest. The file itself never leaves the pod."""
    arguments = ("--container", "controller", "--", "python3", "-c", DIGEST, FILE)
    return all(release.kubectl.run("exec", pod.name, *arguments).strip() == digest for pod in release.pods())
