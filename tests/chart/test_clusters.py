"""The chart fits clusters that differ in names, registries, users, networks, credentials and versions of Helm."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from tests.chart.golden import VALUE_SETS
from tests.chart.test_objects import restricted_violations
from tests.chart.toolbox import (
    CHART,
    MINIMAL,
    NAMESPACE,
    RELEASE,
    Manifest,
    ToolMissingError,
    Values,
    assert_valid,
    controller,
    environment,
    load,
    one,
    pod_specs,
    refusal,
    render,
    run,
    tool,
)

#: Every optional object that the chart makes without a demo.
EVERYTHING: Values = {
    "database": {"url": "postgresql://u:p@db/app"},
    "migrations": {"mode": "job"},
    "networkPolicy": {"enabled": True},
    "metrics": {
        "serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True},
    },
}  # fmt: skip
URL = "postgresql://db.example:5432/containerstacks"


def replica(values: Values, **more: str) -> Manifest:
    spec: Manifest = one(render(values, **more), "Deployment")["spec"]["template"]["spec"]
    return spec


# --- namespaces, names, labels


@pytest.mark.parametrize("values", [EVERYTHING, {"demo": {"enabled": True}}], ids=["everything", "demo"])
def test_every_object_carries_its_namespace(values: Values) -> None:
    """Without one, `helm template … | kubectl --namespace other apply` would bind the Role to an account elsewhere."""
    for overridden, expected in ((values, NAMESPACE), ({**values, "namespaceOverride": "other"}, "other")):
        objects = render(overridden)
        assert {o["metadata"]["namespace"] for o in objects} == {expected}
        assert {s["namespace"] for s in one(objects, "RoleBinding")["subjects"]} == {expected}
    rules = render({**EVERYTHING, "namespaceOverride": "other"})
    assert 'namespace="billing"' not in str(rules)


@pytest.mark.parametrize(
    "release", ["7up", "1.2", "a.b.c", "2024-11.billing", "x" * 53, "9" * 53, f"{'a' * 43}.b", f"{'a-' * 22}b"]
)
def test_any_release_name_gives_valid_names(release: str) -> None:
    for values in (EVERYTHING, {"demo": {"enabled": True, "postgresql": {"storageSize": "1Gi"}}}):
        objects = render(values, release=release)
        assert_valid(objects)
        for o in objects:
            name = o["metadata"]["name"]
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
            assert len(name) <= (52 if o["kind"] == "StatefulSet" else 63)
            for value in o["metadata"]["labels"].values():
                assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value), value
    pod = one(render(MINIMAL, release=release), "Pod", "test")
    service = one(render(MINIMAL, release=release), "Service")["metadata"]["name"]
    assert f'"{service.upper().replace("-", "_")}_SERVICE_HOST"' in pod["spec"]["containers"][1]["args"][0]


@pytest.mark.parametrize(
    ("tag", "label"),
    [
        ("_build1", "build1"),
        ("release-", "release"),
        (f"{'a' * 62}-b", "a" * 62),
        ("-", ""),
        ("1.2.3", "1.2.3"),
        ("v1__", "v1"),
    ],
)
def test_tag_that_is_not_a_label_still_makes_one(tag: str, label: str) -> None:
    objects = render({**MINIMAL, "image": {"tag": tag}})
    assert {o["metadata"]["labels"]["app.kubernetes.io/version"] for o in objects} == {label}
    assert controller(objects)["image"].endswith(f":{tag}")


def test_common_labels_and_annotations_reach_every_object_and_pod() -> None:
    common = {"commonLabels": {"team": "payments"}, "commonAnnotations": {"example.com/owner": "payments"}}
    for values in (EVERYTHING, {"demo": {"enabled": True}}):
        for o in render({**values, **common}):
            for metadata in (o["metadata"], o.get("spec", {}).get("template", o)["metadata"]):
                assert metadata["labels"]["team"] == "payments", o["kind"]
                assert metadata["annotations"]["example.com/owner"] == "payments", o["kind"]


def test_special_annotation_wins_over_the_common_one() -> None:
    values = {
        **MINIMAL, "commonAnnotations": {"a": "common"}, "deploymentAnnotations": {"a": "own"},
        "service": {"annotations": {"a": "own"}}, "podAnnotations": {"a": "own"},
    }  # fmt: skip
    objects = render(values)
    for o in (one(objects, "Deployment"), one(objects, "Service"), one(objects, "Deployment")["spec"]["template"]):
        assert o["metadata"]["annotations"]["a"] == "own"


def test_pods_of_jobs_can_be_kept_out_of_a_mesh() -> None:
    """A sidecar would keep them from ending."""
    kept_out = {"sidecar.istio.io/inject": "false"}
    values = {**EVERYTHING, "jobPodLabels": kept_out, "jobPodAnnotations": kept_out}
    objects = render(values)
    for metadata in (
        one(objects, "Job", "migrate")["spec"]["template"]["metadata"],
        one(objects, "Pod", "test")["metadata"],
    ):
        assert kept_out.items() <= metadata["labels"].items()
        assert kept_out.items() <= metadata["annotations"].items()
    assert one(objects, "Pod", "test")["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "sidecar.istio.io/inject" not in str(one(objects, "Deployment"))


# --- images


def test_global_registry_and_pull_secrets_are_honoured() -> None:
    values = {
        "demo": {"enabled": True}, "image": {"registry": "own.example"}, "imagePullSecrets": [{"name": "own"}],
        "global": {"imageRegistry": "mirror.example", "imagePullSecrets": ["as-text", {"name": "as-object"}, "own"]},
    }  # fmt: skip
    for source, pod in pod_specs(render(values)):
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["image"].startswith("mirror.example/"), source
        assert pod["imagePullSecrets"] == [{"name": "own"}, {"name": "as-text"}, {"name": "as-object"}], source


@pytest.mark.parametrize("image", ["quay.io/postgres:17", "localhost/postgres:17", "registry:5000/postgres"])
def test_image_with_its_own_registry_keeps_it(image: str) -> None:
    values = {"demo": {"enabled": True, "postgresql": {"image": image}}, "global": {"imageRegistry": "mirror.example"}}
    (container,) = one(render(values), "StatefulSet", "demo-database")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image


# --- security profiles


@pytest.mark.parametrize("values", [EVERYTHING, {"demo": {"enabled": True}}], ids=["everything", "demo"])
def test_openshift_assigns_every_id(values: Values) -> None:
    for source, pod in pod_specs(render({**values, "securityProfile": "openshift"})):
        assert not re.search(r"runAsUser|runAsGroup|fsGroup'", str(pod)), source
        assert restricted_violations(pod) == [], source


def test_security_context_is_merged_over_the_profile() -> None:
    own = {"runAsUser": 1000740000, "supplementalGroups": [4000]}
    context = replica({**MINIMAL, "podSecurityContext": own})["securityContext"]
    assert own.items() <= context.items()
    assert context["runAsNonRoot"]
    openshift = replica({**MINIMAL, "securityProfile": "openshift", "podSecurityContext": own})["securityContext"]
    assert openshift["supplementalGroups"] == [4000]
    assert "runAsUser" not in openshift


def test_parent_chart_needs_no_null(tmp_path: Path) -> None:
    """Helm drops a null in a parent's values, or passes it on, depending on its version."""
    shutil.copytree(CHART, tmp_path / "charts" / CHART.name)
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: parent, version: 1.0.0}", "utf-8")
    parent = {
        "global": {"imageRegistry": "mirror.example", "anything": {"else": 1}},
        CHART.name: {
            **MINIMAL,
            "enabled": True,
            "securityProfile": "openshift",
            "podSecurityContext": {"runAsUser": None},
            "replicas": "auto",
        },
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(parent), "utf-8")
    done = run("helm", "template", "x", str(tmp_path))
    assert done.returncode == 0, done.stderr
    spec = one(load(done.stdout), "Deployment")["spec"]
    assert "replicas" not in spec
    pod = spec["template"]["spec"]
    assert pod["securityContext"].keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}
    assert pod["containers"][0]["image"].startswith("mirror.example/")


