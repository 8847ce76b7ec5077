"""The chart, the Kubernetes schemas and the Restricted profile accept everything that the suite installs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.chart.toolbox import (
    Manifest,
    ToolMissingError,
    controller,
    environment,
    load,
    one,
    pod_specs,
    render,
    run,
    tool,
)
from tests.e2e import manifests
from tests.e2e.overlay import write_overlay
from tests.e2e.values import DRAIN_SECONDS, PURPOSES, RELEASE, demo_values, image_name, image_values, merged, values_for

DIGEST = f"sha256:{'0' * 64}"
IMAGE = "mirror.example:5000/team/billing:e2e"
VERSIONS = ["1.29", "1.36"]


@pytest.fixture(autouse=True)
def programs() -> None:
    try:
        tool("helm")
        tool("kubectl")
    except ToolMissingError as error:
        pytest.skip(str(error))


def check_schemas(objects: list[Manifest]) -> None:
    """Validates objects strictly against the Kubernetes schemas."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for o in objects:
        for version in VERSIONS:
            validate(o, version, strict=True)


@pytest.mark.parametrize("purpose", sorted(PURPOSES))
def test_chart_accepts_the_values_of_every_purpose(purpose: str) -> None:
    objects = render(values_for(purpose, IMAGE), release=RELEASE)
    check_schemas(objects)
    deployment = one(objects, "Deployment")
    assert deployment["metadata"]["name"] == RELEASE
    assert controller(objects)["image"] == IMAGE
    variables = environment(controller(objects))
    assert variables["BILLING_TAKEOVER_DELAY_SECONDS"] == "0"
    assert variables["BILLING_HTTP_ADDRESS"] == ":8080", "every address family"
    assert variables["DATABASE_URL_FILE"].endswith(f"/{manifests.SECRET}/{manifests.KEY}")


def test_purposes_change_the_values_they_need() -> None:
    def variables(purpose: str) -> dict[str, str]:
        return environment(controller(render(values_for(purpose, IMAGE))))

    assert variables("install")["BILLING_DRAIN_TIMEOUT_SECONDS"] == str(DRAIN_SECONDS)
    assert variables("drain")["BILLING_DRAIN_TIMEOUT_SECONDS"] == "3"
    assert (variables("install")["BILLING_INTERVAL_MINUTES"], variables("rotation")["BILLING_INTERVAL_MINUTES"]) == (
        "0.05",
        "1",
    )
    replicas = {p: one(render(values_for(p, IMAGE)), "Deployment")["spec"]["replicas"] for p in ("install", "scale")}
    assert replicas == {"install": 2, "scale": 1}
    unmigrated = one(render(values_for("missing-tables", IMAGE)), "Deployment")["spec"]["template"]["spec"]
    assert "initContainers" not in unmigrated


def test_upgrade_replaces_the_pods() -> None:
    before, after = (one(render(values_for(p, IMAGE)), "Deployment") for p in ("rollout", "upgraded"))
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["spec"]["selector"] == after["spec"]["selector"]


def test_chart_accepts_the_values_of_the_demo() -> None:
    objects = render(demo_values(IMAGE, "postgres:17-alpine", 70), release=RELEASE)
    check_schemas(objects)
    (container,) = one(objects, "StatefulSet", "demo-database")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "postgres:17-alpine"


@pytest.mark.parametrize(
    ("image", "repository", "tag", "digest"),
    [
        ("containerstacks-billing:e2e", "containerstacks-billing", "e2e", ""),
        ("localhost/containerstacks-billing:e2e", "localhost/containerstacks-billing", "e2e", ""),
        ("mirror.example:5000/billing", "mirror.example:5000/billing", "latest", ""),
        (f"mirror.example:5000/a/billing:1@{DIGEST}", "mirror.example:5000/a/billing", "1", DIGEST),
        (f"billing@{DIGEST}", "billing", "", DIGEST),
    ],
)
def test_chart_renders_the_same_image_name_from_the_split_values(
    image: str, repository: str, tag: str, digest: str
) -> None:
    values = image_values(image)
    assert image_values(image_name(values)) == values
    assert (values["repository"], values["tag"], values["digest"]) == (repository, tag, digest)
    rendered = controller(render(values_for("install", image)))["image"]
    assert rendered == (f"{repository}@{digest}" if digest else f"{repository}:{tag}")


