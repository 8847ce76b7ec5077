"""The pod that this replica runs in, if it runs in Kubernetes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Where the kubelet mounts a service account.
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Pod:
    """A pod and its Deployment.

    Attributes:
        namespace: the namespace of both.
        name: the pod's name.
        uid: the pod's uid; None unless the Downward API provides it.
        deployment: name of the Deployment; None if it is unknown.
    """

    namespace: str
    name: str
    uid: str | None = None
    deployment: str | None = None


def find_pod(
    environment: Mapping[str, str],
    *,
    namespace: str | None,
    name: str | None,
    uid: str | None = None,
    deployment: str | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> Pod | str:
    """Returns the pod, or the reason why Kubernetes can't be told anything.

    Args:
        environment: the process's environment. Kubernetes sets the API server's address there.
        namespace: the pod's namespace.
        name: the pod's name.
        uid: the pod's uid.
        deployment: name of the pod's Deployment.
        service_account: the folder that holds the token.
    """
    if not environment.get("KUBERNETES_SERVICE_HOST"):
        return "not in a cluster"
    if not (service_account / "token").is_file():
        return "no service account token"
    if not (namespace and name):
        return "POD_NAME or POD_NAMESPACE is not set"
    return Pod(namespace, name, uid, deployment)
