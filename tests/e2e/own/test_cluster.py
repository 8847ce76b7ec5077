"""The suite chooses its cluster and never runs on one by accident."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.e2e.cluster import ExistingCluster, KindCluster, NoCluster, choose


def installed(*programs: str) -> Callable[[str], str | None]:
    return lambda name: name if name in programs else None


def every_program_works(_command: list[str]) -> bool:
    return True


def test_cluster_and_image_in_the_environment_are_used() -> None:
    environment = {"KUBECONFIG": "/k", "E2E_IMAGE": "billing:1"}
    assert choose(environment, installed("kind", "docker"), every_program_works) == ExistingCluster("/k", "billing:1")


@pytest.mark.parametrize("kubeconfig", ["/k", os.devnull, ""])
def test_kubeconfig_without_an_image_is_ignored(kubeconfig: str) -> None:
    assert choose({"KUBECONFIG": kubeconfig}, installed("kind", "docker"), every_program_works) == KindCluster(
        "docker", None
    )
    chosen = choose({"KUBECONFIG": kubeconfig}, installed(), every_program_works)
    assert isinstance(chosen, NoCluster)
    assert "KUBECONFIG and E2E_IMAGE" in chosen.reason


def test_image_in_the_environment_is_not_built() -> None:
    assert choose({"E2E_IMAGE": "billing:1"}, installed("kind", "podman"), every_program_works) == KindCluster(
        "podman", "billing:1"
    )


def test_docker_without_its_daemon_is_ignored() -> None:
    chosen = choose({}, installed("kind", "docker"), lambda command: command[0] == "kind")
    assert isinstance(chosen, NoCluster)
    assert "docker or podman" in chosen.reason


def test_podman_replaces_docker() -> None:
    assert choose({}, installed("kind", "docker", "podman"), lambda command: command[0] != "docker") == KindCluster(
        "podman", None
    )


def test_unrelated_program_named_kind_is_ignored() -> None:
    chosen = choose({}, installed("kind", "docker"), lambda command: command[0] != "kind")
    assert isinstance(chosen, NoCluster)
    assert "kind isn't installed" in chosen.reason
