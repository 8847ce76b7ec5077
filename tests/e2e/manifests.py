"""The suite's own manifests. Every pod meets the Restricted profile, which the suite's namespaces enforce."""

from __future__ import annotations

import base64
from typing import Any, Final

from tests.e2e.workbench import POD

#: Labels that select everything of the suite, and everything of one session.
MADE_BY: Final = {"app.kubernetes.io/managed-by": "containerstacks-billing-e2e"}
SESSION_LABEL: Final = "billing.containerstacks.io/e2e-session"
SECRET: Final = "billing-database"
KEY: Final = "DATABASE_URL"
POSTGRES: Final = "postgresql"

_CONTAINER: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
#: Sleeps until SIGTERM. As PID 1 it must handle the signal explicitly.
_SLEEP: Final = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {15})\nsignal.sigwait({15})"


def namespace(name: str, session: str) -> dict[str, Any]:
    """A namespace that enforces the Restricted profile."""
    profile = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    labels = {**MADE_BY, SESSION_LABEL: session, **profile}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def workbench(image: str) -> dict[str, Any]:
    """The pod of workbench.py."""
    container = {
        "name": POD,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", _SLEEP],
        "securityContext": {**_CONTAINER, "readOnlyRootFilesystem": True},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the pod's own
    }
    return _pod(POD, 65532, container, [{"name": "tmp", "emptyDir": {}}])


def postgres(image: str, uid: int) -> dict[str, Any]:
    """The session's PostgreSQL pod. Its data is outside the image's volume, whose path differs between versions."""
    container = {
        "name": POSTGRES,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        # Tests don't need the data after a crash, and without fsync a slow disk matters less.
        "args": ["postgres", "-c", "fsync=off", "-c", "max_connections=200"],
        "env": [
            {"name": "POSTGRES_USER", "value": "postgres"},
            {"name": "PGDATA", "value": "/e2e/data"},
            {"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": POSTGRES, "key": "password"}}},
        ],
        "ports": [{"name": POSTGRES, "containerPort": 5432}],
        # Probe over TCP: while the image initializes the database, its server listens only on the Unix socket.
        "readinessProbe": {
            "exec": {"command": ["pg_isready", "--host=127.0.0.1", "--username=postgres"]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
        "securityContext": _CONTAINER,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/e2e"}, {"name": "run", "mountPath": "/var/run/postgresql"}],
    }
    return _pod(POSTGRES, uid, container, [{"name": "data", "emptyDir": {}}, {"name": "run", "emptyDir": {}}])


def postgres_uid(image: str) -> int:
    """The user ID in the official image: 70 in the Alpine variants, 999 in the Debian ones."""
    return 70 if "alpine" in image else 999


def secret(name: str, **texts: str) -> dict[str, Any]:
    """A Secret with these keys and values."""
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "data": data}


def service(name: str, port: int) -> dict[str, Any]:
    """A Service without a selector. Connections to it are refused until `endpoints` exist."""
    spec = {"ports": [{"port": port, "protocol": "TCP"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def endpoints(name: str, address: str, port: int) -> dict[str, Any]:
    """The endpoints of the Service `name`."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv6" if ":" in address else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"port": port, "protocol": "TCP"}],
    }


def lost_leader(name: str, image: str) -> dict[str, Any]:
    """A pod that carries the leader's label and never changes it, like a pod whose node is unreachable."""
    made = workbench(image)
    made["metadata"] = {
        "name": name,
        "labels": {**MADE_BY, "billing.containerstacks.io/role": "leader"},
        "annotations": {"controller.kubernetes.io/pod-deletion-cost": "100"},
    }
    return made


def _pod(name: str, uid: int, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {**MADE_BY, "app.kubernetes.io/name": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 10,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": uid,
                "runAsGroup": uid,
                "fsGroup": uid,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        },
    }