# --- credentials

CREDENTIALS: Values = {
    "database": {
        "url": URL, "directUrl": "postgresql://direct.example/containerstacks",
        "existingSecret": "billing.db.credentials", "usernameKey": "username", "passwordKey": "password",
    }
}  # fmt: skip
FILES: Values = {
    "database": {"existingFile": "/vault/secrets/url", "existingDirectFile": "/vault/secrets/direct"},
    "extraVolumes": [{"name": "vault", "emptyDir": {"medium": "Memory"}}],
    "extraVolumeMounts": [{"name": "vault", "mountPath": "/vault/secrets"}],
}


def test_credentials_in_a_secret_complete_a_url_without_them() -> None:
    objects = render(CREDENTIALS)
    assert "Secret" not in {o["kind"] for o in objects}
    settings = environment(controller(objects))
    folder = "/etc/containerstacks-billing/secrets/billing.db.credentials"
    assert {name: value for name, value in settings.items() if name.startswith(("DATABASE", "PG"))} == {
        "DATABASE_URL": URL,
        "DATABASE_DIRECT_URL": "postgresql://direct.example/containerstacks",
        "DATABASE_USERNAME_FILE": f"{folder}/username",
        "DATABASE_PASSWORD_FILE": f"{folder}/password",
    }
    volume = next(v for v in replica(CREDENTIALS)["volumes"] if v["name"] == "database")
    assert sorted(item["key"] for item in volume["secret"]["items"]) == ["password", "username"]


