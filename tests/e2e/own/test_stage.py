"""A stage creates what a session needs and deletes all of it. A fake kubectl records its commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl
from tests.e2e.stage import staged
from tests.e2e.workbench import Url, Workbench
from tests.support.servers import Server

#: A fake kubectl: runs `exec` on this machine, and reports that every requested pod exists.
KUBECTL: Final = """#!{python}
import json, subprocess, sys
arguments = sys.argv[1:]
with open({journal!r}, "a") as journal:
    print(json.dumps(arguments[:12] if "exec" not in arguments else arguments[:5]), file=journal)
if "exec" in arguments:
    sys.exit(subprocess.run([sys.executable, *arguments[arguments.index("--") + 2:]]).returncode)
if arguments[2:4] == ["get", "pods"]:
    pod = {{"metadata": {{"name": "workbench", "uid": "u"}}, "status": {{"podIP": "10.0.0.1"}}}}
    print(json.dumps({{"items": [pod]}}))
elif arguments[2] == "get":
    print("serviceaccount/default")
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.touch()
    return path


@pytest.fixture
def cluster(tmp_path: Path, journal: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster whose external PostgreSQL server is the one of the test session."""
    monkeypatch.setenv("E2E_DATABASE_URL", server.url("postgres"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(python=sys.executable, journal=str(journal)), "utf-8")
    program.chmod(0o700)
    return Cluster(Kubectl(str(program), dict(os.environ)), "billing:1", "postgres:17", postgres_image_named=False)


def commands(journal: Path) -> list[str]:
    return journal.read_text("utf-8").splitlines()


def databases_and_roles(cluster: Cluster, server: Server) -> set[str]:
    """Databases and roles that the session created."""
    text = (
        "select datname as name from pg_database where starts_with(datname, 'billing_e2e_')"
        " union all select rolname from pg_roles where starts_with(rolname, 'billing_e2e_')"
    )
    return {row["name"] for row in Workbench(cluster.kubectl).sql(Url(server.url("postgres")), (text, []))}


def test_stage_deletes_everything_that_it_creates(cluster: Cluster, journal: Path, server: Server) -> None:
    open_namespaces: list[Kubectl] = []
    with staged(cluster, open_namespaces, keep=False) as stage:
        with stage.prepared("install") as release:
            assert [n.namespace for n in open_namespaces] == [stage.session, f"{stage.session}-install"]
            assert release.kubectl.namespace == f"{stage.session}-install"
            assert release.database.one("select count(*) > 0 as seeded from vps_instances") == {"seeded": True}
            assert release.values["image"]["tag"] == "1"
            assert release.database.name in databases_and_roles(cluster, server)
        assert [n.namespace for n in open_namespaces] == [stage.session]
        assert databases_and_roles(cluster, server) == set()
    assert open_namespaces == []
    deleted = [line for line in commands(journal) if '"delete"' in line]
    names = (
        f'"{stage.session}-install"',
        f'"{stage.session}"',
        f"billing.containerstacks.io/e2e-session={stage.session}",
    )
    assert [name in line for name, line in zip(names, deleted, strict=True)] == [True] * 3


def test_failure_on_a_stage_shows_the_state_of_the_cluster(cluster: Cluster, journal: Path) -> None:
    def fail() -> None:
        with staged(cluster, [], keep=False) as stage, stage.namespace("loss"):
            raise AssertionError("no leader")

    with pytest.raises(AssertionError, match="no leader") as error:
        fail()
    assert any("describe pods" in note for note in error.value.__notes__)
    assert any('"describe"' in line for line in commands(journal))
    assert any('"delete"' in line for line in commands(journal))


def test_kept_stage_deletes_nothing(cluster: Cluster, journal: Path, server: Server) -> None:
    with staged(cluster, [], keep=True) as stage, stage.prepared("install", seeded=False) as release:
        pass
    assert not [line for line in commands(journal) if '"delete"' in line]
    assert release.database.name in databases_and_roles(cluster, server)
    drops: list[tuple[str, list[object]]] = [
        (f"drop {kind} {release.database.name}", []) for kind in ("database", "role")
    ]
    release.database.bench.sql(Url(server.url("postgres")), *drops)
