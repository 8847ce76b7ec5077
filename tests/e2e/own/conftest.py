"""Fixtures for the tests of the suite itself, which need no cluster."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from controller.demo.server import find_installations
from tests.chart.toolbox import ToolMissingError, tool
from tests.e2e import inside
from tests.e2e.kubectl import Kubectl
from tests.e2e.workbench import Finished, Parameters, SqlError, Url, Workbench
from tests.support.console import Console
from tests.support.servers import Server

#: A fake kubectl: runs the Python program of `kubectl exec POD -- python3 ...` on this machine.
EXEC = """#!{python}
import subprocess, sys
arguments = sys.argv[sys.argv.index("--") + 2:]
sys.exit(subprocess.run([sys.executable, *arguments]).returncode)
"""

UNREACHABLE = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {token: none}}]
current-context: none
"""


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running PostgreSQL server of the newest installed version. One version is enough to test the suite."""
    found = max(find_installations(), key=lambda each: each.version, default=None)
    if found is None:
        pytest.skip("PostgreSQL isn't installed")
    with Server(found) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """A workbench on this machine with the packages of this environment."""
    program = tmp_path / "kubectl"
    program.write_text(EXEC.format(python=sys.executable), "utf-8")
    program.chmod(0o700)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return Workbench(Kubectl(str(program), {**os.environ, "PATH": path}))


class QuickWorkbench(Workbench):
    """Runs SQL and commands in this process, because starting Python for each would take most of these tests' time."""

    def sql(self, url: Url, *statements: tuple[str, Parameters]) -> list[dict[str, Any]]:
        answer = inside.sql(url.text, [*statements])
        if "error" in answer:
            raise SqlError(answer["error"], answer["sqlstate"])
        return json.loads(json.dumps(answer["rows"], default=str))  # type: ignore[no-any-return]

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Finished:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return Finished(*Console(patch).run(*arguments[1:]))


@pytest.fixture
def quick_bench() -> Workbench:
    return QuickWorkbench(Kubectl("kubectl", {}))


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a cluster that doesn't answer."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(UNREACHABLE, "utf-8")
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(kubeconfig)}


@pytest.fixture
def kubectl(environment: Mapping[str, str]) -> Kubectl:
    """The real kubectl with a cluster that doesn't answer."""
    try:
        return Kubectl(str(tool("kubectl")), environment, "e2e")
    except ToolMissingError as error:
        pytest.skip(str(error))
