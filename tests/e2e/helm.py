"""Runs helm in one namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chart.toolbox import CHART
from tests.e2e.waiting import duration, scaled

#: The timeout of commands with --wait.
WAIT_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Helm:
    """helm for one namespace.

    Attributes:
        program: path of helm.
        environment: its environment; KUBECONFIG names the cluster.
        namespace: namespace of every command.
    """

    program: str
    environment: Mapping[str, str] = field(repr=False)
    namespace: str

    def install(self, release: str, values: Mapping[str, Any], *, wait: bool = True) -> str:
        """Runs `helm install` and returns its output."""
        return self._run("install", release, str(CHART), "--values", "-", *_waiting(wait=wait), values=values)

    def upgrade(self, release: str, values: Mapping[str, Any], *, wait: bool = True) -> str:
        """Runs `helm upgrade` with only these values."""
        return self._run(
            "upgrade", release, str(CHART), "--reset-values", "--values", "-", *_waiting(wait=wait), values=values
        )

    def test(self, release: str) -> str:
        """Runs `helm test` and returns its output with the logs of the test's pod."""
        return self._run("test", release, "--logs", "--timeout", duration(WAIT_SECONDS))

    def uninstall(self, release: str) -> str:
        """Runs `helm uninstall` and waits until the objects are gone."""
        return self._run("uninstall", release, *_waiting(wait=True))

    def releases(self) -> list[str]:
        """Names of the releases in any state."""
        listing: list[dict[str, Any]] = json.loads(self._run("list", "--output", "json"))
        return [release["name"] for release in listing]

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [self.program, "--namespace", self.namespace, *arguments]

    def _run(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        done = subprocess.run(
            self.command(*arguments),
            input=json.dumps(values) if values is not None else "",
            capture_output=True, text=True, timeout=scaled(WAIT_SECONDS) + 60, check=False, env=dict(self.environment),
        )  # fmt: skip
        assert done.returncode == 0, f"helm {arguments[0]}: {done.stderr.strip()}\n{done.stdout.strip()}"
        return done.stdout


def _waiting(*, wait: bool) -> list[str]:
    return ["--wait", "--timeout", duration(WAIT_SECONDS)] if wait else []
