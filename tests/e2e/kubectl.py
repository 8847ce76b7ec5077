"""kubectl, as a person would run it: one namespace, text or objects in, text or objects out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.e2e.objects import EventView, PodView, event_views, pod_views
from tests.e2e.waiting import TransientError, duration, scaled

Object = Mapping[str, Any]

CALL_SECONDS = 60.0


class KubectlError(TransientError):
    """kubectl failed; the text is what it said."""


@dataclass(frozen=True)
class Kubectl:
    """Commands in a namespace.

    Attributes:
        program: the path of kubectl.
        environment: for it; names the cluster in KUBECONFIG.
        namespace: of every command.
    """

    program: str
    environment: Mapping[str, str] = field(repr=False)
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """The same in another namespace."""
        return replace(self, namespace=namespace)

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [self.program, "--namespace", self.namespace, *arguments]

    def attempt(
        self, *arguments: str, text: str = "", seconds: float = CALL_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command, whatever comes of it.

        Raises:
            KubectlError: it has not ended in time.
        """
        __tracebackhide__ = True  # what goes to standard input may hold a password
        bound = scaled(seconds)
        try:
            return subprocess.run(
                self.command(*arguments),
                input=text, capture_output=True, text=True, timeout=bound, check=False, env=dict(self.environment),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {_shown(arguments)}: not within {bound:g} s") from None

    def run(self, *arguments: str, text: str = "", seconds: float = CALL_SECONDS) -> str:
        """Runs a command; what it printed.

        Raises:
            KubectlError: it failed, or has not ended in time.
        """
        __tracebackhide__ = True
        done = self.attempt(*arguments, text=text, seconds=seconds)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {_shown(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def read(self, *arguments: str) -> dict[str, Any]:
        """Runs a command that prints an object."""
        found: dict[str, Any] = json.loads(self.run(*arguments, "--output", "json"))
        return found

    def apply(self, *objects: Object) -> None:
        """Makes objects, or changes them."""
        __tracebackhide__ = True  # Secrets
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("apply", "--filename", "-", text=json.dumps(listing))

    def pods(self, selector: str = "") -> list[PodView]:
        """The pods of a selector, the terminating ones too, by name."""
        return pod_views(self.read("get", "pods", "--selector", selector))

    def events(self) -> list[EventView]:
        """The Events of the namespace, the oldest first."""
        return event_views(self.read("get", "events.events.k8s.io"))

    def names(self, kinds: Iterable[str]) -> set[str]:
        """`kind/name` of all objects of these kinds."""
        printed = self.run("get", ",".join(kinds), "--output", "name", "--ignore-not-found")
        return set(printed.split())

    def logs(self, *arguments: str) -> str:
        """All lines of what the arguments name; with a selector kubectl would give ten."""
        return self.run("logs", "--tail=-1", *arguments)

    def wait(self, *arguments: str, seconds: float) -> None:
        """`kubectl wait`, with a bound."""
        self.run("wait", *arguments, "--timeout", duration(seconds), seconds=seconds + CALL_SECONDS)

    def rolled_out(self, deployment: str, seconds: float = 300) -> None:
        """Blocks until every replica is of the newest template, and available."""
        arguments = ("rollout", "status", f"deployment/{deployment}", "--timeout", duration(seconds))
        self.run(*arguments, seconds=seconds + CALL_SECONDS)

    def evict(self, pod: str) -> subprocess.CompletedProcess[str]:
        """Asks the Eviction API, as `kubectl drain` does."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        return self.attempt("create", "--raw", path, "--filename", "-", text=json.dumps(body))

    @contextmanager
    def following(self, pod: str, container: str = "controller") -> Iterator[Following]:
        """Keeps what a container prints, also what it prints while its pod goes away."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "log")
            with path.open("wb") as file:
                process = subprocess.Popen(
                    self.command("logs", "--follow", "--tail=-1", pod, "--container", container),
                    stdout=file, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=dict(self.environment),
                )  # fmt: skip
            try:
                yield Following(path, process)
            finally:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Following:
    """A `kubectl logs --follow` under way."""

    path: Path
    process: subprocess.Popen[bytes]

    def text(self) -> str:
        """What has come so far."""
        return self.path.read_text("utf-8", "replace")

    def until_the_end(self, seconds: float) -> str:
        """Everything; the container has ended.

        Raises:
            AssertionError: it has not, in time.
        """
        try:
            self.process.wait(scaled(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the container still runs after {scaled(seconds):g} s") from None
        return self.text()


def environment_for(kubeconfig: str) -> dict[str, str]:
    """This process's environment, with that cluster."""
    return {**os.environ, "KUBECONFIG": kubeconfig}


def _shown(arguments: tuple[str, ...]) -> str:
    """The beginning of a command: a program passed to `python3 -c` would hide what went wrong."""
    return " ".join(argument.partition("\n")[0][:80] for argument in arguments)
