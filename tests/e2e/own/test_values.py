"""All that the suite installs is accepted: by the chart, by Kubernetes' own schemas, by the Restricted profile."""

from __future__ import annotations

import importlib
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
from tests.e2e.values import DRAIN_SECONDS, PURPOSES, RELEASE, demo_values, image_values, merged, values_for

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


def accepted(objects: list[Manifest]) -> None:
    """By Kubernetes' schemas, strictly."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for o in objects:
        for version in VERSIONS:
            validate(o, version, strict=True)


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("purpose", sorted(PURPOSES))
def test_chart_takes_the_values_of_every_purpose(purpose: str, ipv6: bool) -> None:  # noqa: FBT001 - a parameter of tests
    objects = render(values_for(purpose, IMAGE, ipv6=ipv6), release=RELEASE)
    accepted(objects)
    deployment = one(objects, "Deployment")
    assert deployment["metadata"]["name"] == RELEASE
    assert controller(objects)["image"] == IMAGE
    told = environment(controller(objects))
    assert told["BILLING_TAKEOVER_DELAY_SECONDS"] == "0"
    assert told["BILLING_HTTP_ADDRESS"] == ("[::]:8080" if ipv6 else "0.0.0.0:8080")
    assert told["DATABASE_URL_FILE"].endswith(f"/{manifests.SECRET}/{manifests.KEY}")


def test_purposes_differ_in_what_they_are_for() -> None:
    def told(purpose: str) -> dict[str, str]:
        return environment(controller(render(values_for(purpose, IMAGE))))

    assert told("install")["BILLING_DRAIN_TIMEOUT_SECONDS"] == str(DRAIN_SECONDS)
    assert told("drain")["BILLING_DRAIN_TIMEOUT_SECONDS"] == "3"
    assert (told("install")["BILLING_INTERVAL_MINUTES"], told("rotation")["BILLING_INTERVAL_MINUTES"]) == ("0.05", "1")
    replicas = {p: one(render(values_for(p, IMAGE)), "Deployment")["spec"]["replicas"] for p in ("install", "scale")}
    assert replicas == {"install": 2, "scale": 1}
    unmigrated = one(render(values_for("missing-tables", IMAGE)), "Deployment")["spec"]["template"]["spec"]
    assert "initContainers" not in unmigrated


def test_upgrade_makes_new_pods() -> None:
    before, after = (one(render(values_for(p, IMAGE)), "Deployment") for p in ("rollout", "upgraded"))
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["spec"]["selector"] == after["spec"]["selector"]


def test_chart_takes_the_values_of_the_demo() -> None:
    objects = render(demo_values(IMAGE, "postgres:17-alpine", 70), release=RELEASE)
    accepted(objects)
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
def test_images_are_taken_apart_as_the_chart_puts_them_together(
    image: str, repository: str, tag: str, digest: str
) -> None:
    values = image_values(image)
    assert (values["repository"], values["tag"], values["digest"]) == (repository, tag, digest)
    rendered = controller(render(values_for("install", image)))["image"]
    assert rendered == (f"{repository}@{digest}" if digest else f"{repository}:{tag}")


def test_values_are_merged_as_helm_merges_them() -> None:
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
    ]


def test_kubernetes_takes_what_the_suite_makes_itself() -> None:
    accepted(own_objects())


def test_pods_of_the_suite_meet_the_restricted_profile() -> None:
    pytest.importorskip("kubernetes_validate", reason="the chart's tests, whose check this is, need it")
    restricted = importlib.import_module("tests.chart.test_objects").restricted_violations
    workbench, postgres = (pod["spec"] for pod in own_objects()[1:3])
    assert restricted(workbench) == []
    # stricter than the profile; the image of PostgreSQL is not ours
    assert restricted(postgres) == ["postgresql.readOnlyRootFilesystem"]


def test_namespaces_enforce_the_restricted_profile() -> None:
    labels = own_objects()[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert all(len(value) <= 63 for value in labels.values())


def test_names_fit_where_they_are_put() -> None:
    longest = max((f"billing-e2e-0a1b2c-{purpose}" for purpose in PURPOSES), key=len)
    assert len(longest) <= 63, "a namespace, a database and a role take 63 characters"


def test_user_of_the_postgres_image_follows_from_its_name() -> None:
    assert [manifests.postgres_uid(i) for i in ("postgres:17", "postgres:17-alpine", f"postgres@{DIGEST}")] == [
        999,
        70,
        999,
    ]


@pytest.mark.parametrize("image", [IMAGE, f"mirror.example:5000/billing@{DIGEST}"])
def test_kubectl_builds_the_overlay(image: str, tmp_path: Path) -> None:
    done = run("kubectl", "kustomize", str(write_overlay(tmp_path, "elsewhere", image, ipv6=True)))
    assert done.returncode == 0, done.stderr
    objects = load(done.stdout)
    accepted(objects)
    assert {o["metadata"]["namespace"] for o in objects} == {"elsewhere"}
    assert {c["image"] for _, pod in pod_specs(objects) for c in (*pod["initContainers"], *pod["containers"])} == {
        image
    }
    told = environment(controller(objects))
    assert (told["BILLING_INTERVAL_MINUTES"], told["BILLING_TAKEOVER_DELAY_SECONDS"]) == ("0.05", "0")
    assert told["BILLING_HTTP_ADDRESS"] == "[::]:8080"
    assert told["BILLING_DRAIN_TIMEOUT_SECONDS"] == "270", "the rest is the base's"


@pytest.mark.parametrize("module", ["test_install", "test_loss", "test_rollout", "test_scale", "test_drain"])
def test_every_module_has_a_purpose_that_is_known(module: str) -> None:
    assert importlib.import_module(f"tests.e2e.{module}").PURPOSE in PURPOSES