def test_values_are_merged_like_in_helm() -> None:
    assert merged({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2]}, "e": 3}) == {
        "a": {"b": 1, "c": [2]},
        "d": 2,
        "e": 3,
    }


def own_objects() -> list[dict[str, Any]]:
    return [
        manifests.namespace("billing-e2e-0a1b2c-install", "billing-e2e-0a1b2c"),
        manifests.workbench(IMAGE),
        manifests.postgres("postgres:17-alpine", 70),
        manifests.secret("x", **{manifests.KEY: "postgresql://"}),
        manifests.service("database", 5432),
        manifests.endpoints("database", "10.0.0.5", 5432),
        manifests.endpoints("database", "2001:db8::5", 5432),
        manifests.lost_leader("lost", IMAGE),
    ]


def test_kubernetes_accepts_the_suites_own_manifests() -> None:
    check_schemas(own_objects())


def test_suites_own_pods_meet_the_restricted_profile() -> None:
    pytest.importorskip("kubernetes_validate", reason="tests.chart.test_objects needs it")
    restricted = importlib.import_module("tests.chart.test_objects").restricted_violations
    workbench, postgres = (pod["spec"] for pod in own_objects()[1:3])
    assert restricted(workbench) == []
    # This check is stricter than the profile, and the PostgreSQL image needs a writable root file system.
    assert restricted(postgres) == ["postgresql.readOnlyRootFilesystem"]


def test_namespaces_enforce_the_restricted_profile() -> None:
    labels = own_objects()[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert all(len(value) <= 63 for value in labels.values())


def test_longest_name_fits_a_namespace_a_database_and_a_role() -> None:
    longest = max((f"billing-e2e-0a1b2c-{purpose}" for purpose in PURPOSES), key=len)
    assert len(longest) <= 63


def test_user_of_the_postgres_image_follows_from_its_name() -> None:
    assert [manifests.postgres_uid(i) for i in ("postgres:17", "postgres:17-alpine", f"postgres@{DIGEST}")] == [
        999,
        70,
        999,
    ]


@pytest.mark.parametrize("image", [IMAGE, f"mirror.example:5000/billing@{DIGEST}"])
def test_kubectl_builds_the_overlay(image: str, tmp_path: Path) -> None:
    done = run("kubectl", "kustomize", str(write_overlay(tmp_path, "elsewhere", image)))
    assert done.returncode == 0, done.stderr
    objects = load(done.stdout)
    check_schemas(objects)
    assert {o["metadata"]["namespace"] for o in objects} == {"elsewhere"}
    assert {c["image"] for _, pod in pod_specs(objects) for c in (*pod["initContainers"], *pod["containers"])} == {
        image
    }
    variables = environment(controller(objects))
    assert (variables["BILLING_INTERVAL_MINUTES"], variables["BILLING_TAKEOVER_DELAY_SECONDS"]) == ("0.05", "0")
    assert variables["BILLING_HTTP_ADDRESS"] == ":8080"
    assert variables["BILLING_DRAIN_TIMEOUT_SECONDS"] == "270", "the overlay keeps the other settings of the base"


def test_suite_uses_every_purpose_and_no_other() -> None:
    texts = [path.read_text("utf-8") for path in Path(manifests.__file__).parent.glob("test_*.py")]
    of_modules = {name for text in texts for name in re.findall(r'^PURPOSE = "(.*)"$', text, re.MULTILINE)}
    in_tests = {name for name in PURPOSES if any(f'("{name}"' in text for text in texts)}
    assert len(of_modules) > 1
    assert of_modules | in_tests == PURPOSES.keys()
