"""`helm uninstall` leaves nothing in the cluster, and the database as it was billed."""

from __future__ import annotations

import pytest

from tests.e2e.kubectl import Kubectl
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE
from tests.e2e.waiting import eventually
from tests.e2e.work import add_work

pytestmark = pytest.mark.e2e

#: All that a chart may make, or that a controller of Kubernetes makes of it. Not Events, which expire by themselves.
KINDS = (
    "configmaps", "controllerrevisions.apps", "cronjobs.batch", "daemonsets.apps", "deployments.apps",
    "endpointslices.discovery.k8s.io", "horizontalpodautoscalers.autoscaling", "ingresses.networking.k8s.io",
    "jobs.batch", "leases.coordination.k8s.io", "networkpolicies.networking.k8s.io", "persistentvolumeclaims",
    "poddisruptionbudgets.policy", "pods", "replicasets.apps", "rolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io", "secrets", "serviceaccounts", "services", "statefulsets.apps",
)  # fmt: skip


def test_uninstall_leaves_nothing(stage: Stage) -> None:
    with stage.prepared("uninstall") as release:
        kubectl, database = release.kubectl, release.database
        eventually(lambda: kubectl.names(["configmaps"]), "the namespace has its certificates", 60)
        before = kubectl.names(KINDS)
        release.helm.install(RELEASE, release.values)
        release.helm.test(RELEASE)
        add_work(database, "last").wait_until_charged()

        release.helm.uninstall(RELEASE)
        eventually(lambda: nothing_but(kubectl, before), "only what was there before is there", 180)
        assert release.helm.releases() == []
        assert (database.holders(), database.status()["leader"]) == ([], None)
        assert not (found := database.audit()), found


def nothing_but(kubectl: Kubectl, before: set[str]) -> bool:
    """Whether the namespace holds what it held."""
    now = kubectl.names(KINDS)
    assert now == before, f"left behind: {sorted(now - before)}; gone: {sorted(before - now)}"
    return True
