"""Runs kubectl in one namespace, with text or objects as input and output."""

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
    """kubectl failed; the message is its output."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one namespace.

    Attributes:
        program: path of kubectl.
        environment: its environment; KUBECONFIG names the cluster.
        namespace: namespace of every command.
    """

    program: str
    environment: Mapping[str, str] = field(repr=False)
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """Returns kubectl for another namespace of the same cluster."""
        return replace(self, namespace=namespace)

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return [self.program, "--namespace", self.namespace, *arguments]

    def attempt(
        self, *arguments: str, text: str = "", seconds: float = CALL_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command and returns its result, even if it failed.

        Raises:
            KubectlError: the command timed out.
        """
        __tracebackhide__ = True  # standard input may contain a password
        bound = scaled(seconds)
        try:
            return subprocess.run(
                self.command(*arguments),
                input=text, capture_output=True, text=True, timeout=bound, check=False, env=dict(self.environment),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl {_shown(arguments)}: timed out after {bound:g} s") from None

    def run(self, *arguments: str, text: str = "", seconds: float = CALL_SECONDS) -> str:
        """Runs a command and returns its standard output.

        Raises:
            KubectlError: the command failed or timed out.
        """
        __tracebackhide__ = True
        done = self.attempt(*arguments, text=text, seconds=seconds)
        if done.returncode != 0:
            raise KubectlError(f"kubectl {_shown(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def read(self, *arguments: str) -> dict[str, Any]:
        """Runs a command with JSON output and returns the parsed object."""
        found: dict[str, Any] = json.loads(self.run(*arguments, "--output", "json"))
        return found

    def apply(self, *objects: Object) -> None:
        """Creates or updates objects."""
        __tracebackhide__ = True  # Secrets
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("apply", "--filename", "-", text=json.dumps(listing))

    def pods(self, selector: str = "") -> list[PodView]:
        """The pods of a selector, including terminating ones, sorted by name."""
        return pod_views(self.read("get", "pods", "--selector", selector))

    def events(self) -> list[EventView]:
        """The Events of the namespace, oldest first."""
        return event_views(self.read("get", "events.events.k8s.io"))

    def names(self, kinds: Iterable[str]) -> set[str]:
        """All objects of these kinds, as `kind/name`."""
        printed = self.run("get", ",".join(kinds), "--output", "name", "--ignore-not-found")
        return set(printed.split())

    def logs(self, *arguments: str) -> str:
        """All log lines of the arguments. With a selector kubectl prints only ten lines by default."""
        return self.run("logs", "--tail=-1", *arguments)

    def wait(self, *arguments: str, seconds: float) -> None:
        """Runs `kubectl wait` with a time limit."""
        self.run("wait", *arguments, "--timeout", duration(seconds), seconds=seconds + CALL_SECONDS)

    def rolled_out(self, deployment: str, seconds: float = 300) -> None:
        """Waits until the rollout of a Deployment is complete."""
        arguments = ("rollout", "status", f"deployment/{deployment}", "--timeout", duration(seconds))
        self.run(*arguments, seconds=seconds + CALL_SECONDS)

    def evict(self, pod: str) -> subprocess.CompletedProcess[str]:
        """Evicts a pod through the Eviction API, like `kubectl drain`."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        return self.attempt("create", "--raw", path, "--filename", "-", text=json.dumps(body))

    @contextmanager
    def following(self, pod: str, container: str = "controller") -> Iterator[FollowedLog]:
        """Records the log of a container, including its lines during termination."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "log")
            with path.open("wb") as file:
                process = subprocess.Popen(
                    self.command("logs", "--follow", "--tail=-1", pod, "--container", container),
                    stdout=file, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=dict(self.environment),
                )  # fmt: skip
            try:
                yield FollowedLog(path, process)
            finally:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class FollowedLog:
    """The output of a running `kubectl logs --follow`."""

    path: Path
    process: subprocess.Popen[bytes]

    def text(self) -> str:
        """The log so far."""
        return self.path.read_text("utf-8", "replace")

    def until_the_end(self, seconds: float) -> str:
        """Waits until the container has ended and returns its whole log.

        Raises:
            AssertionError: the container is still running after the time limit.
        """
        try:
            self.process.wait(scaled(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the container is still running after {scaled(seconds):g} s") from None
        return self.text()


def environment_for(kubeconfig: str) -> dict[str, str]:
    """This process's environment with another KUBECONFIG."""
    return {**os.environ, "KUBECONFIG": kubeconfig}


def _shown(arguments: tuple[str, ...]) -> str:
    """Shortens a command for messages, because a program after `python3 -c` would hide the error."""
    return " ".join(argument.partition("\n")[0][:80] for argument in arguments)
