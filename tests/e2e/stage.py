"""A session's shared resources (cluster, workbench, PostgreSQL server), and the resources of each installation."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.e2e import manifests
from tests.e2e.cluster import Cluster
from tests.e2e.database import Database, PostgresServer
from tests.e2e.installation import Installation
from tests.e2e.kubectl import Kubectl
from tests.e2e.objects import address_of
from tests.e2e.report import dump
from tests.e2e.values import RELEASE, values_for
from tests.e2e.waiting import duration, eventually
from tests.e2e.workbench import POD, Url, Workbench

POD_SECONDS: Final = 240.0


@dataclass(frozen=True)
class Stage:
    """The shared resources of a session.

    Attributes:
        cluster: the cluster.
        session: a random name, part of the name of everything the session creates.
        bench: the workbench.
        server: the PostgreSQL server.
        open_namespaces: namespaces to include in the report of a failing test.
        keep: True to leave everything in place at the end.
    """

    cluster: Cluster
    session: str
    bench: Workbench
    server: PostgresServer
    open_namespaces: list[Kubectl] = field(repr=False)
    keep: bool

    @contextmanager
    def namespace(self, purpose: str) -> Iterator[Kubectl]:
        """Creates an empty namespace and deletes it afterwards."""
        with _namespace(
            self.cluster, f"{self.session}-{purpose}", self.session, self.open_namespaces, keep=self.keep
        ) as n:
            yield n

    @contextmanager
    def database(self, purpose: str, *, seeded: bool = True) -> Iterator[Database]:
        """Creates a database with sample data, or an empty one."""
        name = f"{self.session}_{purpose}".replace("-", "_")
        with self.server.database(name, keep=self.keep) as database:
            if seeded:
                database.seed()
            yield database

    @contextmanager
    def prepared(
        self, purpose: str, *, seeded: bool = True, secret: dict[str, str] | None = None
    ) -> Iterator[Installation]:
        """Creates everything that an installation needs, without installing it.

        Args:
            purpose: a key of values.PURPOSES.
            seeded: True to create the sample data.
            secret: content of the Secret instead of the database URL.
        """
        with self.database(purpose, seeded=seeded) as database, self.namespace(purpose) as kubectl:
            texts = {manifests.KEY: database.url.text} if secret is None else secret
            kubectl.apply(manifests.secret(manifests.SECRET, **texts))
            values = values_for(purpose, self.cluster.image)
            yield Installation(kubectl, self.cluster.helm(kubectl.namespace), database, values)

    @contextmanager
    def installed(self, purpose: str) -> Iterator[Installation]:
        """Installs a release and waits until its replicas are Ready."""
        with self.prepared(purpose) as installation:
            installation.helm.install(RELEASE, installation.values)
            yield installation


@contextmanager
def staged(cluster: Cluster, open_namespaces: list[Kubectl], *, keep: bool) -> Iterator[Stage]:
    """Creates the shared resources of a session and deletes everything afterwards."""
    session = f"billing-e2e-{secrets.token_hex(3)}"
    try:
        with _namespace(cluster, session, session, open_namespaces, keep=keep) as kubectl:
            kubectl.apply(manifests.workbench(cluster.image))
            outside = os.environ.get("E2E_DATABASE_URL")
            if not outside:
                password = secrets.token_hex(12)
                uid = int(os.environ.get("E2E_POSTGRES_UID") or manifests.postgres_uid(cluster.postgres_image))
                kubectl.apply(
                    manifests.secret(manifests.POSTGRES, password=password),
                    manifests.postgres(cluster.postgres_image, uid),
                )
                kubectl.wait("--for", "condition=Ready", f"pod/{manifests.POSTGRES}", seconds=POD_SECONDS)
            kubectl.wait("--for", "condition=Ready", f"pod/{POD}", seconds=POD_SECONDS)
            bench = Workbench(kubectl)
            server = PostgresServer(bench, Url(outside) if outside else _url(kubectl, password))
            eventually(lambda: bench.sql(server.url, ("select 1 as up", [])), "the workbench reaches PostgreSQL", 60)
            yield Stage(cluster, session, bench, server, open_namespaces, keep)
    finally:
        if not keep:
            # Delete all namespaces together, because each takes as long as its slowest pod.
            gone = ("delete", "namespaces", "--selector", f"{manifests.SESSION_LABEL}={session}")
            cluster.kubectl.attempt(*gone, "--timeout", duration(180), seconds=240)


@contextmanager
def _namespace(
    cluster: Cluster, name: str, session: str, open_namespaces: list[Kubectl], *, keep: bool
) -> Iterator[Kubectl]:
    cluster.kubectl.apply(manifests.namespace(name, session))
    kubectl = cluster.kubectl.within(name)
    open_namespaces.append(kubectl)
    try:
        # Kubernetes rejects pods until the default service account exists.
        eventually(lambda: kubectl.names(["serviceaccounts"]), f"namespace {name} has its service account", 60)
        yield kubectl
    except (Exception, pytest.fail.Exception) as error:  # pytest makes its report after the namespace is deleted
        for title, text in dump(kubectl):
            error.add_note(f"--- {title}\n{text}")
        raise
    finally:
        open_namespaces.remove(kubectl)
        if not keep:
            cluster.kubectl.attempt("delete", "namespace", name, "--wait=false")


def _url(kubectl: Kubectl, password: str) -> Url:
    """The server's URL by its pod's address, which needs neither DNS nor a Service."""
    (pod,) = kubectl.pods(f"app.kubernetes.io/name={manifests.POSTGRES}")
    return Url(f"postgresql://postgres:{password}@{address_of(pod.ip)}:5432/postgres")
