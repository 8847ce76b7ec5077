"""What a failing test's report shows of the cluster."""

from __future__ import annotations

from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.objects import PodView

LINES = "200"
MAX_CHARACTERS = 20_000


def dump(kubectl: Kubectl) -> list[tuple[str, str]]:
    """Titles and texts: what there is, what happened, what was logged, also by containers that have ended."""
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
    """Whatever it says; a dump must not hide the failure that it is for."""
    title = f"kubectl --namespace {kubectl.namespace} {' '.join(arguments)}"
    try:
        done = kubectl.attempt(*arguments)
    except KubectlError as error:
        return title, str(error)
    return title, (done.stdout + done.stderr)[-MAX_CHARACTERS:]
