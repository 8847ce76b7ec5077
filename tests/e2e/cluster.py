"""The cluster that the suite runs on: one that KUBECONFIG names, else one that kind makes for the session."""

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

#: A name under which docker and podman both know what they have built.
BUILT_IMAGE: Final = "localhost/containerstacks-billing:e2e"
POSTGRES_IMAGE: Final = "postgres:17-alpine"


@dataclass(frozen=True)
class Given:
    """KUBECONFIG's cluster, whose nodes have the image or can pull it."""

    kubeconfig: str
    image: str


@dataclass(frozen=True)
class Kind:
    """A cluster to make. `image` is None when it is to be built."""

    engine: str
    image: str | None


@dataclass(frozen=True)
class Nothing:
    """No cluster, and why."""

    reason: str


Choice = Given | Kind | Nothing


def choose(
    environment: Mapping[str, str],
    which: Callable[[str], str | None] = shutil.which,
    works: Callable[[list[str]], bool] | None = None,
) -> Choice:
    """Which cluster to run on.

    A KUBECONFIG alone is not enough: it may name somebody's production, and nobody has said to test there.

    Args:
        environment: of the process.
        which: finds a program on the PATH.
        works: whether a command ends well.
    """
    works = works or _works
    kubeconfig, image = environment.get("KUBECONFIG", ""), environment.get("E2E_IMAGE") or None
    if kubeconfig and kubeconfig != os.devnull and image:
        return Given(kubeconfig, image)
    missing = "KUBECONFIG and E2E_IMAGE name no cluster with an image"
    if not (kind := which("kind")) or not works([kind, "version"]):
        return Nothing(f"{missing} (both are needed), and there is no kind to make one")
    for engine in ("docker", "podman"):
        if (program := which(engine)) and works([program, "info"]):
            return Kind(engine, image)
    return Nothing(f"{missing} (both are needed), and kind has neither docker nor podman to work with")


@dataclass(frozen=True)
class Cluster:
    """A cluster and how to speak to it.

    Attributes:
        image: of the project, as the nodes know it.
        postgres_image: likewise.
        postgres_image_named: whether somebody has said that the nodes have it.
    """

    kubectl: Kubectl
    image: str
    postgres_image: str
    postgres_image_named: bool

    def helm(self, namespace: str) -> Helm:
        """As `kubectl`, but for one namespace from the start."""
        return Helm(str(tool("helm")), self.kubectl.environment, namespace)


@contextmanager
def connected(choice: Given | Kind, folder: Path, session: str, *, keep: bool) -> Iterator[Cluster]:
    """The cluster, for as long as the session lasts.

    Raises:
        ToolMissingError: there is no kubectl or helm.
        KubectlError: the cluster does not answer.
    """
    tool("helm")
    kubectl = str(tool("kubectl"))
    named = os.environ.get("E2E_POSTGRES_IMAGE")
    postgres_image = named or POSTGRES_IMAGE
    if isinstance(choice, Given):
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
    """By way of an archive, which kind takes from docker and podman alike."""
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
