"""`kubectl apply --kustomize` installs the controller without Helm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.overlay import write_overlay
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE
from tests.e2e.work import add_work

pytestmark = pytest.mark.e2e


def test_installation_from_the_kustomize_base_bills(stage: Stage, tmp_path: Path) -> None:
    with stage.prepared("kustomize") as release:
        kubectl = release.kubectl
        overlay = str(write_overlay(tmp_path, kubectl.namespace, stage.cluster.image))
        kubectl.run("apply", "--kustomize", overlay)
        kubectl.rolled_out(RELEASE)
        release.wait_for_replicas(2)
        release.leader()
        add_work(release.database, "plain").wait_until_charged()
        assert not (found := release.database.audit()), found
        kubectl.run("delete", "--kustomize", overlay, "--timeout", "180s", seconds=240)
