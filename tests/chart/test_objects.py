"""The rendered objects, checked against the Kubernetes API schemas, the Restricted profile and golden renderings."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from tests.chart.golden import GOLDEN, GOLDEN_NAMES, VALUE_SETS, dump, rendering
from tests.chart.toolbox import (
    CHART,
    MINIMAL,
    NEWEST,
    RELEASE,
    ROOT,
    Manifest,
    Values,
    assert_valid,
    controller,
    environment,
    load,
    one,
    pod_specs,
    render,
    run,
)  # fmt: skip

OLDEST = "1.29"
#: Labels that a selector may use: an upgrade can't change them.
SELECTOR = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}

#: Containers and objects of values/full.yaml that aren't the chart's.
EXTRA_CONTAINERS = {"proxy", "beside"}
EXTRA_OBJECTS = {"as-object", f"{RELEASE}-as-text"}

every_value_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


def test_chart_passes_strict_lint() -> None:
    done = run("helm", "lint", "--strict", "--with-subcharts", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@every_value_set
def test_values_pass_strict_lint(values: Values) -> None:
    done = run("helm", "lint", "--strict", str(CHART), "--values", "-", text=yaml.safe_dump(values))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_rendering_equals_the_golden_one(name: str) -> None:
    golden = (GOLDEN / f"{name}.yaml").read_text("utf-8")
    assert rendering(name) == golden, "if the change is intended, run: python -m tests.chart.golden"


def test_default_values_make_what_the_demo_makes_without_its_database() -> None:
    """With this, the demo's golden rendering covers the default values too."""
    text = dump(render({"demo": {"enabled": True}})).replace(f"{RELEASE}-database", "billing-database")
    demo = [
        o
        for o in load(text)
        if o["kind"] != "Secret" and o["metadata"]["labels"]["app.kubernetes.io/component"] != "demo-database"
    ]
    template = one(demo, "Deployment")["spec"]["template"]
    del template["metadata"]["annotations"]["checksum/database"]
    assert template["spec"]["initContainers"].pop(0)["name"] == "seed"
    doctor = one(demo, "Pod", "test")["spec"]["containers"][0]
    for container in (controller(demo), doctor):
        delay = next(v for v in container["env"] if v["name"] == "BILLING_TAKEOVER_DELAY_SECONDS")
        assert delay["value"] == "0"
        delay["value"] = "300"
    assert demo == render(MINIMAL)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@every_value_set
def test_kubernetes_accepts_every_object(values: Values, version: str) -> None:
    assert_valid(render(values, "--kube-version", f"{version}.0"), version)


