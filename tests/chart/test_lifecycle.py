"""What the chart tells the pods about drain, migrations, the database Secret and permissions."""

from __future__ import annotations

import base64

import pytest

from tests.chart.toolbox import (
    MINIMAL,
    RELEASE,
    Manifest,
    Values,
    controller,
    environment,
    one,
    pod_specs,
    render,
    template_again,
)  # fmt: skip

URL = "postgresql://billing:s%40fe@db.example:5432/containerstacks"


def pod_of(values: Values) -> Manifest:
    spec: Manifest = one(render(values), "Deployment")["spec"]["template"]["spec"]
    return spec


def init_containers(values: Values) -> list[str]:
    return [c["name"] for c in pod_of(values).get("initContainers", [])]


@pytest.mark.parametrize("seconds", [1, 270, 570])
def test_hook_grace_period_and_rollout_deadline_follow_the_drain_timeout(seconds: int) -> None:
    objects = render({**MINIMAL, "drain": {"timeoutSeconds": seconds}})
    spec = one(objects, "Deployment")["spec"]
    hook = controller(objects)["lifecycle"]["preStop"]
    assert hook == {"exec": {"command": ["containerstacks-billing", "drain", "--timeout", str(seconds)]}}
    assert environment(controller(objects))["BILLING_DRAIN_TIMEOUT_SECONDS"] == str(seconds)
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == seconds + 30
    assert spec["progressDeadlineSeconds"] > seconds + 30


def test_longest_drain_fits_the_600_seconds_of_cluster_autoscalers() -> None:
    assert pod_of({**MINIMAL, "drain": {"timeoutSeconds": 570}})["terminationGracePeriodSeconds"] == 600


def test_stuck_replica_is_killed_after_15_seconds() -> None:
    assert controller(render(MINIMAL))["livenessProbe"]["terminationGracePeriodSeconds"] == 15


def test_drain_socket_is_in_an_empty_dir() -> None:
    container, pod = controller(render(MINIMAL)), pod_of(MINIMAL)
    folder = environment(container)["BILLING_CONTROL_SOCKET"].rpartition("/")[0]
    mount = next(m for m in container["volumeMounts"] if m["mountPath"] == folder)
    assert "emptyDir" in next(v for v in pod["volumes"] if v["name"] == mount["name"])


def test_each_replica_migrates_before_it_starts() -> None:
    assert init_containers(MINIMAL) == ["migrate"]
    assert pod_of(MINIMAL)["initContainers"][0]["args"] == ["migrate", "--wait", "600"]


def test_proxy_starts_before_the_migrations() -> None:
    proxy = {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"}
    assert init_containers({**MINIMAL, "extraInitContainers": [proxy]}) == ["proxy", "migrate"]


def test_migrations_run_in_a_job_or_not_at_all_on_request() -> None:
    job: Values = {**MINIMAL, "migrations": {"mode": "job"}}
    assert init_containers(job) == []
    assert one(render(job), "Job", "migrate")["spec"]["template"]["spec"]["containers"][0]["args"] == [
        "migrate", "--wait", "600",
    ]  # fmt: skip
    nothing: Values = {**MINIMAL, "migrations": {"mode": "none"}}
    assert init_containers(nothing) == []
    assert "Job" not in {o["kind"] for o in render(nothing)}


def test_migration_job_is_not_a_hook_and_a_new_version_gets_a_new_name() -> None:
    """A hook would run before the chart's Secret exists, and a Job is immutable."""

    def job(tag: str) -> Manifest:
        return one(
            render({"database": {"url": URL}, "migrations": {"mode": "job"}, "image": {"tag": tag}}), "Job", "migrate"
        )

    assert "annotations" not in job("1")["metadata"]
    assert job("1")["metadata"]["name"] != job("2")["metadata"]["name"]


@pytest.mark.parametrize("mode", ["init", "job"])
def test_owner_of_the_schema_is_mounted_only_into_the_migration(mode: str) -> None:
    objects = render({**MINIMAL, "migrations": {"mode": mode, "existingSecret": "owner", "existingSecretKey": "url"}})
    pods = dict(pod_specs(objects))
    name = next(
        n for n in pods if n.startswith("Deployment/" if mode == "init" else "Job/containerstacks-billing-migrate")
    )
    migrate = next(c for c in pods[name].get("initContainers", []) + pods[name]["containers"] if c["name"] == "migrate")
    assert environment(migrate)["DATABASE_URL_FILE"] == "/etc/containerstacks-billing/secrets/owner/url"
    assert "owner" not in str(controller(objects))
    if mode == "job":
        assert "owner" not in str(pods["Deployment/containerstacks-billing"])


def test_existing_secret_is_mounted_as_files_that_follow_its_rotation() -> None:
    values: Values = {
        "database": {"existingSecret": "own", "existingSecretKey": "url", "existingSecretDirectKey": "direct"}
    }
    container, pod = controller(render(values)), pod_of(values)
    assert environment(container)["DATABASE_URL_FILE"] == "/etc/containerstacks-billing/secrets/own/url"
    assert environment(container)["DATABASE_DIRECT_URL_FILE"] == "/etc/containerstacks-billing/secrets/own/direct"
    assert not [m for m in container["volumeMounts"] if "subPath" in m], "the kubelet doesn't update a subPath mount"
    secret = next(v["secret"] for v in pod["volumes"] if v["name"] == "database")
    assert sorted(item["key"] for item in secret["items"]) == ["direct", "url"]


def test_pod_starts_without_its_secret_to_report_it() -> None:
    volumes = {v["name"]: v for v in pod_of(MINIMAL)["volumes"]}
    assert volumes["database"]["secret"]["optional"]


def test_existing_secret_is_neither_created_nor_hashed() -> None:
    objects = render(MINIMAL)
    assert "Secret" not in {o["kind"] for o in objects}
    assert "checksum/database" not in one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]


