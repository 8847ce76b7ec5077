"""`demo.enabled` installs a PostgreSQL server and bills its sample data."""

from __future__ import annotations

import json
import os

import pytest

from tests.e2e.installation import DEPLOYMENT, LEADER, REPLICAS
from tests.e2e.manifests import postgres_uid
from tests.e2e.stage import Stage
from tests.e2e.values import RELEASE, demo_values
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.e2e


def test_demo_bills_its_sample_data(stage: Stage) -> None:
    cluster = stage.cluster
    if os.environ.get("E2E_DATABASE_URL") and not cluster.postgres_image_named:
        pytest.skip("E2E_DATABASE_URL names an external server, but E2E_POSTGRES_IMAGE names no image for the demo")
    if not stage.bench.resolves("kubernetes.default.svc"):
        pytest.skip("the cluster has no DNS, which the demo's replicas need to find their database")
    uid = int(os.environ.get("E2E_POSTGRES_UID") or postgres_uid(cluster.postgres_image))
    with stage.namespace("demo") as kubectl:
        helm = cluster.helm(kubectl.namespace)
        helm.install(RELEASE, demo_values(cluster.image, cluster.postgres_image, uid))

        def command(name: str) -> object:
            return json.loads(kubectl.run("exec", DEPLOYMENT, "--", "containerstacks-billing", name, "--json"))

        def billed() -> bool:
            status = command("status")
            assert isinstance(status, dict)
            last = status["last_run"] or {}
            return str(last.get("outcome")).startswith("completed") and last["instances"] > 0

        eventually(billed, "the demo has billed its sample data", 120)
        assert len([pod for pod in kubectl.pods(f"{REPLICAS},{LEADER}") if pod.ready]) == 1
        kubectl.run("exec", DEPLOYMENT, "--", "containerstacks-billing", "audit")
        helm.uninstall(RELEASE)
