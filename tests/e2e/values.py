"""The sets of chart values that the suite installs, by purpose. own/test_values.py renders and validates each.

The billing interval is a few seconds, so the controller charges added work at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.e2e.manifests import SECRET

Values = Mapping[str, Any]

RELEASE: Final = "containerstacks-billing"
BATCH: Final = 25
DRAIN_SECONDS: Final = 120

BASE: Final[Values] = {
    "database": {"existingSecret": SECRET},
    "billing": {"intervalMinutes": 0.05, "takeoverDelaySeconds": 0, "batchSize": BATCH, "workers": 1},
    "drain": {"timeoutSeconds": DRAIN_SECONDS},
    "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
}

#: The changes to BASE for each purpose.
PURPOSES: Final[Mapping[str, Values]] = {
    "install": {},
    "loss": {},
    "rollout": {},
    "upgraded": {"podAnnotations": {"e2e.example/upgraded": "yes"}},
    # OpenShift assigns any uid, and group 0.
    "scale": {
        "replicas": 1,
        "podSecurityContext": {"runAsUser": 1000740000, "runAsGroup": 0, "fsGroup": 1000740000},
    },
    "drain": {"drain": {"timeoutSeconds": 3}},
    "wrong-password": {},
    "wrong-password-unmigrated": {"migrations": {"mode": "none"}},
    "missing-key": {},
    "missing-tables": {"migrations": {"mode": "none"}},
    # New sessions fail until the kubelet has updated the Secret. A longer interval makes fewer cycles fail meanwhile.
    "rotation": {"billing": {"intervalMinutes": 1}},
    "away-init": {},
    "away-job": {"migrations": {"mode": "job"}},
    "away-none": {"migrations": {"mode": "none"}},
    "uninstall": {},
    "kustomize": {},  # installed without Helm, with the same image and interval
}
#: The demo, which has its own database.
DEMO: Final[Values] = {"demo": {"enabled": True}}


def merged(base: Values, change: Values) -> dict[str, Any]:
    """Merges values like Helm: mappings key by key; everything else is replaced."""
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def image_values(image: str) -> dict[str, Any]:
    """Splits an image's name into the chart's values."""
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon belongs to the registry's port
        repository, tag = name, ""
    if not tag and not digest:
        tag = "latest"
    return {"repository": repository, "tag": tag, "digest": digest, "pullPolicy": "IfNotPresent"}


def image_name(values: Values) -> str:
    """The image's name from the chart's values: the reverse of `image_values`."""
    repository, tag, digest = (str(values[key]) for key in ("repository", "tag", "digest"))
    return f"{repository}{f':{tag}' if tag else ''}{f'@{digest}' if digest else ''}"


def values_for(purpose: str, image: str) -> dict[str, Any]:
    """The values for a purpose."""
    return merged(merged(BASE, PURPOSES[purpose]), {"image": image_values(image)})


def demo_values(image: str, postgres_image: str, postgres_uid: int) -> dict[str, Any]:
    """The values for the demo."""
    own = {"image": image_values(image)}
    return merged(merged(DEMO, own), {"demo": {"postgresql": {"image": postgres_image, "uid": postgres_uid}}})
