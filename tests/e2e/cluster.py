"""Chooses the cluster for the suite: the one in KUBECONFIG, or one that kind creates for the session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chart.toolbox import ROOT, tool
from tests.e2e.helm import Helm
from tests.e2e.kubectl import Kubectl, environment_for
from tests.e2e.waiting import duration, scaled

#: docker and podman both accept this name for a local image.
BUILT_IMAGE: Final = "localhost/containerstacks-billing:e2e"
POSTGRES_IMAGE: Final = "postgres:17-alpine"


@dataclass(frozen=True)
class ExistingCluster:
    """The cluster in KUBECONFIG. Its nodes have the image or can pull it."""

    kubeconfig: str
    image: str


@dataclass(frozen=True)
class KindCluster:
    """A cluster to create with kind. With `image` None, the suite builds the image."""

    engine: str
    image: str | None


@dataclass(frozen=True)
class NoCluster:
    """There is no cluster, for this reason."""

    reason: str


Choice = ExistingCluster | KindCluster | NoCluster


def choose(
    environment: Mapping[str, str],
    which: Callable[[str], str | None] = shutil.which,
    works: Callable[[list[str]], bool] | None = None,
) -> Choice:
    """Chooses the cluster to run on.

    KUBECONFIG alone is not enough, because it may name a production cluster.

    Args:
        environment: environment variables.
        which: finds a program on the PATH.
        works: returns True if a command exits with status 0.
    """
    works = works or _works
    kubeconfig, image = environment.get("KUBECONFIG", ""), environment.get("E2E_IMAGE") or None
    if kubeconfig and kubeconfig != os.devnull and image:
        return ExistingCluster(kubeconfig, image)
    missing = "KUBECONFIG and E2E_IMAGE must both be set to use an existing cluster"
    if not (kind := which("kind")) or not works([kind, "version"]):
        return NoCluster(f"{missing}, and kind isn't installed to create one")
    for engine in ("docker", "podman"):
        if (program := which(engine)) and works([program, "info"]):
            return KindCluster(engine, image)
    return NoCluster(f"{missing}, and kind needs docker or podman to create one")


@dataclass(frozen=True)
class Cluster:
    """A running cluster and its images.

    Attributes:
        kubectl: kubectl for the cluster.
        image: the project's image, by its name on the nodes.
        postgres_image: the PostgreSQL image, by its name on the nodes.
        postgres_image_named: True if the user or the suite has made sure that the nodes have the PostgreSQL image.
    """

    kubectl: Kubectl
    image: str
    postgres_image: str
    postgres_image_named: bool

    def helm(self, namespace: str) -> Helm:
        """Returns helm for one namespace of the cluster."""
        return Helm(str(tool("helm")), self.kubectl.environment, namespace)


@contextmanager
def connected(choice: ExistingCluster | KindCluster, folder: Path, session: str, *, keep: bool) -> Iterator[Cluster]:
    """Connects to the cluster. Creates and deletes it if kind provides it.

    Raises:
        ToolMissingError: kubectl or helm is missing.
        KubectlError: the cluster doesn't answer.
    """
    tool("helm")
    kubectl = str(tool("kubectl"))
    named = os.environ.get("E2E_POSTGRES_IMAGE")
    postgres_image = named or POSTGRES_IMAGE
    if isinstance(choice, ExistingCluster):
        reached = Kubectl(kubectl, environment_for(choice.kubeconfig))
        reached.run("version", "--output", "json")
        yield Cluster(reached, choice.image, postgres_image, bool(named))
        return
    image = choice.image or BUILT_IMAGE
    if choice.image is None:
        _must([choice.engine, "build", "--tag", image, str(ROOT)], 1800)
    name, kubeconfig = f"billing-e2e-{session}", folder / "kubeconfig"
    node = os.environ.get("E2E_KIND_NODE_IMAGE")
    provider = {**os.environ, "KIND_EXPERIMENTAL_PROVIDER": choice.engine}
    try:
        _must(
            ["kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig), "--wait", duration(180),
             *(["--image", node] if node else [])],
            900, provider,
        )  # fmt: skip
        _load(choice.engine, image, name, folder, provider)
        if _works([choice.engine, "image", "inspect", postgres_image]):
            _load(choice.engine, postgres_image, name, folder, provider)
        reached = Kubectl(kubectl, environment_for(str(kubeconfig)))
        yield Cluster(reached, image, postgres_image, postgres_image_named=True)
    finally:
        if not keep:
            _must(["kind", "delete", "cluster", "--name", name, "--kubeconfig", str(kubeconfig)], 300, provider)


def _load(engine: str, image: str, cluster: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Loads an image through an archive, which works with docker and podman."""
    archive = folder / "image.tar"
    _must([engine, "save", "--output", str(archive), image], 600)
    _must(["kind", "load", "image-archive", str(archive), "--name", cluster], 600, environment)
    archive.unlink()


def _works(command: list[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _must(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=scaled(seconds), env=dict(environment) if environment else None,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command[:3])}: {(done.stderr or done.stdout)[-4000:]}"
