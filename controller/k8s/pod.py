"""Where this replica runs, if it runs in Kubernetes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Where the kubelet mounts a service account.
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Pod:
    """A pod, and the Deployment that it belongs to where its name is known.

    Attributes:
        namespace: of both.
        pod: its name.
        pod_uid: None where the Downward API was not asked for it.
        deployment: a name.
    """

    namespace: str
    pod: str
    pod_uid: str | None = None
    deployment: str | None = None


def find_pod(
    environment: Mapping[str, str],
    *,
    namespace: str | None,
    pod: str | None,
    pod_uid: str | None = None,
    deployment: str | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> Pod | str:
    """The place, or why there is none that could be told about.

    Args:
        environment: the process's; Kubernetes puts the API server's address there.
        namespace: of the pod.
        pod: its name.
        pod_uid: its uid.
        deployment: that the pod belongs to.
        service_account: the folder of its token.
    """
    if not environment.get("KUBERNETES_SERVICE_HOST"):
        return "not in a cluster"
    if not (service_account / "token").is_file():
        return "no service account token"
    if not (namespace and pod):
        return "POD_NAME or POD_NAMESPACE is not set"
    return Pod(namespace, pod, pod_uid, deployment)