def test_file_of_another_tool_needs_no_secret() -> None:
    pod = replica(FILES)
    assert [v["name"] for v in pod["volumes"]] == ["run", "tmp", "vault"]
    for container in (*pod["containers"], *pod["initContainers"]):
        settings = environment(container)
        assert settings["DATABASE_URL_FILE"] == "/vault/secrets/url"
        assert settings["DATABASE_DIRECT_URL_FILE"] == "/vault/secrets/direct"
        assert "/vault/secrets" in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize(
    ("migrations", "variables"),
    [
        ({"existingFile": "/vault/secrets/owner"}, {"DATABASE_URL_FILE": "/vault/secrets/owner"}),
        (
            {"existingSecret": "owner", "usernameKey": "user", "passwordKey": "word"},
            {
                "DATABASE_URL": "postgresql://direct.example/containerstacks",
                "DATABASE_USERNAME_FILE": "/etc/containerstacks-billing/secrets/owner/user",
                "DATABASE_PASSWORD_FILE": "/etc/containerstacks-billing/secrets/owner/word",
            },
        ),
    ],
    ids=["file", "credentials"],
)
@pytest.mark.parametrize("mode", ["init", "job"])
def test_owner_of_the_schema_stays_in_the_migration(mode: str, migrations: Manifest, variables: dict[str, str]) -> None:
    objects = render({**CREDENTIALS, "migrations": {"mode": mode, **migrations}})
    pods = dict(pod_specs(objects))
    pod = pods[f"Deployment/{RELEASE}"] if mode == "init" else pods[next(name for name in pods if "migrate" in name)]
    migrate = next(c for c in pod.get("initContainers", []) + pod["containers"] if c["name"] == "migrate")
    assert {n: v for n, v in environment(migrate).items() if n.startswith("DATABASE")} == variables
    assert "owner" not in str(controller(objects))


@pytest.mark.parametrize("kind", ["existingSecret", "existingConfigMap"])
def test_ca_reaches_every_container_that_connects(kind: str) -> None:
    values = {
        "database": {"existingSecret": "a", "ca": {kind: "authority", "key": "tls.crt"}},
        "migrations": {"mode": "job", "existingSecret": "owner"},
    }
    connecting = 0
    for source, pod in pod_specs(render(values)):
        volume = next(v for v in pod["volumes"] if v["name"] == "database-ca")
        found = volume.get("secret") or volume["configMap"]
        assert found.get("secretName", found.get("name")) == "authority", source
        for container in pod["containers"]:
            if container.get("env"):
                connecting += 1
                assert environment(container)["DATABASE_CA_FILE"] == "/etc/containerstacks-billing/ca/tls.crt"
                assert "/etc/containerstacks-billing/ca" in [m["mountPath"] for m in container["volumeMounts"]]
    assert connecting == 3


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        ({"existingFile": "/a", "existingSecret": "b"}, "database.existingFile is set together with"),
        ({"existingFile": "/a", "url": URL}, "database.existingFile is set together with"),
        ({"existingFile": "relative"}, "at '/database/existingFile'"),
        ({"existingSecret": "a", "existingDirectFile": "/b"}, "requires database.existingFile"),
        ({"existingSecret": "a", "passwordKey": "p"}, "completes database.url"),
        ({"url": URL, "passwordKey": "p"}, "completes database.url"),
        ({"existingSecret": "a", "usernameKey": "u"}, "without database.passwordKey"),
        ({"url": "postgresql://u:p@db/a", "existingSecret": "a", "passwordKey": "p"}, "Remove the password"),
        ({"url": f"{URL}?password=x", "existingSecret": "a", "passwordKey": "p"}, "Remove the password"),
        (
            {"url": "postgresql://u@db/a", "existingSecret": "a", "usernameKey": "u", "passwordKey": "p"},
            "holds a user name",
        ),
        ({"existingSecret": "a", "ca": {"existingSecret": "b", "existingConfigMap": "c"}}, "Keep one of them"),
    ],
)  # fmt: skip
def test_contradicting_credentials_are_refused(database: Manifest, reason: str) -> None:
    assert reason in refusal({"database": database})


