"""Checks of the permissions in Kubernetes, if this process has a token."""

from collections.abc import Iterator
from typing import Any, Final

from controller.doctor.findings import Finding, Level
from controller.doctor.patient import Patient
from controller.k8s import Pod
from controller.k8s.api import REQUEST_SECONDS, Api, ApiError, in_cluster_configuration

#: Verb, API group and resource of each request that the announcer sends.
NEEDED: Final = (("patch", "", "pods"), ("get", "apps", "deployments"), ("create", "events.k8s.io", "events"))


def permissions(patient: Patient) -> Iterator[Finding]:
    """Checks the permissions of this process's service account."""
    pod = patient.application.pod()
    if isinstance(pod, str):
        yield Finding("kubernetes", Level.SKIPPED, f"skipped: {pod}")
    else:
        yield from permissions_of(pod, in_cluster_configuration())


def permissions_of(pod: Pod, configuration: Any) -> Iterator[Finding]:  # noqa: ANN401 - the client has no types
    """Asks the API server if the pod's service account may label pods and create Events. Billing works without both."""
    api = Api(configuration, pod)
    try:
        for verb, group, resource in NEEDED:
            name = pod.deployment if resource == "deployments" else None
            what = f"{verb} {resource}{f' {name}' if name else ''} in {pod.namespace}"
            if api.may(verb, group, resource, name, REQUEST_SECONDS):
                yield Finding("kubernetes", Level.OK, f"may {what}")
            else:
                remedy = "set rbac.create=true, or grant the rules of the chart's templates/rbac.yaml"
                yield Finding("kubernetes", Level.WARNING, f"may not {what}", remedy)
    except ApiError as error:
        yield Finding("kubernetes", Level.WARNING, f"the API server: {error}", "billing works without it")
    finally:
        api.close()
