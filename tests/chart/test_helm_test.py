"""Runs the program of `helm test` against a local HTTP server instead of a replica."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chart.toolbox import MINIMAL, one, render


class ProbeServer(ThreadingHTTPServer):
    """Answers 200, or 503 with a reason for the paths in `failing`. Records the requested paths."""

    failing: frozenset[str] = frozenset()
    requested: list[str]


class Handler(BaseHTTPRequestHandler):
    server: ProbeServer

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        failing = self.path in self.server.failing
        self.send_response(503 if failing else 200)
        self.end_headers()
        self.wfile.write(b"draining" if failing else b"ok")

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def server() -> Iterator[ProbeServer]:
    with ProbeServer(("127.0.0.1", 0), Handler) as server:
        server.requested = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="probe-server")
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_against(
    server: ProbeServer, service: str = "billing", host: str | None = "127.0.0.1"
) -> subprocess.CompletedProcess[str]:
    """Runs the program. `host` is the address in the environment, if there is one."""
    objects = render({**MINIMAL, "fullnameOverride": service, "service": {"port": server.server_address[1]}})
    pod = one(objects, "Pod", "test")["spec"]
    container = next(c for c in pod["containers"] if c["name"] == "service")
    return subprocess.run(
        [sys.executable, *container["command"][1:], *container["args"]],
        env={"PATH": os.environ["PATH"]} | ({f"{service.upper()}_SERVICE_HOST": host} if host else {}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_helm_test_passes_when_every_path_answers_200(server: ProbeServer) -> None:
    done = run_against(server)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.requested == ["/livez", "/readyz", "/status.json", "/metrics"]


def test_helm_test_without_service_links_resolves_the_service(server: ProbeServer) -> None:
    """`podSpec` may turn the links off."""
    assert run_against(server, service="localhost", host=None).returncode == 0


def test_helm_test_fails_with_the_reason_in_the_body(server: ProbeServer) -> None:
    server.failing = frozenset({"/readyz"})
    done = run_against(server)
    assert done.returncode == 1
    assert "/readyz 503: draining" in done.stderr