def test_contradicting_credentials_of_the_migrations_are_refused() -> None:
    both = {**MINIMAL, "migrations": {"existingSecret": "a", "existingFile": "/b"}}
    assert "Both migrations.existingFile and migrations.existingSecret" in refusal(both)
    alone = {**MINIMAL, "migrations": {"existingSecret": "a", "passwordKey": "p"}}
    assert "Set migrations.existingSecret and database.passwordKey too" in refusal(alone)


# --- networks


def database_ports(values: Values) -> list[int]:
    policy = one(
        render({**values, "networkPolicy": {"enabled": True, **values.get("networkPolicy", {})}}), "NetworkPolicy"
    )
    return [port["port"] for port in policy["spec"]["egress"][0]["ports"]]


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("postgresql://u:p%40ss@db/app", [5432]),
        ("postgresql://u:p@db:6432/app?sslmode=require", [6432]),
        ("postgres://u:5@a:1001,b,c:1003/app?target_session_attrs=read-write", [1001, 5432, 1003]),
        ("postgresql://u:p@[2001:db8::1]:5433,[::1]/app", [5433, 5432]),
        ("postgresql:///app?host=a,b&port=5433,5434", [5433, 5434]),
        ("postgresql://u@a,b/app?port=7000", [7000, 7000]),
        ("postgresql://u:p@a:1001,b:1002/app?sslmode=require&port=7000,", [7000, 5432]),
        ("postgresql:///app?host=a,b&port=5433%2C5434", [5433, 5434]),
        ("postgresql://a/app?port=5433&port=5434", [5434]),
    ],
)
def test_network_policy_reads_the_ports_of_a_url_in_the_values(url: str, ports: list[int]) -> None:
    """It opens those to which libpq connects."""
    assert database_ports({"database": {"url": url}}) == list(dict.fromkeys(ports))
    libpq = [int(port or 5432) for port in str(conninfo_to_dict(url).get("port") or "").split(",")]
    assert set(libpq) == set(ports)


def test_network_policy_adds_the_ports_of_the_direct_url() -> None:
    urls = {"url": "postgresql://u:p@pool:6432/app", "directUrl": "postgresql://u:p@db:5432/app"}
    assert database_ports({"database": urls}) == [6432, 5432]


def test_network_policy_takes_the_ports_of_a_secret_from_the_values() -> None:
    assert database_ports(MINIMAL) == [5432]
    assert database_ports({**MINIMAL, "networkPolicy": {"databasePorts": [6432, 26257]}}) == [6432, 26257]


def test_network_policy_names_addresses_only_on_request() -> None:
    peers = [{"ipBlock": {"cidr": "172.18.0.2/32"}}]
    policy = {"enabled": True, "apiServerPorts": [6443], "apiServerTo": peers}
    egress = one(render({**MINIMAL, "networkPolicy": policy}), "NetworkPolicy")["spec"]["egress"]
    assert next(rule for rule in egress if "to" in rule) == {"ports": [{"protocol": "TCP", "port": 6443}], "to": peers}
    assert "to" not in egress[0]


@pytest.mark.parametrize("ports", ["databasePorts", "apiServerPorts"])
def test_network_policy_without_ports_opens_no_other(ports: str) -> None:
    """A rule with an empty list of ports would allow every port."""
    assert f"at '/networkPolicy/{ports}': minItems" in refusal({**MINIMAL, "networkPolicy": {ports: []}})
    policy = one(render({**MINIMAL, "networkPolicy": {"enabled": True, ports: None}}), "NetworkPolicy")["spec"]
    assert all(rule["ports"] for rule in policy["ingress"] + policy["egress"])


def test_service_takes_its_address_families() -> None:
    assert not {"ipFamilies", "ipFamilyPolicy"} & one(render(MINIMAL), "Service")["spec"].keys()
    families = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    assert families.items() <= one(render({**MINIMAL, "service": families}), "Service")["spec"].items()
    assert "at '/service/ipFamilies" in refusal({**MINIMAL, "service": {"ipFamilies": ["IPv5"]}})