def test_annotations_for_artifact_hub_are_true() -> None:
    chart = load((CHART / "Chart.yaml").read_text("utf-8"))[0]
    annotations = chart["annotations"]
    named = {entry["image"] for entry in yaml.safe_load(annotations["artifacthub.io/images"])}
    rendered = {
        container["image"]
        for _, pod in pod_specs(render({"demo": {"enabled": True}}))
        for container in pod["containers"] + pod.get("initContainers", [])
    }
    assert named == rendered
    kinds = {entry["kind"] for entry in yaml.safe_load(annotations["artifacthub.io/changes"])}
    assert kinds <= {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert annotations["artifacthub.io/license"] == "MIT"
    assert "MIT License" in (ROOT / "LICENSE").read_text("utf-8")
    kind, _, text = chart["icon"].partition(";base64,")
    assert kind == "data:image/svg+xml"
    ET.fromstring(base64.b64decode(text))  # noqa: S314 - the chart's own file


def test_older_kubernetes_is_rejected() -> None:
    done = run("helm", "template", "x", str(CHART), "--kube-version", "1.28.9", "--set", "demo.enabled=true")
    assert "requires kubeVersion: >=1.29.0-0" in done.stderr


@every_value_set
def test_every_pod_meets_the_restricted_profile(values: Values) -> None:
    found = list(pod_specs(render(values)))
    assert found
    for source, pod in found:
        assert restricted_violations(pod) == [], source


def restricted_violations(pod: Manifest) -> list[str]:
    """Violations of the Restricted Pod Security Standard, and writable root file systems."""
    volumes = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    security = pod.get("securityContext", {})
    found = [f"pod.{key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [f"volume {v['name']}" for v in pod.get("volumes", []) if not v.keys() - {"name"} <= volumes]
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        effective = {**security, **own}
        checks = {
            "runAsNonRoot": effective.get("runAsNonRoot") is True,
            "runAsUser": effective.get("runAsUser") != 0,
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged", False),
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "seccompProfile": effective.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            "hostPort": not any("hostPort" in p for p in container.get("ports", [])),
            "procMount": own.get("procMount", "Default") == "Default",
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True
            or container["name"] in EXTRA_CONTAINERS,
        }
        found += [f"{container['name']}.{name}" for name, good in checks.items() if not good]
    return found


def test_restricted_check_finds_a_missing_security_context() -> None:
    assert "a.capabilities" in restricted_violations({"containers": [{"name": "a"}]})


@every_value_set
def test_every_container_has_a_memory_limit_and_a_termination_message(values: Values) -> None:
    for source, pod in pod_specs(render(values)):
        for container in pod["containers"] + pod.get("initContainers", []):
            if container["name"] not in EXTRA_CONTAINERS:
                assert container["resources"]["limits"].keys() == {"memory"}, source
                assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", source


@every_value_set
def test_every_object_is_labelled(values: Values) -> None:
    wanted = SELECTOR | {f"app.kubernetes.io/{x}" for x in ("version", "part-of", "managed-by")} | {"helm.sh/chart"}
    for o in render(values):
        if o["metadata"]["name"] not in EXTRA_OBJECTS:
            assert wanted <= o["metadata"]["labels"].keys(), o["metadata"]["name"]


@every_value_set
def test_selectors_use_only_labels_that_never_change(values: Values) -> None:
    selectors = {
        f"{o['kind']}/{o['metadata']['name']}": o["spec"]["selector"]
        for o in render(values)
        if "selector" in o.get("spec", {})
    }
    assert {name.partition("/")[0] for name in selectors} >= {"Deployment", "Service", "PodDisruptionBudget"}
    for name, selector in selectors.items():
        labels = selector if name.startswith("Service/") else selector["matchLabels"]
        assert labels.keys() == SELECTOR, name


@pytest.mark.parametrize("database", [MINIMAL["database"], {"url": "postgresql://u:p@db/app"}], ids=["secret", "url"])
def test_new_chart_version_with_the_same_content_keeps_the_pods(database: Manifest, tmp_path: Path) -> None:
    chart = tmp_path / CHART.name
    shutil.copytree(CHART, chart)
    about = (chart / "Chart.yaml").read_text("utf-8")
    (chart / "Chart.yaml").write_text(re.sub(r"(?m)^version: .*", "version: 99.0.0", about), "utf-8")
    values = {"database": database}
    done = run("helm", "template", RELEASE, str(chart), "--values", "-", text=yaml.safe_dump(values))
    newer = one(load(done.stdout), "Deployment")
    assert newer["metadata"]["labels"]["helm.sh/chart"].endswith("-99.0.0")
    assert newer["spec"]["template"] == one(render(values), "Deployment")["spec"]["template"]


@pytest.mark.parametrize("component", ["test", "migrate", "demo-database"])
def test_selector_of_the_replicas_matches_no_other_pod(component: str) -> None:
    values: Values = (
        {"demo": {"enabled": True}} if component == "demo-database" else {**MINIMAL, "migrations": {"mode": "job"}}
    )
    objects = render(values)
    selector = one(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    kind = {"test": "Pod", "migrate": "Job", "demo-database": "StatefulSet"}[component]
    found = one(objects, kind, component)
    labels = found["spec"].get("template", found)["metadata"]["labels"]
    assert not selector.items() <= labels.items()


@pytest.mark.parametrize("release", ["b", "a-release-with-a-name-as-long-as-helm-allows-it-to-be"])
def test_names_fit_the_limits_for_any_release_name(release: str) -> None:
    values: Values = {"demo": {"enabled": True, "postgresql": {"storageSize": "1Gi"}}}
    for o in [*render(values, release=release), *render({**MINIMAL, "migrations": {"mode": "job"}}, release=release)]:
        # a StatefulSet's name plus a dash and a hash of 10 characters becomes a label
        assert len(o["metadata"]["name"]) <= (52 if o["kind"] == "StatefulSet" else 63)


def test_two_releases_share_no_object_name() -> None:
    first, second = ({(o["kind"], o["metadata"]["name"]) for o in render(MINIMAL, release=r)} for r in ("one", "two"))
    assert not first & second


@pytest.mark.parametrize("replicas", [None, "auto"])
def test_replicas_of_an_autoscaler_omit_the_field(replicas: str | None) -> None:
    rules = {"metrics": {"prometheusRule": {"enabled": True}}}
    objects = render({**MINIMAL, **rules, "replicas": replicas})
    assert "replicas" not in one(objects, "Deployment")["spec"]
    assert "PodDisruptionBudget" in {o["kind"] for o in objects}
    assert "BillingNoStandby" not in str(objects)
    assert one(render({**MINIMAL, "replicas": 0}), "Deployment")["spec"]["replicas"] == 0


@pytest.mark.parametrize(("replicas", "made"), [(0, False), (1, False), (2, True)])
def test_disruption_budget_exists_for_more_than_one_replica(replicas: int, *, made: bool) -> None:
    objects = render({**MINIMAL, "replicas": replicas})
    assert ("PodDisruptionBudget" in {o["kind"] for o in objects}) is made


def test_rollout_never_has_fewer_ready_pods_than_replicas() -> None:
    strategy = one(render(MINIMAL), "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_replica_starts_with_the_label_of_a_standby() -> None:
    pod = one(render({**MINIMAL, "podLabels": {"billing.containerstacks.io/role": "leader"}}), "Deployment")
    assert pod["spec"]["template"]["metadata"]["labels"]["billing.containerstacks.io/role"] == "standby"


def test_probes_check_health_and_not_leadership() -> None:
    container = controller(render(MINIMAL))
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_autoscaler_may_evict_every_empty_dir() -> None:
    template = one(render(MINIMAL), "Deployment")["spec"]["template"]
    evictable = template["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"]
    assert evictable.split(",") == [v["name"] for v in template["spec"]["volumes"] if "emptyDir" in v]


def test_spread_constraint_without_a_selector_gets_the_releases() -> None:
    own = {
        "maxSkew": 1,
        "topologyKey": "a",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"a": "b"}},
    }
    bare = {"maxSkew": 1, "topologyKey": "b", "whenUnsatisfiable": "DoNotSchedule"}
    deployment = one(render({**MINIMAL, "topologySpreadConstraints": [own, bare]}), "Deployment")
    first, second = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert first == own
    assert second["labelSelector"] == deployment["spec"]["selector"]
    assert second["matchLabelKeys"] == ["pod-template-hash"]


def test_image_name_joins_registry_repository_and_tag_or_digest() -> None:
    def image(**given: str) -> str:
        made: str = controller(render({**MINIMAL, "image": given}))["image"]
        return made

    digest = "sha256:" + "0" * 64
    assert image() == "containerstacks-billing:0.2.0"
    assert image(registry="r.example:5000", tag="9") == "r.example:5000/containerstacks-billing:9"
    assert image(repository="a/b", tag="9", digest=digest) == f"a/b@{digest}"


@pytest.mark.parametrize(("host", "address"), [("", ":9090"), ("[::1]", "[::1]:9090"), ("127.0.0.1", "127.0.0.1:9090")])
def test_replica_listens_on_every_address_family_unless_told_otherwise(host: str, address: str) -> None:
    container = controller(render({**MINIMAL, "http": {"host": host, "port": 9090}}))
    assert environment(container)["BILLING_HTTP_ADDRESS"] == address
    assert container["ports"] == [{"name": "http", "containerPort": 9090, "protocol": "TCP"}]


def test_operators_pages_are_on_loopback_and_nothing_exposes_their_port() -> None:
    objects = render({**MINIMAL, "networkPolicy": {"enabled": True}})
    assert environment(controller(objects))["BILLING_PAGE_ADDRESS"] == "127.0.0.1:8081"
    elsewhere = [o for o in objects if o["kind"] in {"Service", "NetworkPolicy"}]
    assert len(elsewhere) == 2
    assert "8081" not in str([*elsewhere, controller(objects)["ports"]])


def test_null_removes_a_default() -> None:
    values: Values = {
        **MINIMAL, "resources": None, "podSecurityContext": None, "securityContext": None, "affinity": None,
        "topologySpreadConstraints": None, "migrations": {"mode": "job"},
    }  # fmt: skip
    objects = render(values)
    assert_valid(objects)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert not {"topologySpreadConstraints", "affinity"} & pod.keys()
    assert not {"securityContext", "resources"} & controller(objects).keys()


def test_helm_test_checks_this_release_without_cluster_dns() -> None:
    hook = one(render(MINIMAL), "Pod", "test")
    pod = hook["spec"]
    annotations = hook["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation", "Helm 3 reads the logs at the end"
    assert pod["restartPolicy"] == "Never"
    assert pod["activeDeadlineSeconds"]
    assert pod["enableServiceLinks"]
    by_name = {c["name"]: c for c in pod["containers"]}
    assert by_name["doctor"]["args"] == ["doctor"]
    replica = next(c for c in one(render(MINIMAL), "Deployment")["spec"]["template"]["spec"]["containers"])
    assert by_name["doctor"]["env"] == replica["env"], "the doctor judges with the replicas' settings"
    assert '"CONTAINERSTACKS_BILLING_SERVICE_HOST"' in by_name["service"]["args"][0]
    compile(by_name["service"]["args"][0], "helm test", "exec")


def test_extra_objects_may_be_templates() -> None:
    text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-x', labels: {}}}"
    assert "containerstacks-billing-x" in {o["metadata"]["name"] for o in render({**MINIMAL, "extraObjects": [text]})}
