"""The program that `helm test` runs in the cluster, run here against a server that answers as a replica would."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chart.toolbox import MINIMAL, one, render


class Replica(ThreadingHTTPServer):
    """Answers 200, and 503 with a reason to what is in `failing`."""

    failing: frozenset[str] = frozenset()
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        failing = self.path in self.server.failing
        self.send_response(503 if failing else 200)
        self.end_headers()
        self.wfile.write(b"draining" if failing else b"ok")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def replica() -> Iterator[Replica]:
    with Replica(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="replica")
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_against(server: Replica) -> subprocess.CompletedProcess[str]:
    objects = render({**MINIMAL, "service": {"port": server.server_address[1]}})
    pod = one(objects, "Job", "test")["spec"]["template"]["spec"]
    container = next(c for c in pod["containers"] if c["name"] == "service")
    return subprocess.run(
        [sys.executable, *container["command"][1:], *container["args"]],
        env={"PATH": os.environ["PATH"], "CONTAINERSTACKS_BILLING_SERVICE_HOST": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_passes_when_every_page_is_there(replica: Replica) -> None:
    done = run_against(replica)
    assert (done.returncode, done.stderr) == (0, "")
    assert replica.asked == ["/livez", "/readyz", "/status.json", "/metrics"]


def test_fails_with_the_reason_that_the_replica_gives(replica: Replica) -> None:
    replica.failing = frozenset({"/readyz"})
    done = run_against(replica)
    assert done.returncode == 1
    assert "/readyz 503: draining" in done.stderr
