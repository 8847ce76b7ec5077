"""Adds the state of the cluster to the report of a failing test."""

from __future__ import annotations

from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.objects import PodView

LINES = "200"
MAX_CHARACTERS = 20_000


def dump(kubectl: Kubectl) -> list[tuple[str, str]]:
    """Sections with objects, Events and logs, including logs of earlier container instances."""
    sections = [
        _section(kubectl, "get", "deployments,statefulsets,replicasets,pods,jobs,pdb", "--output", "wide"),
        _section(kubectl, "describe", "pods"),
        _section(kubectl, "get", "events", "--sort-by", ".metadata.creationTimestamp"),
    ]
    try:
        pods: list[PodView] = kubectl.pods()
    except KubectlError as error:
        return [*sections, ("pods", str(error))]
    for pod in pods:
        every = ("logs", pod.name, "--all-containers", "--prefix", "--ignore-errors", "--tail", LINES)
        sections.append(_section(kubectl, *every))
        if pod.restarts:
            sections.append(_section(kubectl, *every, "--previous"))
    return sections


def _section(kubectl: Kubectl, *arguments: str) -> tuple[str, str]:
    """Output or error of a command. A failing dump must not hide the failure of the test."""
    title = f"kubectl --namespace {kubectl.namespace} {' '.join(arguments)}"
    try:
        done = kubectl.attempt(*arguments)
    except KubectlError as error:
        return title, str(error)
    return title, (done.stdout + done.stderr)[-MAX_CHARACTERS:]
