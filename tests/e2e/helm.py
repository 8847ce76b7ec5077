"""helm, as a person would run it, in one namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chart.toolbox import CHART
from tests.e2e.waiting import duration, scaled

#: For the whole of a command that waits.
WAIT_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Helm:
    """Commands in a namespace.

    Attributes:
        program: the path of helm.
        environment: for it; names the cluster in KUBECONFIG.
        namespace: of every command.
    """

    program: str
    environment: Mapping[str, str] = field(repr=False)
    namespace: str

    def install(self, release: str, values: Mapping[str, Any], *, wait: bool = True) -> str:
        """`helm install`; what it printed."""
        return self._run("install", release, str(CHART), "--values", "-", *_waiting(wait=wait), values=values)

    def upgrade(self, release: str, values: Mapping[str, Any], *, wait: bool = True) -> str:
        """`helm upgrade`, with these values and no others."""
        return self._run(
            "upgrade", release, str(CHART), "--reset-values", "--values", "-", *_waiting(wait=wait), values=values
        )

    def test(self, release: str) -> str:
        """`helm test`."""
        return self._run("test", release, "--timeout", duration(WAIT_SECONDS))

    def uninstall(self, release: str) -> str:
        """`helm uninstall`, which returns when the objects are gone."""
        return self._run("uninstall", release, *_waiting(wait=True))

    def releases(self) -> list[str]:
        """Names of the releases, in whatever state."""
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
