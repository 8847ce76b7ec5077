"""Which cluster the suite runs on, and that it runs on none by accident."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.e2e.cluster import Given, Kind, Nothing, choose


def having(*programs: str) -> Callable[[str], str | None]:
    return lambda name: name if name in programs else None


def all_work(_command: list[str]) -> bool:
    return True


def test_named_cluster_and_image_are_used() -> None:
    environment = {"KUBECONFIG": "/k", "E2E_IMAGE": "billing:1"}
    assert choose(environment, having("kind", "docker"), all_work) == Given("/k", "billing:1")


@pytest.mark.parametrize("kubeconfig", ["/k", os.devnull, ""])
def test_kubeconfig_without_an_image_is_left_alone(kubeconfig: str) -> None:
    assert choose({"KUBECONFIG": kubeconfig}, having("kind", "docker"), all_work) == Kind("docker", None)
    chosen = choose({"KUBECONFIG": kubeconfig}, having(), all_work)
    assert isinstance(chosen, Nothing)
    assert "KUBECONFIG and E2E_IMAGE" in chosen.reason


def test_image_is_not_built_where_one_is_named() -> None:
    assert choose({"E2E_IMAGE": "billing:1"}, having("kind", "podman"), all_work) == Kind("podman", "billing:1")


def test_docker_without_its_daemon_is_none() -> None:
    chosen = choose({}, having("kind", "docker"), lambda command: command[0] == "kind")
    assert isinstance(chosen, Nothing)
    assert "neither docker nor podman" in chosen.reason


def test_podman_stands_in_for_docker() -> None:
    assert choose({}, having("kind", "docker", "podman"), lambda command: command[0] != "docker") == Kind(
        "podman", None
    )


def test_another_program_called_kind_is_none() -> None:
    chosen = choose({}, having("kind", "docker"), lambda command: command[0] != "kind")
    assert isinstance(chosen, Nothing)
    assert "no kind" in chosen.reason