def test_url_creates_a_secret_and_a_new_url_replaces_the_pods() -> None:
    def made(url: str) -> tuple[Manifest, str]:
        objects = render({"database": {"url": url, "directUrl": f"{url}?direct"}})
        annotations = one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]
        assert url not in str([o for o in objects if o["kind"] != "Secret"])
        return one(objects, "Secret"), annotations["checksum/database"]

    secret, checksum = made(URL)
    assert {k: base64.b64decode(v).decode() for k, v in secret["data"].items()} == {
        "DATABASE_URL": URL,
        "DATABASE_DIRECT_URL": f"{URL}?direct",
    }
    assert made(URL + "2")[1] != checksum


def test_rendering_is_deterministic() -> None:
    """Argo CD renders continuously, so nothing may be random or looked up."""
    values: Values = {"demo": {"enabled": True}}
    first, second = template_again(values), template_again(values)
    assert (first.returncode, first.stdout) == (0, second.stdout)


def test_role_grants_only_what_the_controller_uses() -> None:
    objects = render(MINIMAL)
    assert one(objects, "Role")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": [RELEASE], "verbs": ["get"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    ]  # fmt: skip
    assert not {"ClusterRole", "ClusterRoleBinding"} & {o["kind"] for o in objects}


def test_one_value_removes_all_permissions() -> None:
    objects = render({**MINIMAL, "kubernetes": {"enabled": False}})
    assert not {"Role", "RoleBinding"} & {o["kind"] for o in objects}
    assert environment(controller(objects))["BILLING_KUBERNETES"] == "off"
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_only_replicas_mount_an_api_token() -> None:
    objects = render({**MINIMAL, "migrations": {"mode": "job"}})
    assert {name: pod["automountServiceAccountToken"] for name, pod in pod_specs(objects)} == {
        "Deployment/containerstacks-billing": True,
        "Pod/containerstacks-billing-test": False,
        next(n for n, _ in pod_specs(objects) if "migrate" in n): False,
    }
    assert one(objects, "ServiceAccount")["automountServiceAccountToken"] is False


def test_downward_api_identifies_the_replica() -> None:
    fields = {
        v["name"]: v["valueFrom"]["fieldRef"]["fieldPath"]
        for v in controller(render(MINIMAL))["env"]
        if "valueFrom" in v
    }
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "NODE_NAME": "spec.nodeName",
    }


def egress_ports(values: Values) -> list[int]:
    policy = one(render(values), "NetworkPolicy")["spec"]
    return sorted(p["port"] for rule in policy["egress"] for p in rule["ports"])


def test_network_policy_allows_only_database_dns_api_server_and_helm_test() -> None:
    values: Values = {**MINIMAL, "networkPolicy": {"enabled": True, "databasePorts": [6432]}}
    assert egress_ports(values) == [53, 53, 443, 5353, 5353, 6432, 6443, 8080]
    assert egress_ports({**values, "kubernetes": {"enabled": False}}) == [53, 53, 5353, 5353, 6432, 8080]


def test_helm_test_passes_a_network_policy_with_named_peers() -> None:
    peers = [{"podSelector": {"matchLabels": {"a": "b"}}}]
    policy = one(render({**MINIMAL, "networkPolicy": {"enabled": True, "ingressFrom": peers}}), "NetworkPolicy")
    allowed = policy["spec"]["ingress"][0]["from"]
    assert allowed[0] == peers[0]
    assert allowed[1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"


def test_demo_is_off_by_default_and_carries_a_warning() -> None:
    assert "StatefulSet" not in {o["kind"] for o in render(MINIMAL)}
    demo = one(render({"demo": {"enabled": True}}), "StatefulSet", "demo-database")
    assert "not for production" in demo["metadata"]["annotations"]["billing.containerstacks.io/warning"]


def test_demo_seeds_then_migrates_then_bills_without_a_delay() -> None:
    values: Values = {"demo": {"enabled": True, "postgresql": {"password": "a b@c"}}}
    objects = render(values)
    assert init_containers(values) == ["seed", "migrate"]
    assert pod_of(values)["initContainers"][0]["args"] == ["demo", "seed", "--wait", "600"]
    assert environment(controller(objects))["BILLING_TAKEOVER_DELAY_SECONDS"] == "0"
    url = base64.b64decode(one(objects, "Secret")["data"]["DATABASE_URL"]).decode()
    host = one(objects, "Service", "demo-database")["metadata"]["name"]
    assert url == f"postgresql://billing:a%20b%40c@{host}:5432/containerstacks"


def test_volume_of_the_demo_is_deleted_with_it() -> None:
    values: Values = {"demo": {"enabled": True, "postgresql": {"storageSize": "2Gi"}}}
    spec = one(render(values), "StatefulSet", "demo-database")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    assert "data" not in {v["name"] for v in spec["template"]["spec"]["volumes"]}