# --- rare needs


def test_pod_spec_is_merged_last_into_every_pod_of_the_image() -> None:
    rare = {
        "runtimeClassName": "gvisor", "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
        "hostAliases": [{"ip": "10.0.0.5", "hostnames": ["db"]}], "enableServiceLinks": True,
    }  # fmt: skip
    before, after = (dict(pod_specs(render({**EVERYTHING, **more}))) for more in ({}, {"podSpec": rare}))
    assert len(after) == 3
    for (_, old), (name, new) in zip(sorted(before.items()), sorted(after.items()), strict=True):
        assert new == {**old, **rare}, name


@pytest.mark.parametrize("key", ["containers", "initContainers", "volumes", "terminationGracePeriodSeconds"])
def test_pod_spec_can_not_replace_what_the_chart_computes(key: str) -> None:
    assert f"podSpec.{key} would replace what the chart sets" in refusal({**MINIMAL, "podSpec": {key: []}})


# --- Helm


@pytest.mark.parametrize("older", sorted((Path(__file__).parent / "reused").iterdir()), ids=lambda path: path.stem)
def test_release_of_an_older_chart_upgrades_with_reused_values(older: Path, tmp_path: Path) -> None:
    """With --reuse-values Helm ignores this chart's values.yaml, so every newer value is missing."""
    chart = tmp_path / CHART.name
    shutil.copytree(CHART, chart)
    (chart / "values.yaml").write_text("{}", "utf-8")
    enabled = ["networkPolicy.enabled", "metrics.prometheusRule.enabled", "metrics.dashboard.enabled"]
    options = [*(f"{name}=true" for name in enabled), "migrations.mode=job", "database.ca.existingSecret=authority"]
    more = [word for option in options for word in ("--set", option)]
    done = run("helm", "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(older), *more)
    assert done.returncode == 0, done.stderr
    expected = {
        "database": {**MINIMAL["database"], "ca": {"existingSecret": "authority"}},
        "migrations": {"mode": "job"},
        "networkPolicy": {"enabled": True},
        "metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}},
    }
    found = {(o["kind"], o["metadata"]["name"]): o for o in load(done.stdout)}
    assert found.keys() == {(o["kind"], o["metadata"]["name"]) for o in render(expected)}
    assert controller(list(found.values()))["image"] == "containerstacks-billing:0.2.0"
    assert_valid(list(found.values()))


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_3_renders_what_helm_4_renders(name: str) -> None:
    try:
        tool("helm3")
    except ToolMissingError as error:
        pytest.skip(str(error))
    text = yaml.safe_dump(dict(VALUE_SETS[name]))
    done = run("helm3", "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", "-", text=text)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout) == render(VALUE_SETS[name])


@pytest.mark.parametrize("word", ["1", "true", "null", "0x1f"])
def test_names_that_yaml_would_read_as_something_else_stay_text(word: str) -> None:
    names = {"serviceAccount": {"name": word}, "namespaceOverride": word, "priorityClassName": word}
    if word.isalpha():
        names |= {"nameOverride": word, "fullnameOverride": word}
    credentials = {"existingSecret": word, "existingSecretKey": word, "ca": {"existingSecret": word, "key": word}}
    objects = render({"database": credentials, "networkPolicy": {"enabled": True}, **names})
    assert_valid(objects)
    assert {o["metadata"]["namespace"] for o in objects} == {word}


def notes(**values: str) -> str:
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    done = run("helm", "install", "x", str(CHART), "--dry-run=client", "--namespace", NAMESPACE, *settings)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.partition("NOTES:")[2]
    assert os.linesep * 3 not in shown
    return shown


@pytest.mark.parametrize("database", ["existingSecret=a", f"url={URL}"], ids=["secret", "url"])
def test_notes_say_that_the_first_cycle_waits(database: str) -> None:
    name, _, value = database.partition("=")
    assert "300 seconds" in notes(**{f"database.{name}": value})


def test_notes_name_the_namespace_of_the_objects() -> None:
    """`helm test --logs` of Helm 3 looks for the pod in the release's namespace."""
    shown = notes(**{"database.existingSecret": "a", "namespaceOverride": "other"})
    commands = [line.split() for line in shown.splitlines() if line.startswith("     kubectl")]
    assert all(command[command.index("--namespace") + 1] == "other" for command in commands)
    assert f"helm test --namespace {NAMESPACE} x " in shown
    assert "x-containerstacks-billing-test --all-containers" in shown
