"""`helm uninstall` leaves nothing in the cluster and doesn't touch the database."""

from __future__ import annotations

import pytest

from tests.e2e.kubectl import Kubectl
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE
from tests.e2e.waiting import eventually
from tests.e2e.work import add_work

pytestmark = pytest.mark.e2e

#: All kinds that a chart, or a Kubernetes controller on its behalf, may create. Events are missing because they expire.
KINDS = (
    "configmaps", "controllerrevisions.apps", "cronjobs.batch", "daemonsets.apps", "deployments.apps",
    "endpointslices.discovery.k8s.io", "horizontalpodautoscalers.autoscaling", "ingresses.networking.k8s.io",
    "jobs.batch", "leases.coordination.k8s.io", "networkpolicies.networking.k8s.io", "persistentvolumeclaims",
    "poddisruptionbudgets.policy", "pods", "replicasets.apps", "rolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io", "secrets", "serviceaccounts", "services", "statefulsets.apps",
)  # fmt: skip


def test_uninstall_leaves_nothing_in_the_namespace(stage: Stage) -> None:
    with stage.prepared("uninstall") as release:
        kubectl, database = release.kubectl, release.database
        eventually(lambda: kubectl.names(["configmaps"]), "the namespace has its CA certificates", 60)
        before = kubectl.names(KINDS)
        release.helm.install(RELEASE, release.values)
        release.helm.test(RELEASE)
        kubectl.run("delete", "pod", f"{RELEASE}-test")  # Helm leaves it, so that its logs can be read
        add_work(database, "last").wait_until_charged()

        release.helm.uninstall(RELEASE)
        eventually(lambda: holds_only(kubectl, before), "only the earlier objects are left", 180)
        assert release.helm.releases() == []
        assert (database.holders(), database.status()["leader"]) == ([], None)
        assert not (found := database.audit()), found


def holds_only(kubectl: Kubectl, before: set[str]) -> bool:
    """Checks that the namespace holds the same objects as before."""
    now = kubectl.names(KINDS)
    assert now == before, f"left behind: {sorted(now - before)}; missing: {sorted(before - now)}"
    return True
