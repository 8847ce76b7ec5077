"""Writes a kustomize overlay of manifests/base for the suite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from tests.chart.toolbox import ROOT
from tests.e2e.values import BASE, RELEASE, image_values

BASE_FOLDER: Final = ROOT / "manifests" / "base"


def write_overlay(folder: Path, namespace: str, image: str) -> Path:
    """Writes the overlay and returns its folder for `kubectl apply --kustomize`."""
    shutil.copytree(BASE_FOLDER, folder / "base")
    overlay = folder / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(json.dumps(kustomization(namespace, image)), "utf-8")
    return overlay


def kustomization(namespace: str, image: str) -> dict[str, Any]:
    """The overlay: the same image and short interval as with the chart."""
    named, billing = image_values(image), BASE["billing"]
    environment = {
        "BILLING_INTERVAL_MINUTES": str(billing["intervalMinutes"]),
        "BILLING_TAKEOVER_DELAY_SECONDS": str(billing["takeoverDelaySeconds"]),
    }
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": RELEASE},
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {"name": "controller", "env": [{"name": k, "value": v} for k, v in environment.items()]}
                    ]
                }
            }
        },
    }
    replaced = {"name": "containerstacks-billing", "newName": named["repository"]}
    replaced |= {"digest": named["digest"]} if named["digest"] else {"newTag": named["tag"]}
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": ["../base"],
        "images": [replaced],
        "patches": [{"patch": json.dumps(patch)}],
    }
